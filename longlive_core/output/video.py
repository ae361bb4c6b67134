"""Frames -> an H.264 mp4 that grows while it is made, with the settings it was made with; no models here."""

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from ..geometry import FRAME_RATE

METADATA_KEY = "longlive"
PENDING = b"skip"  # the type of a box whose end is not on disk yet; players pass over it
BOX_HEADER_BYTES = 8  # of a box of an mp4: its length, then its type
TYPE_BYTES = slice(4, BOX_HEADER_BYTES)
_GROWING = {
    "movflags": "frag_custom+frag_discont+empty_moov+default_base_moof+skip_trailer+use_metadata_tags",
    "avoid_negative_ts": "make_non_negative",  # else every fragment would begin at 0
}
_FINISHED = {"movflags": "faststart+use_metadata_tags"}
_ENCODER = {"crf": "18", "preset": "veryfast", "g": "48", "tune": "zerolatency"}

logger = logging.getLogger("longlive")


class _GrowingFile:
    """A file that gets one piece after the other, each of them wholly or not at all.

    Until the first piece there is no such file, or still the one that was there before. Raises OSError at
    once where none can be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: BinaryIO | None = None
        self._end = 0
        was_there = path.exists()
        path.open("ab").close()  # neither empties nor keeps one
        if not was_there:
            path.unlink()

    @property
    def has_begun(self) -> bool:
        return self._file is not None

    def begin(self) -> None:
        """Take the place of a file that was there before."""
        self._file = self._path.open("wb", buffering=0)

    def add(self, piece: bytes) -> None:
        """Put boxes behind the others. Their first type is written last: then all of them count at once.

        Raises OSError when they cannot be written; the file is then as it was.
        """
        if not self.has_begun:
            self.begin()
        try:
            self._put(self._end, piece[: TYPE_BYTES.start] + PENDING + piece[TYPE_BYTES.stop :])
            self._put(self._end + TYPE_BYTES.start, piece[TYPE_BYTES])
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            reason = f"{error.strerror}; what was written before stays playable"
            raise OSError(error.errno, reason, str(self._path)) from error
        self._end += len(piece)

    def _put(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        left = memoryview(data)
        while left:  # a disk that is nearly full takes a part
            left = left[self._file.write(left) :]

    def close(self) -> None:
        if self.has_begun:
            self._file.close()


class VideoWriter:
    """Appends frames to `path`: whenever `append` returns, the file decodes to all frames so far.

    While growing, the file is fragmented, a fragment an append, so that a full disk or a kill leaves what was
    appended playable; once closed it is an ordinary mp4 whose index and metadata come first. `extra_metadata`
    are texts by name beside our own settings. A file that was there before stays until the first append; a
    link stays one, and what it names is written.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        settings: dict[str, Any] | None = None,
        extra_metadata: Mapping[str, str] | None = None,
    ):
        self.path = Path(path)
        self.num_frames = 0
        self._metadata = dict(extra_metadata or {})
        self.describe(settings or {})
        self._place = Path(os.path.realpath(self.path))
        self._file = _GrowingFile(self._place)
        self._header = io.BytesIO()
        self._muxer = av.open(self._header, "w", format="mp4", options=_GROWING)
        self._stream = self._muxer.add_stream("libx264", rate=FRAME_RATE, options=_ENCODER)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = Fraction(1, FRAME_RATE)
        self._num_pieces = 0
        self._is_open = True

    def describe(self, settings: dict[str, Any]) -> None:
        """Other settings for the finished file; before the first append for the growing one too."""
        self._metadata[METADATA_KEY] = json.dumps(settings, ensure_ascii=False)

    def append(self, frames: np.ndarray) -> None:
        """Frames uint8 [F, H, W, 3]. Raises OSError when they cannot be written."""
        packets = [self._encoded(self.num_frames + index, picture) for index, picture in enumerate(frames)]
        if not packets:
            return
        if not self._num_pieces:
            self._file.add(self._header.getvalue())
        self._num_pieces += 1
        self._file.add(fragment(packets, self._stream, self._num_pieces))
        self.num_frames += len(packets)

    def _encoded(self, index: int, picture: np.ndarray) -> av.Packet:
        if not index:
            self._muxer.metadata.update(self._metadata)
            self._muxer.start_encoding()  # writes the header
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = index
        (packet,) = self._stream.encode(frame)
        return packet

    def close(self) -> None:
        """Turn the file into an ordinary mp4. Without a single frame none is left but one from before."""
        if not self._is_open:
            return
        self._is_open = False
        self._muxer.close()
        self._file.close()
        if self.num_frames:
            self._finish()
        elif self._file.has_begun and self._place.is_file():
            with suppress(PermissionError):  # Windows keeps what someone reads
                self._place.unlink()

    def _finish(self) -> None:
        """Remux without fragments; where that fails, the fragmented file is complete and stays."""
        part = unused_name(self._place, ".part")
        try:
            self._remux(part)
            put_in_place(part, self._place)
        except (OSError, av.error.FFmpegError) as error:
            logger.warning("%s stays a fragmented mp4: %s", self.path, error)
        finally:
            with suppress(PermissionError):
                part.unlink(missing_ok=True)

    def _remux(self, target: Path) -> None:
        with (
            av.open(file_url(self._place)) as grown,
            av.open(file_url(target), "w", format="mp4", options=_FINISHED) as finished,
        ):
            finished.metadata.update(self._metadata)
            stream = finished.add_stream_from_template(grown.streams.video[0])
            for packet in grown.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    finished.mux(packet)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def put_in_place(finished: Path, path: Path) -> None:
    """Let a file take the place of another, which someone may be reading; OSError leaves that as it was.

    Windows refuses to replace a file that is read. It lets its name be changed, if the reader allows that.
    """
    with suppress(PermissionError):
        os.replace(finished, path)
        return
    aside = unused_name(path, ".old")
    os.replace(path, aside)
    try:
        os.replace(finished, path)
    except OSError:
        os.replace(aside, path)
        raise
    with suppress(PermissionError):
        aside.unlink()


