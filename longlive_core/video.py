"""Frames -> an H.264 mp4 that grows while it is made, with the settings it was made with; no models here."""

import json
import logging
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from .geometry import FRAME_RATE

METADATA_KEY = "longlive"
_GROWING = {"movflags": "frag_keyframe+empty_moov+default_base_moof+use_metadata_tags"}
_FINISHED = {"movflags": "use_metadata_tags"}
_ENCODER = {"crf": "16", "preset": "veryfast", "g": "12"}

logger = logging.getLogger("longlive")


class _Sink:
    """A file for the muxer that keeps the first failure for us: the muxer itself would crash on it."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("wb", buffering=0)
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            left = memoryview(data) if self.error is None else b""
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        """Raise the failure, if there was one."""
        if self.error is not None:
            reason = f"{self.error.strerror}; what was written before stays playable"
            raise OSError(self.error.errno, reason, str(self._path))

    def close(self) -> None:
        self._file.close()


class VideoWriter:
    """Appends frames to `path`: playable at any moment, an ordinary mp4 once closed.

    While growing, the file is fragmented, so that a full disk or a kill leaves what was written playable.
    """

    def __init__(self, path: str | Path, width: int, height: int, settings: dict[str, Any] | None = None):
        self.path = Path(path)
        self.num_frames = 0
        self._metadata = {METADATA_KEY: json.dumps(settings or {}, ensure_ascii=False)}
        self._sink = _Sink(self.path)
        self._container = av.open(self._sink, "w", format="mp4", options=_GROWING)
        self._container.metadata.update(self._metadata)
        self._stream = self._container.add_stream("libx264", rate=FRAME_RATE, options=_ENCODER)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = Fraction(1, FRAME_RATE)
        self._is_open = True

    def append(self, frames: np.ndarray) -> None:
        """Frames uint8 [F, H, W, 3]. Raises OSError when they cannot be written."""
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = self.num_frames
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1
        self._sink.check()

    def close(self) -> None:
        """Write what the encoder still holds, then turn the file into an ordinary mp4.

        Raises OSError when not everything could be written. Without a single frame no file is left.
        """
        if not self._is_open:
            return
        self._is_open = False
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._sink.close()
        if not self.num_frames:
            self._discard()
        elif self._sink.error is None:
            self._finish()
        else:
            drop_cut_fragment(self.path)
            self._sink.check()

    def _discard(self) -> None:
        """No frame was made: no file is left, where there is one to remove."""
        if self.path.is_file():
            self.path.unlink()

    def _finish(self) -> None:
        """Remux without fragments; where that fails, the fragmented file is complete and stays."""
        part = self.path.with_name(self.path.name + ".part")
        try:
            sink = _Sink(part)
            self._remux(sink)
            sink.check()
            os.replace(part, self.path)
        except (OSError, av.error.FFmpegError) as error:
            logger.warning("%s stays a fragmented mp4: %s", self.path, error)
        finally:
            part.unlink(missing_ok=True)

    def _remux(self, sink: _Sink) -> None:
        with (
            av.open(str(self.path)) as grown,
            av.open(sink, "w", format="mp4", options=_FINISHED) as finished,
        ):
            finished.metadata.update(self._metadata)
            stream = finished.add_stream_from_template(grown.streams.video[0])
            for packet in grown.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    finished.mux(packet)
        sink.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def drop_cut_fragment(path: Path) -> None:
    """Cut a fragmented mp4 that lost its end behind its last whole fragment (a moof box and its mdat)."""
    end, whole, size = 0, 0, path.stat().st_size
    if not path.is_file():
        return
    with path.open("r+b") as file:
        while end + 8 <= size:
            file.seek(end)
            length, kind = struct.unpack(">I4s", file.read(8))
            end += max(length, 8)
            if kind in (b"moov", b"mdat") and end <= size:
                whole = end
        file.truncate(whole)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a VideoWriter put into the file; ValueError if there are none."""
    try:
        with av.open(str(path)) as container:
            text = container.metadata.get(METADATA_KEY)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error})") from error
    if text is None:
        raise ValueError(f"{path} carries no LongLive settings; only videos written by LongLive do")
    return json.loads(text)
