"""Attention for Hopper GPUs, divided so that all multiprocessors finish together.

cuDNN's kernel computes tiles: 128 queries of one head against all keys, one multiprocessor each. At 832x480
there are 37 x 12 tiles for the 132 multiprocessors of an H100: they fill 3.4 rounds and take the time of 4.
So the tiles of full rounds are computed as usual, and the rest are cut along the keys into parts that fill a
short round; parts are merged by their log-sum-exp, which is exact (Dao et al., Flash-Decoding, 2023).
Gain on that H100: 0.99 -> 0.90 ms a layer, 6 % of a block (benchmarks/README.md).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128  # queries that cuDNN's kernel for head dim 128 takes at a time
MAX_PARTS = 16
MERGE_ROUNDS = 0.01  # what a part costs besides its own work, in rounds of tiles
HALVES = (torch.bfloat16, torch.float16)


class Split(NamedTuple):
    """The first `rows` queries are computed whole, the others against keys cut into `parts`."""

    rows: int
    parts: int


def split(queries: int, keys: int, heads: int, multiprocessors: int) -> Split | None:
    """How to divide the work of one sequence; None if cutting it gains nothing."""
    tiles = -(-queries // TILE)
    full = tiles * heads // multiprocessors * multiprocessors // heads  # tiles of a head in full rounds
    left = (tiles - full) * heads
    costs = {
        parts: -(-left * parts // multiprocessors) / parts + MERGE_ROUNDS * parts
        for parts in range(2, MAX_PARTS + 1)
        if keys % parts == 0
    }
    if not full or not left or not costs:
        return None
    parts = min(costs, key=costs.get)
    rounds_before = -(-full * heads // multiprocessors)
    gains = rounds_before + costs[parts] < -(-tiles * heads // multiprocessors)
    return Split(full * TILE, parts) if gains else None


class HopperAttention:
    """attend(q, k, v) for one GPU; whatever its kernel does not take goes to torch's own attention."""

    def __init__(self, multiprocessors: int):
        self._multiprocessors = multiprocessors

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q [B, L, N, D] on k, v [B, M, N, D] -> [B, L, N, D]."""
        parts = None
        if len(q) == 1 and mask is None and q.dtype in HALVES:
            parts = split(q.shape[1], k.shape[1], q.shape[2], self._multiprocessors)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if parts is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        return in_parts(q, k, v, *parts)


def in_parts(q: Tensor, k: Tensor, v: Tensor, rows: int, parts: int) -> Tensor:
    """q [1, N, L, D] on k, v [1, N, M, D] -> [1, L, N, D]; queries from `rows` on see the keys in parts."""
    whole, _ = with_sums(q[:, :, :rows], k, v)
    k, v = (t.unflatten(2, (parts, -1))[0].transpose(0, 1) for t in (k, v))
    outs, sums = with_sums(q[:, :, rows:].expand(parts, -1, -1, -1), k, v)
    sums = sums.view(outs.shape[:3])
    weights = (sums - sums.amax(dim=0)).exp().unsqueeze(-1)
    merged = ((outs * weights).sum(dim=0) / weights.sum(dim=0)).to(outs.dtype).unsqueeze(0)
    return torch.cat((whole.transpose(1, 2), merged.transpose(1, 2)), dim=1)


def with_sums(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's attention and the log-sum-exp of each query, which torch's public attention does not return."""
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
