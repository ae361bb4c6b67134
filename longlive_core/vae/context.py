"""Control -> the context of VACE, 96 channels, block after block (arXiv 2503.07598, section 3).

16 channels are the latents of what a mask keeps, 16 of what it leaves to be made, each a video of its own with
gray in place of the other; 64 are the mask's 8x8 pixels of each latent cell. A mask is 1 where to make.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..geometry import SPACE_STRIDE, TIME_STRIDE
from .autoencoder import WanAutoencoder
from .tiny import TinyAutoencoder

GRAY, WHITE = 0.5, 1.0
Encode = Callable[[Tensor, Any], tuple[Tensor, Any]]  # frames [B, F, 3, 8H, 8W], past -> latents, new past


def encoded(vae: WanAutoencoder | TinyAutoencoder, frames: Tensor, past: Any) -> tuple[Tensor, Any]:
    """Frames [B, F, 3, 8H, 8W] in [0, 1] and the past -> (normalised latents [B, 16, T, H, W], new past).

    Without a past F is 4T - 3, else 4T.
    """
    if isinstance(vae, TinyAutoencoder):  # looks at four frames, and never back
        if past is None:
            return vae.encode(frames), []
        return vae.encode(torch.cat((frames[:, :1], frames), dim=1))[:, :, 1:], []
    pieces = [] if past else [frames[:, :1]]
    pieces += frames[:, len(pieces) :].split(TIME_STRIDE, dim=1) if frames.shape[1] > len(pieces) else []
    moments = []
    for piece in pieces:
        video = (piece * 2 - 1).transpose(1, 2).to(vae.decoder.stem.weight)
        made, past = vae.encoder(video, past)
        moments.append(made)
    means, _ = torch.cat(moments, dim=2).float().chunk(2, dim=1)
    return vae.space.normalised(means), past


class ContextEncoder:
    """`push(frames, masks)` gives the context of the frames: 9 for the first block of three, then 12."""

    def __init__(self, encode: Encode):
        self._encode = encode
        self.pasts: list[Any] = [None, None]  # of what is kept, of what is made

    @torch.no_grad()
    def push(self, frames: Tensor, masks: Tensor, opens_scene: bool = False) -> Tensor:
        """Frames [B, F, 3, 8H, 8W] and masks [B, F, 1, 8H, 8W], in [0, 1] -> context [B, 96, T, H, W].

        Where a new scene begins with 12, its first latent frame is of the last of four: the decoder shows it
        four times. RuntimeError after an error, which has used the past up.
        """
        if opens_scene or self.pasts[0] is None:
            first = (frames.shape[1] - 1) % TIME_STRIDE
            frames, masks, self.pasts = frames[:, first:], masks[:, first:], [None, None]
        is_made = masks > 0.5
        videos = frames.where(~is_made, GRAY), frames.where(is_made, GRAY)
        encoded = [
            self._encode(video, past if past is None else [*past])
            for video, past in zip(videos, self.pasts, strict=True)
        ]
        (kept, _), (made, _) = encoded
        self.pasts = [past for _, past in encoded]
        return torch.cat((kept, made, mask_channels(masks, kept.shape[2]).to(kept)), dim=1)

    def of_given(self, latents: Tensor) -> Tensor:
        """The context [B, 96, T, H, W] of clean latents [B, 16, T, H, W] that are given."""
        batch, _, count, *cells = latents.shape
        size = [SPACE_STRIDE * cell for cell in cells]
        gray = latents.new_full((batch, TIME_STRIDE * (count - 1) + 1, 3, *size), GRAY)
        return torch.cat((latents, self._encode(gray, None)[0].to(latents), no_mask(latents)), dim=1)

    @torch.no_grad()
    def of_references(self, images: Iterable[Tensor], height: int, width: int) -> Tensor:
        """Images [H, W, 3] in [0, 1] of any size -> context [1, 96, R, height / 8, width / 8]."""
        fitted = (fit_on_white(image.movedim(-1, 0)[None], height, width) for image in images)
        latents = torch.cat([self._encode(image[:, None], None)[0] for image in fitted], dim=2)
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
