"""Control -> the context of VACE, 96 channels, block after block (arXiv 2503.07598, section 3).

16 channels are the latents of what a mask keeps, 16 of what it leaves to be made, each a video of its own
with gray in place of the other; 64 are the mask's 8x8 pixels of each latent cell. A mask is 1 where to make.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..geometry import SPACE_STRIDE, num_frames
from .streaming import RGB, Encoder, StreamingEncoder

GRAY, WHITE = 0.5, 1.0
SETTLED = 21  # latent frames after which those of a gray video are taken to stay the same


class ContextEncoder:
    """`push(frames, masks)` gives the context of the frames: 9 for the first block of three, then 12."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._streams = StreamingEncoder(encoder), StreamingEncoder(encoder)  # what is kept, what is made
        self._latents: list[Tensor] = []  # of these, for a second try

    @torch.no_grad()
    def push(self, frames: Tensor, masks: Tensor, opens_scene: bool = False) -> Tensor:
        """Frames [B, F, 3, 8H, 8W] and masks [B, F, 1, 8H, 8W], in [0, 1] -> context [B, 96, T, H, W].

        F is 4T, at a scene's start 4T - 3. After a push that failed, the same one gives what it would have.
        """
        is_made = masks > 0.5
        for stream, is_gray in [*zip(self._streams, (is_made, ~is_made), strict=True)][len(self._latents) :]:
            self._latents.append(stream.push(frames.where(~is_gray, GRAY), opens_scene))
        (kept, made), self._latents = self._latents, []
        return torch.cat((kept, made, mask_channels(masks, kept.shape[2]).to(kept)), dim=1)

    @torch.no_grad()
    def of_given(self, latents: Tensor) -> Tensor:
        """The context [B, 96, T, H, W] of clean latents [B, 16, T, H, W] that are given."""
        batch, _, count, *cells = latents.shape
        frames = num_frames(min(count, SETTLED))
        gray = latents.new_full((batch, frames, RGB, *(SPACE_STRIDE * cell for cell in cells)), GRAY)
        made = self._encoder.encode_next(gray)[0].to(latents)
        made = torch.cat((made, made[:, :, -1:].expand(-1, -1, count - made.shape[2], -1, -1)), dim=2)
        return torch.cat((latents, made, no_mask(latents)), dim=1)

    @torch.no_grad()
    def of_references(self, images: Iterable[Tensor], height: int, width: int) -> Tensor:
        """Images [H, W, 3] in [0, 1] of any size -> context [1, 96, R, height / 8, width / 8]."""
        fitted = (fit_on_white(image.movedim(-1, 0)[None], height, width) for image in images)
        latents = torch.cat([self._encoder.encode_next(image[:, None])[0] for image in fitted], dim=2)
        return torch.cat((latents, torch.zeros_like(latents), no_mask(latents)), dim=1)


def no_mask(latents: Tensor) -> Tensor:
    """The mask channels [B, 64, T, H, W] of latents that are not to be made."""
    batch, _, *sizes = latents.shape
    return latents.new_zeros(batch, SPACE_STRIDE**2, *sizes)


def mask_channels(masks: Tensor, count: int) -> Tensor:
    """Masks [B, F, 1, 8H, 8W] -> [B, 64, count, H, W]: each latent frame takes the one in its middle."""
    total = masks.shape[1]
    chosen = masks[:, [(2 * index + 1) * total // (2 * count) for index in range(count)], 0]
    return rearrange(chosen, "b t (h p) (w q) -> b (p q) t h w", p=SPACE_STRIDE, q=SPACE_STRIDE)


def fit_on_white(image: Tensor, height: int, width: int) -> Tensor:
    """An image [1, 3, H, W], scaled to fit, in the middle of a white one [1, 3, height, width]."""
    share = min(height / image.shape[2], width / image.shape[3])
    size = [max(1, int(share * side)) for side in image.shape[2:]]
    fitted = F.interpolate(image, size, mode="bilinear", align_corners=False)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    white = image.new_full((1, 3, height, width), WHITE)
    white[:, :, top : top + size[0], left : left + size[1]] = fitted
    return white
