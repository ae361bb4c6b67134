"""Control of a video by VACE: frames, masks and references, read and encoded while the video is made."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .geometry import SPACE_STRIDE
from .source import NO_ENCODER, BlockByBlock, FrameReader
from .vae.context import GRAY, ContextEncoder
from .vae.streaming import RGB, Encoder

MAKE = 1.0
NO_VACE = "control needs the layers of VACE; load the model with vace=FILE (longlive download vace-1.3b)"


@dataclass(frozen=True)
class Control:
    """What a video follows: depth, pose, scribble or flow as `frames`, footage with `masks`, `references`.

    `frames` [F, H, W, 3] and `masks` [F, H, W] in [0, 1], at 16 a second and of the video's size, or pieces
    of such that are read while it is made. A mask is 1 where to make and 0 where to keep; one mask holds for
    all frames, none is 1 everywhere. Where frames are missing all is made. `references` are images
    [H, W, 3] of any size. At `scale` 1 hints count as they were trained, up to 1.5 may be needed; 0 is none.
    """

    frames: Tensor | Iterable[Tensor] | None = field(default=None, repr=False)
    masks: Tensor | Iterable[Tensor] | None = field(default=None, repr=False)
    references: Sequence[Tensor] = field(default=(), repr=False)
    scale: float = 1.0

    def settings(self) -> dict[str, float]:
        """For a video's metadata."""
        return {"scale": self.scale, "references": len(self.references)}


class ControlStream(BlockByBlock):
    """The context of control, for block after block: called with each block in order."""

    def __init__(
        self,
        control: Control,
        encoder: Encoder | None,
        like: Tensor,
        begins: int,
        scene_block: int,
    ):
        """As of BlockByBlock; ValueError where there is no encoder."""
        if encoder is None:
            raise ValueError(NO_ENCODER)
        super().__init__(like, begins, scene_block)
        self._size = tuple(SPACE_STRIDE * side for side in like.shape[3:])
        self._encoder = ContextEncoder(encoder)
        frames = () if control.frames is None else control.frames
        masks = () if control.masks is None else as_frames(control.masks)
        self._readers = FrameReader(frames, self._size), FrameReader(masks, self._size)
        is_still = isinstance(control.masks, Tensor) and len(control.masks) == 1
        self._still = self._readers[1].take(0, 1) if is_still else None
        images = [image.to(like.device, torch.float32)[..., :RGB] for image in control.references]
        self.references = self._encoder.of_references(images, *self._size) if images else None

    def __call__(self, block: int, opens_scene: bool, given: Tensor | None = None) -> Tensor:
        """The context [1, 96, T, h, w] of a block that begins with clean latents `given` [B, C, T, h, w]."""
        context = self._encoded_at(block, opens_scene)
        if given is not None:
            context = torch.cat((self.of_given(given), context[:, :, given.shape[2] :]), dim=2)
        return context

    def of_given(self, latents: Tensor) -> Tensor:
        """The context [1, 96, T, h, w] of latents that are kept as they are."""
        return self._encoder.of_given(latents.to(self._like.device, torch.float32))

    def _encode(self, read: tuple[Tensor, Tensor], opens_scene: bool) -> Tensor:
        return self._encoder.push(*read, opens_scene)

    def _read(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Frames [1, F, 3, H, W] and masks [1, F, 1, H, W] of a block; gray, to be made, where none are."""
        frames, num_missing = self._taken(self._readers[0], first, end, GRAY)
        if self._still is None:
            masks, _ = self._taken(self._readers[1], first, end, MAKE)
        else:
            masks = self._still.repeat(len(frames), 1, 1, 1)
        masks[len(masks) - num_missing :] = MAKE
        return self._placed(frames), self._placed(masks)[:, :, :1]

    def _taken(self, reader: FrameReader, first: int, end: int, missing: float) -> tuple[Tensor, int]:
        """Frames [end - first, H, W, 3], and how many at their end are `missing`."""
        frames = reader.take(first, end)
        num_missing = min(end - first, max(0, end - reader.num_taken))
        if frames is None:
            frames = torch.empty(end - first, *self._size, RGB)
        frames[len(frames) - num_missing :] = missing
        return frames, num_missing


def as_frames(masks: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Masks [F, H, W] -> [F, H, W, 3], which a FrameReader takes."""
    for piece in [masks] if isinstance(masks, Tensor) else masks:
        yield piece[..., None].expand(*piece.shape, RGB)
