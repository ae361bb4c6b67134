"""A decoder that decodes tile by tile and blends the overlaps: less memory, the same face.

Each tile has a past of its own, so streaming stays exact within it. Knows no decoder's insides.
"""

from itertools import product
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import SPACE_STRIDE
from .streaming import Decoder

UNSEEN = 3 / 8  # share of an overlap at a tile's edge that is decoded as context and not shown
TiledPast = list[list[Tensor]]  # the past of every tile, row by row
TILE_PIXELS, OVERLAP_PIXELS = 256, 64


class Span(NamedTuple):
    """One tile along one axis: where its latents begin and the weight of each of its pixels."""

    first: int
    weights: Tensor

    @property
    def latents(self) -> slice:
        return slice(self.first, self.first + len(self.weights) // SPACE_STRIDE)

    @property
    def pixels(self) -> slice:
        return slice(self.first * SPACE_STRIDE, self.first * SPACE_STRIDE + len(self.weights))


class TiledDecoder:
    """Any decoder, over tiles of `tile_pixels` that share at least `overlap_pixels` with their neighbours.

    Both must be multiples of 8, the overlap the smaller one, else ValueError. A video that fits in one tile
    is the same bit for bit. The pasts of the tiles wait on `past_device`, if one is given, such as the CPU.
    """

    def __init__(
        self,
        decoder: Decoder,
        tile_pixels: int = TILE_PIXELS,
        overlap_pixels: int = OVERLAP_PIXELS,
        past_device: torch.device | str | None = None,
    ):
        is_uneven = tile_pixels % SPACE_STRIDE or overlap_pixels % SPACE_STRIDE
        if is_uneven or not 0 <= overlap_pixels < tile_pixels:
            raise ValueError(
                f"tiles of {tile_pixels} pixels that overlap by {overlap_pixels} are not possible: "
                f"both must be multiples of {SPACE_STRIDE}, the overlap the smaller one; try 256 and 64"
            )
        self._decoder = decoder
        self._tile, self._overlap = tile_pixels // SPACE_STRIDE, overlap_pixels // SPACE_STRIDE
        self._past_device = past_device

    def decode(self, latents: Tensor, past: TiledPast | None = None) -> tuple[Tensor, TiledPast]:
        """Latents [B, C, T, H, W] and the past -> frames [B, F, 3, 8H, 8W] in [0, 1], new past."""
        height, width = latents.shape[-2:]
        tiles = list(product(*(spans(side, self._tile, self._overlap) for side in (height, width))))
        frames, news = None, []
        for (row, column), old in zip(tiles, past or [None] * len(tiles), strict=True):
            tile, new = self._decode_tile(latents[..., row.latents, column.latents], old)
            news.append(new)
            if len(tiles) == 1:
                return tile, news
            if frames is None:
                frames = tile.new_zeros(*tile.shape[:3], height * SPACE_STRIDE, width * SPACE_STRIDE)
            weights = torch.outer(row.weights, column.weights).to(tile)
            frames[..., row.pixels, column.pixels] += tile * weights
        return frames.clamp_(0, 1), news

    def _decode_tile(self, latents: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if self._past_device is None:
            return self._decoder.decode(latents, past)
        past = past and [tensor.to(latents.device) for tensor in past]
        tile, new = self._decoder.decode(latents, past)
        return tile, [tensor.to(self._past_device) for tensor in new]


def num_tiles(height: int, width: int) -> int:
    """How many tiles of the usual size a TiledDecoder makes of latents so high and wide."""
    tile, overlap = TILE_PIXELS // SPACE_STRIDE, OVERLAP_PIXELS // SPACE_STRIDE
    return prod(len(spans(side, tile, overlap)) for side in (height, width))


def spans(size: int, tile: int, overlap: int) -> list[Span]:
    """Tiles along an axis of `size` latents, evenly spread; their weights sum to 1 at every pixel."""
    tile = min(tile, size)
    num_steps = ceil((size - tile) / (tile - overlap)) if tile < size else 0
    firsts = [round(step * (size - tile) / max(1, num_steps)) for step in range(num_steps + 1)]
    found = [Span(first, _weights(tile, overlap, first > 0, first + tile < size)) for first in firsts]
    total = torch.zeros(size * SPACE_STRIDE)
    for span in found:
        total[span.pixels] += span.weights
    return [Span(span.first, span.weights / total[span.pixels]) for span in found]


def _weights(tile: int, overlap: int, has_left: bool, has_right: bool) -> Tensor:
    """How much each pixel of a tile counts: from 0 to 1 over the middle of the overlap with a neighbour."""
    position = torch.arange(tile * SPACE_STRIDE) + 0.5
    unseen, blended = UNSEEN * overlap * SPACE_STRIDE, (1 - 2 * UNSEEN) * overlap * SPACE_STRIDE
    rise = ((position - unseen) / max(blended, 1)).clamp(0, 1)
    flat = torch.ones_like(rise)
    return torch.minimum(rise if has_left else flat, rise.flip(0) if has_right else flat)
