"""Frames -> an H.264 mp4 that grows while it is made, and the settings it carries. Knows nothing of models."""

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from .geometry import FRAME_RATE

METADATA_KEY = "longlive"
_GROWING = {"movflags": "frag_keyframe+empty_moov+default_base_moof+use_metadata_tags"}
_FINISHED = {"movflags": "faststart+use_metadata_tags"}
_ENCODER = {"crf": "16", "preset": "veryfast", "g": "12"}


class VideoWriter:
    """Appends frames to `path`: playable at any moment, an ordinary mp4 once closed.

    While growing, the file is fragmented, so that a full disk or a kill leaves what was written playable.
    """

    def __init__(self, path: str | Path, width: int, height: int, settings: dict[str, Any] | None = None):
        self.path = Path(path)
        self.num_frames = 0
        self._metadata = {METADATA_KEY: json.dumps(settings or {}, ensure_ascii=False)}
        self._container = av.open(str(self.path), "w", format="mp4", options=_GROWING)
        self._container.metadata.update(self._metadata)
        self._stream = self._container.add_stream("libx264", rate=FRAME_RATE, options=_ENCODER)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = Fraction(1, FRAME_RATE)

    def append(self, frames: np.ndarray) -> None:
        """Frames uint8 [F, H, W, 3]. Raises OSError when they cannot be written."""
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = self.num_frames
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1

    def close(self) -> None:
        """Write what the encoder still holds, then turn the file into an ordinary mp4."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
        finally:
            container.close()
        if self.num_frames:
            self._finish()

    def _finish(self) -> None:
        part = self.path.with_name(self.path.name + ".part")
        try:
            with av.open(str(self.path)) as grown, av.open(str(part), "w", format="mp4", options=_FINISHED) as out:
                out.metadata.update(self._metadata)
                stream = out.add_stream_from_template(grown.streams.video[0])
                for packet in grown.demux(video=0):
                    if packet.dts is not None:
                        packet.stream = stream
                        out.mux(packet)
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