def unused_name(path: Path, ending: str) -> Path:
    """Beside a file, a name that no file has: `v.mp4.part`, or `v.mp4.1.part` where that is taken."""
    name = path.with_name(path.name + ending)
    numbers = count(1)
    while os.path.lexists(name):
        name = path.with_name(f"{path.name}.{next(numbers)}{ending}")
    return name


def file_url(path: str | Path) -> str:
    """A path as the muxers take it, whatever characters are in it."""
    return f"file:{path}"


def fragment(packets: Sequence[av.Packet], template: av.VideoStream, number: int) -> bytes:
    """The boxes moof and mdat of encoded frames that follow each other; `number` counts from 1."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=_GROWING | {"fragment_index": str(number)}) as muxer:
        stream = muxer.add_stream_from_template(template)
        muxer.start_encoding()
        begin = buffer.tell()
        for packet in packets:
            packet.stream = stream
            muxer.mux(packet)
    return buffer.getvalue()[begin:]


def whole_bytes(file: BinaryIO, start: int) -> int:
    """Where the last box ends that is wholly in a growing file, from the box at `start` on."""
    size = file.seek(0, os.SEEK_END)
    for end in _box_ends(file, start, size):
        start = end
    return start


def _box_ends(file: BinaryIO, start: int, size: int) -> Iterator[int]:
    while start + BOX_HEADER_BYTES <= size:
        file.seek(start)
        header = file.read(BOX_HEADER_BYTES)
        length = int.from_bytes(header[: TYPE_BYTES.start], "big")
        start += length
        if header[TYPE_BYTES] == PENDING or length < BOX_HEADER_BYTES or start > size:
            return
        yield start


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a VideoWriter put into the file; ValueError if there are none."""
    try:
        with av.open(file_url(path)) as container:
            text = container.metadata.get(METADATA_KEY)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error})") from error
    if text is None:
        raise ValueError(f"{path} carries no LongLive settings; only videos written by LongLive do")
    return json.loads(text)
