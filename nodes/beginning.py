"""What a stream has next to its prompts: images, footage, control, an earlier video; checked and encoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..longlive_core.config import Preset
from ..longlive_core.footage import CROP, MOST_GIVEN_FRAMES, fitted, newest, size_like
from ..longlive_core.geometry import PIXEL_MULTIPLE, SPACE_STRIDE
from ..longlive_core.schedule.schedule import PromptSchedule
from ..longlive_core.vae.streaming import RGB
from .control import ControlChoice
from .footage import CONTINUE, TRANSFORM, Images, SourceChoice
from .io_types import StreamModel
from .vaes import NO_ENCODER, StreamVae

NO_VACE = (
    "control needs VACE, and this model has none; choose its file as vace in LongLive: Load Model "
    "(wan2.1_vace_1.3B_fp16.safetensors), or disconnect control"
)


@dataclass(frozen=True)
class Beginning:
    """Inputs of a stream, each if it is connected; ValueError for those that exclude each other.

    `notes` takes sentences on them for the user, also while the video is made.
    """

    start_image: Tensor | None = None
    source: SourceChoice | None = None
    control: ControlChoice | None = None
    continue_from: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        named = {
            "start_image": self.start_image is not None,
            "source": self.source is not None,
            "continue_from": self.continue_from is not None,
        }
        there = [name for name, is_there in named.items() if is_there]
        if len(there) > 1 and not (there == ["start_image", "source"] and self.transformed):
            reason = "both say how the video begins; disconnect one of them"
            if self.source and self.continue_from is not None:
                reason = "a video that goes on from a latent has no footage; disconnect one of them"
            raise ValueError(f"{' and '.join(there[:2])} exclude each other: {reason}")
        if self.start_image is not None and not len(self.start_image):
            raise ValueError("start_image has no images; connect one, such as of Load Image")

    def check(self, model: StreamModel, vae: StreamVae, schedule: PromptSchedule) -> None:
        """Raise ValueError where the VAE cannot encode what is needed, or the model has no VACE."""
        is_controlled = self.control and self.control.strength
        if is_controlled and not model.has_vace:
            raise ValueError(NO_VACE)
        is_encoding = self.start_image is not None or self.source or is_controlled or schedule.images
        if is_encoding and not vae.has_encoder:
            raise ValueError(NO_ENCODER)

    @property
    def transformed(self) -> SourceChoice | None:
        """The footage to transform."""
        return self.source if self.source and self.source.use == TRANSFORM else None

    @property
    def continued(self) -> SourceChoice | None:
        """The footage to go on from."""
        return self.source if self.source and self.source.use == CONTINUE else None

    def size(self, width: int, height: int, preset: Preset) -> tuple[int | None, int | None]:
        """Width and height, where 0 follows the image or the footage; None where both follow the model.

        One side of 0 follows the other, in the proportions of what is connected, else of the model.
        """
        shape = self._shape()
        wide, tall = shape or self._earlier_shape() or (preset.width, preset.height)
        if width and height:
            return width, height
        if width or height:
            sides = width or side_like(height * wide / tall), height or side_like(width * tall / wide)
        elif shape is None:
            return None, None
        else:
            sides = size_like(wide, tall, preset.width * preset.height)
        self.notes.append(f"the video is {sides[0]}x{sides[1]}, in the proportions of {wide}x{tall}")
        return sides

    def _shape(self) -> tuple[int, int] | None:
        """Width and height of what the video is made from."""
        if self.start_image is not None:
            return Images(self.start_image).size
        return self.source.footage.size if self.source else None

    def _earlier_shape(self) -> tuple[int, int] | None:
        """Width and height of the earlier video."""
        if self.continue_from is None:
            return None
        tall, wide = self.continue_from["samples"].shape[-2:]
        return wide * SPACE_STRIDE, tall * SPACE_STRIDE

    def first_frames(self, width: int, height: int) -> Tensor | None:
        """What the video begins with, [F, height, width, 3]: the start image, or several."""
        if self.start_image is None:
            return None
        if (more := len(self.start_image)) > MOST_GIVEN_FRAMES:
            self.notes.append(
                f"of {more} start images the first {MOST_GIVEN_FRAMES} are used; connect more of them to "
                "LongLive: Source"
            )
        return fitted(self.start_image[:MOST_GIVEN_FRAMES, ..., :RGB], width, height)

    def earlier(self, encode: Callable[[Tensor], Tensor], window: int | None, *size: int) -> Any:
        """The LATENT that the video goes on from, if any; of footage, what `encode` makes of its end."""
        if not self.continued:
            return self.continue_from
        frames = newest(self.continued.frames(*size, self.notes), window)
        return {"samples": encode(frames)}

    def made(self, width: int, height: int) -> dict[str, Any]:
        """Keywords of a Request: source, control, and what files and images they are from."""
        made, size = {}, (width, height, self.notes)
        if self.transformed:
            made["source"] = self.transformed.source(*size)
        if self.control:
            made["control"] = self.control.control(*size)
        facts = {}
        if self.start_image is not None:
            facts["start_image"] = Images(self.start_image).facts() | {"fit": CROP}
        for name, choice in (("source", self.source), ("control", self.control)):
            facts |= {name: choice.facts()} if choice else {}
        return made | ({"made_from": facts} if facts else {})


def side_like(pixels: float) -> int:
    """The nearest multiple of 16, at least one."""
    return max(1, round(pixels / PIXEL_MULTIPLE)) * PIXEL_MULTIPLE
