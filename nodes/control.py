"""LongLiveControl: what a stream follows by VACE, with the inputs of the stock WanVaceToVideo."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..longlive_core.control import Control
from ..longlive_core.footage import CROP, PIECE_FRAMES, fitted
from ..longlive_core.source import ReadAgain
from . import host
from .footage import AnyFootage, footage_of
from .io_types import CATEGORY, ControlType, found_by


@dataclass(frozen=True)
class ControlChoice:
    """What a LONGLIVE_CONTROL is: footage, masks [F, H, W], references [R, H, W, 3], each or None."""

    footage: AnyFootage | None
    masks: Tensor | None
    references: Tensor | None
    strength: float

    def control(self, width: int, height: int, notes: list[str]) -> Control:
        """For a Request."""
        footage, masks = self.footage, self.masks
        frames = footage and ReadAgain(lambda: footage.frames(width, height, CROP, notes))
        if masks is not None:
            pieces = ReadAgain(lambda: fitted_masks(masks, width, height))
            masks = next(iter(pieces)) if len(masks) == 1 else pieces  # one holds for all frames
        return Control(frames, masks, [] if self.references is None else [*self.references], self.strength)

    def facts(self) -> dict[str, Any]:
        """For a video's settings."""
        facts = self.footage.facts() if self.footage else {}
        return facts | ({} if self.masks is None else {"masks": len(self.masks)})


def fitted_masks(masks: Tensor, width: int, height: int) -> Iterator[Tensor]:
    """Pieces of masks [F, height, width] that cover the frame, cropped to the centre."""
    for piece in masks.split(PIECE_FRAMES):
        yield fitted(piece[..., None], width, height)[..., 0]


class LongLiveControl(io.ComfyNode):
    """Control for LongLive: Stream."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveControl",
            display_name="LongLive: Control",
            category=CATEGORY,
            **found_by(
                "vace, controlnet, depth, pose, scribble, inpaint, outpaint, video control, "
                "reference to video, wan"
            ),
            description=(
                "What the video of LongLive: Stream follows: depth, pose or scribbles as frames, footage "
                "with masks, reference images. The model needs VACE: choose its file in LongLive: Load Model."
            ),
            inputs=[
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    round=0.01,
                    tooltip="How much the control counts. 1: as VACE was trained. 0: not at all.",
                ),
                io.MultiType.Input(
                    "control_video",
                    types=[io.Video, io.Image],
                    optional=True,
                    tooltip=(
                        "Depth, pose, scribbles or footage: a VIDEO, or an IMAGE batch of 16 frames a "
                        "second. Scaled to cover the frame. Beyond its end everything is made."
                    ),
                ),
                io.Mask.Input(
                    "control_masks",
                    optional=True,
                    tooltip=(
                        "Where to make (1) and where to keep control_video (0). One mask holds for all "
                        "frames; without masks all is made."
                    ),
                ),
                io.Image.Input(
                    "reference_image",
                    optional=True,
                    tooltip=(
                        "What subject or place look like; a batch is several images. Expect a weak likeness."
                    ),
                ),
            ],
            outputs=[ControlType.Output(display_name="control", tooltip="Goes into LongLive: Stream.")],
        )

    @classmethod
    @host.plain_errors()
    def execute(cls, strength: float, control_video=None, control_masks=None, reference_image=None):
        if control_video is None and control_masks is None and reference_image is None:
            raise ValueError("nothing to follow; connect control_video, control_masks or reference_image")
        footage = None if control_video is None else footage_of(control_video)
        masks = None if control_masks is None else control_masks.reshape(-1, *control_masks.shape[-2:])
        return io.NodeOutput(ControlChoice(footage, masks, reference_image, strength))
