"""LongLiveSource: footage that a stream transforms or goes on from, as VIDEO or IMAGE."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import InputImpl, io
from torch import Tensor

from ..longlive_core.footage import CROP, FITS, PIECE_FRAMES, Footage, fitted
from ..longlive_core.geometry import FRAME_RATE
from ..longlive_core.source import DEFAULT_STRENGTH, ReadAgain, Source
from ..longlive_core.vae.streaming import RGB
from . import host
from .io_types import CATEGORY, SourceType, found_by

TRANSFORM, CONTINUE = USES = ("transform", "continue")


@dataclass(frozen=True)
class Images:
    """An IMAGE batch [F, H, W, 3 or 4] as footage, 16 frames a second."""

    images: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.images.shape[2], self.images.shape[1]

    @property
    def num_frames(self) -> int:
        return len(self.images)

    def frames(self, width: int, height: int, fit: str, _notes: list[str]) -> Iterator[Tensor]:
        """Pieces of frames [F, height, width, 3]."""
        for piece in self.images[..., :RGB].split(PIECE_FRAMES):
            yield fitted(piece, width, height, fit)

    def facts(self) -> dict[str, Any]:
        """What a video's settings say of it; the graph in its file has the rest."""
        return {"frames": self.num_frames, "size": list(self.size)}


@dataclass(frozen=True)
class File:
    """A video file as footage, from `start` seconds on, `num_frames` long. It is read when used."""

    path: Path
    start: float
    num_frames: int
    size: tuple[int, int]

    def frames(self, width: int, height: int, fit: str, notes: list[str]) -> Iterator[Tensor]:
        """As of Images; what is to be known of the file is added to the notes."""
        left = self.num_frames
        for piece in Footage(self.path, self.start, notes).frames(width, height, fit):
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    def facts(self) -> dict[str, Any]:
        """Name, SHA-256 and start."""
        return Footage(self.path, self.start).facts()


AnyFootage = Images | File


def footage_of(video: Any, start: float = 0.0) -> AnyFootage:
    """A VIDEO or an IMAGE batch from `start` seconds on; ValueError where nothing is left of it."""
    if isinstance(video, Tensor):
        return images_of(video, FRAME_RATE, start)
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    if not isinstance(source, str):
        parts = video.get_components()
        return images_of(parts.images, float(parts.frame_rate), start)
    skipped, lasting = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0, 0)
    file = Footage(Path(source), skipped + start)
    seconds = min(file.seconds, lasting - start) if lasting else file.seconds
    if seconds <= 0 and not file.is_still:
        raise ValueError(f"the footage is {lasting:.1f} s long; it cannot begin at {start:g} s")
    return File(file.path, file.start, max(1, round(seconds * FRAME_RATE)), file.size)


def images_of(images: Tensor, rate: float, start: float) -> Images:
    """Images of that rate as seen 16 times a second, from `start` seconds on."""
    seconds = len(images) / rate
    if not len(images):
        raise ValueError("the footage has no frames; connect a video or images")
    if start >= seconds:
        raise ValueError(f"the footage is {seconds:.1f} s long; it cannot begin at {start:g} s")
    if rate != FRAME_RATE:
        shown = torch.arange(max(1, round(seconds * FRAME_RATE))) * rate / FRAME_RATE
        images = images[shown.long().clamp(max=len(images) - 1)]
    return Images(images[round(start * FRAME_RATE) :])


@dataclass(frozen=True)
class SourceChoice:
    """What a LONGLIVE_SOURCE is: footage, how it is used, and how it is fitted into a video."""

    footage: AnyFootage
    use: str
    strength: float
    fit: str

    def frames(self, width: int, height: int, notes: list[str]) -> Iterator[Tensor]:
        """Pieces of its frames [F, height, width, 3], from the beginning."""
        return self.footage.frames(width, height, self.fit, notes)

    def source(self, width: int, height: int, notes: list[str]) -> Source:
        """For a Request."""
        frames = ReadAgain(lambda: self.frames(width, height, notes))
        return Source(frames, self.strength, length=self.footage.num_frames)

    def facts(self) -> dict[str, Any]:
        """For a video's settings."""
        return self.footage.facts() | {"fit": self.fit}


SOURCE_INPUTS = [
    io.MultiType.Input(
        "video",
        types=[io.Video, io.Image],
        tooltip=(
            "A VIDEO, such as of Load Video, seen 16 times a second, or an IMAGE batch, taken as "
            "16 frames a second. For its sound use audio of LongLive: Stream."
        ),
    ),
    io.Combo.Input(
        "use",
        options=list(USES),
        default=TRANSFORM,
        tooltip=(
            "transform: each block is made from the footage at this place, as the prompts say. "
            "continue: the video goes on where the footage ends; its newest 45 frames count."
        ),
    ),
    io.Float.Input(
        "strength",
        default=DEFAULT_STRENGTH,
        min=0.05,
        max=1.0,
        step=0.05,
        round=0.01,
        tooltip=(
            "Of transform. 0.25: places and motion stay. 0.35: any look may change, most places "
            "stay. 0.5: places are lost, 1: all is. Measured with Mini; on large models others "
            "begin at 0.7."
        ),
    ),
    io.Combo.Input(
        "fit",
        options=list(FITS),
        default=CROP,
        tooltip=(
            "Into the size of the video. crop: covered, the middle counts. pad: all of it, on "
            "black. stretch: proportions are ignored."
        ),
    ),
    io.Float.Input(
        "start",
        default=0.0,
        min=0.0,
        max=86400.0,
        step=0.5,
        round=0.01,
        tooltip="Seconds of the footage that are skipped.",
    ),
]


class LongLiveSource(io.ComfyNode):
    """Footage for LongLive: Stream."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSource",
            display_name="LongLive: Source",
            category=CATEGORY,
            **found_by(
                "video to video, v2v, restyle video, transform video, extend video, continue footage, wan"
            ),
            description=(
                "Footage for LongLive: Stream, of any length: a video that it transforms, or one that it "
                "goes on from. A file is read and encoded while the video is made."
            ),
            inputs=SOURCE_INPUTS,
            outputs=[SourceType.Output(display_name="source", tooltip="Goes into LongLive: Stream.")],
        )

    @classmethod
    @host.plain_errors()
    def execute(cls, video, use: str, strength: float, fit: str, start: float) -> io.NodeOutput:
        return io.NodeOutput(SourceChoice(footage_of(video, start), use, strength, fit))
