"""Attention dealt out so that all multiprocessors of a card finish together.

A kernel gives a multiprocessor one tile after another: some queries of one head, against all keys. The last
round of tiles leaves most of the card idle: at 832x480 there are 37 x 12 for the 132 multiprocessors of an
H100, which fill 3.4 rounds and take the time of four. So the tiles of the full rounds are computed as ever,
and those that are left are cut along the keys, in parts that fill a short round; the parts are merged by
their log-sum-exp, which is exact (Dao et al., Flash-Decoding, 2023). On that H100 0.90 ms in place of 0.99.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..compiling import Compiled

TILE = 128  # queries that torch's kernels for head dim 128 take at a time
MAX_PARTS = 16
MERGE_ROUNDS = 0.01  # what a part costs beside its own work, in rounds of tiles

WithSums = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # q, k, v -> out, log-sum-exp [B, N, L]


class Deal(NamedTuple):
    """The first `rows` queries as they are; for the others the keys in so many `parts`."""

    rows: int
    parts: int


@cache
def deal(queries: int, keys: int, heads: int, multiprocessors: int) -> Deal | None:
    """How to share out the work of one sequence; None if cutting it gains nothing."""
    tiles = -(-queries // TILE)
    full = tiles * heads // multiprocessors * multiprocessors // heads  # tiles of a head in full rounds
    rounds = -(-tiles * heads // multiprocessors)
    left = (tiles - full) * heads
    costs = {
        parts: -(-left * parts // multiprocessors) / parts + MERGE_ROUNDS * parts
        for parts in range(2, MAX_PARTS + 1)
        if keys % parts == 0
    }
    if not full or not left or not costs:
        return None
    parts = min(costs, key=costs.get)
    before = -(-full * heads // multiprocessors)
    return Deal(full * TILE, parts) if before + costs[parts] < rounds else None


class Even:
    """attend(q, k, v) by a kernel that also returns the log-sum-exp of every query."""

    def __init__(self, kernel: WithSums, join: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None):
        self._kernel = kernel
        self._join = join or Compiled(joined)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q [B, L, N, D] on k, v [B, M, N, D] -> [B, L, N, D]."""
        dealt = deal(q.shape[1], k.shape[1], q.shape[2], multiprocessors(q.device)) if len(q) == 1 else None
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if dealt is None:
            return self._kernel(q, k, v)[0].transpose(1, 2)
        whole, _ = self._kernel(q[:, :, : dealt.rows], k, v)
        k, v = (t.unflatten(2, (dealt.parts, -1))[0].transpose(0, 1) for t in (k, v))
        outs, sums = self._kernel(q[:, :, dealt.rows :].expand(dealt.parts, -1, -1, -1), k, v)
        return self._join(whole, outs, sums.view(outs.shape[:3]))


def joined(whole: Tensor, outs: Tensor, sums: Tensor) -> Tensor:
    """Whole results [1, N, L, D], then those merged of parts [P, N, M, D] with their sums [P, N, M]."""
    weights = (sums - sums.amax(dim=0)).exp().unsqueeze(-1)
    merged = ((outs * weights).sum(dim=0) / weights.sum(dim=0)).to(outs.dtype).unsqueeze(0)
    return torch.cat((whole.transpose(1, 2), merged.transpose(1, 2)), dim=1)  # -> [1, L + M, N, D]


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a card; 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
