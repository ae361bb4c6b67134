"""Teacher forcing in one pass: clean blocks and noisy blocks side by side, each seeing what inference would.

A Layout lists the passes: which latents, at which positions, under which prompt, and the (at most four)
passes whose K and V each may attend to. The transformer is the one of inference; only the caches differ.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive_core.model.cache import LayerText, TextCache
from longlive_core.model.causal_wan import Hints
from longlive_core.model.layers import Modulation
from longlive_core.model.vace import Vace

from .episodes import BLOCK, Kind

SEEN = 4  # sink, two past blocks and the block itself: the window of 12 latent frames
DELAY_SHARE = 0.4
MAX_DELAY = 3


@dataclass(frozen=True)
class Pass:
    """One block as it goes through the transformer; `sees` are indices of passes, its own included.

    `written` are those whose K and V a rollout writes together: all of a recache, else the pass alone.
    """

    block: int
    prompt: int
    is_noisy: bool
    sees: tuple[int, ...]
    written: tuple[int, ...]


@dataclass
class Layout:
    """The passes of one training step, in order."""

    passes: list[Pass] = field(default_factory=list)

    def add(self, block: int, prompt: int, sees: list[int], is_noisy: bool = False) -> int:
        """Append a pass that sees those earlier passes and itself."""
        index = len(self.passes)
        self.passes.append(Pass(block, prompt, is_noisy, (*sees, index), (index,)))
        return index

    def add_together(self, blocks: list[int], prompt: int, sees: list[int]) -> list[int]:
        """Append clean passes that also see one another: a recache."""
        start = len(self.passes)
        indices = list(range(start, start + len(blocks)))
        self.passes += [Pass(b, prompt, False, (*sees, *indices), tuple(indices)) for b in blocks]
        return indices


def recache_at(switch: int, kind: Kind, rng: torch.Generator) -> int:
    """The block at which the prompt changes when the film does at `switch`: often some blocks earlier.

    That teaches to follow a prompt which the past still contradicts.
    """
    if torch.rand((), generator=rng) >= DELAY_SHARE:
        return switch
    delay = int(torch.randint(1, MAX_DELAY + 1, (1,), generator=rng))
    return max(switch - delay, SEEN if kind is Kind.FAR else 1)


def plan(recached: int, switch: int, kind: Kind, rng: torch.Generator, noisy: int) -> Layout:
    """A history, a recache at `recached`, what follows; noisy targets spread over what the prompts describe.

    Prompt 0 is the sink's, 1 the one before the change, 2 the one after it; the film changes at `switch`.
    """
    layout, committed, targets = Layout(), {}, []
    for block in range(recached):
        committed[block] = layout.add(block, 1 if block else 0, _window(committed, block))
    for block in range(kind.first_asked, recached):
        targets.append((block, 1, _window(committed, block)))
    if recached <= SEEN and kind is not Kind.FAR:
        committed.update(zip(range(recached), layout.add_together(list(range(recached)), 2, []), strict=True))
    else:
        kept = list(range(recached - SEEN + 1, recached))
        committed.update(zip(kept, layout.add_together(kept, 2, [committed[0]]), strict=True))
    for block in range(recached, switch + 3):
        if block >= switch:
            targets.append((block, 2, _window(committed, block)))
        if block < switch + 2:
            committed[block] = layout.add(block, 2, _window(committed, block))
    for block, prompt, sees in _choose(targets, noisy, rng):
        layout.add(block, prompt, sees, is_noisy=True)
    return layout


def plan_unchanged(blocks: int, given: int, rng: torch.Generator, noisy: int) -> Layout:
    """A short video under its first prompt; its `given` blocks are a past that was computed together.

    Noisy targets are the blocks after these, the first of them twice.
    """
    layout, first = Layout(), list(range(given))
    committed = dict(zip(first, layout.add_together(first, 0, []), strict=True))
    for block in range(given, blocks - 1):
        committed[block] = layout.add(block, 0, _window(committed, block))
    others = torch.randint(given, blocks, (noisy - 2,), generator=rng).tolist()
    for block in (given, given, *others):
        layout.add(block, 0, _window(committed, block), is_noisy=True)
    return layout


def _window(committed: dict[int, int], block: int) -> list[int]:
    """The passes of the sink and of the two blocks before `block`."""
    return [committed[b] for b in sorted({0, block - 2, block - 1}) if 0 <= b < block]


def _choose(targets: list, count: int, rng: torch.Generator) -> list:
    """Block 0 and the first block after the switch always (they are hardest), the others at random."""
    first = [t for t in targets if t[0] == 0]
    seam = [next(t for t in targets if t[1] == 2)]
    others = [t for t in targets if t not in first + seam]
    order = torch.randint(len(others), (max(0, count - 2 * len(first) - len(seam)),), generator=rng)
    return first * 2 + seam + [others[i] for i in order.tolist()]


class SideBySide:
    """Stands in for the KV cache: nothing is stored, every pass gets the K and V of the passes it sees."""

    def __init__(self, seen: list[tuple[int, ...]], num_layers: int):
        """Of each pass, the indices of those that it sees."""
        valid = [[i < len(sees) for i in range(SEEN)] for sees in seen]
        self._num_passes = len(seen)
        self._seen = torch.tensor([sees + (sees[-1],) * (SEEN - len(sees)) for sees in seen]).flatten()
        self._valid = torch.tensor(valid)
        self.mask: Tensor | None = None
        self.layers = [self] * num_layers

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [B, passes * tokens, N, D] -> what each pass sees, [B * passes, SEEN * tokens, N, D]."""
        tokens = k.shape[1] // self._num_passes
        mask = self._valid.repeat_interleave(tokens, dim=1)[:, None, None]
        self.mask = mask.repeat(k.shape[0], 1, 1, 1)
        return self._gather(k), self._gather(v)

    def _gather(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self._num_passes, -1)).index_select(1, self._seen)
        return x.unflatten(1, (self._num_passes, SEEN)).flatten(2, 3).flatten(0, 1)


def hints_by_pass(
    vace: Vace, context: Tensor, layout: Layout, text: TextCache, times: list[Modulation], rotations: Tensor
) -> Hints:
    """What VACE adds to all passes under their context; each sees what a rollout writes with it, no more."""
    caches = SideBySide([p.written for p in layout.passes], len(vace.layers))

    def made(run: Callable[..., None], parts: list[Tensor], _: int) -> Iterator[list[Tensor]]:
        parts = [vace.embedded(context) + parts[0]]
        for layer, cache, prompt, time in zip(vace.layers, caches.layers, text.layers, times, strict=True):
            run(layer, parts, rotations, (time,), cache, prompt)
            yield [layer.after_proj(parts[0])]

    return Hints(vace.places, 1.0, made)


def text_by_pass(text: TextCache, layout: Layout, batch: int) -> TextCache:
    """K, V of three prompts for each sample [3B, L, N, D] (prompt fastest) -> one prompt a pass."""
    prompts = torch.tensor([p.prompt for p in layout.passes])
    rows = (torch.arange(batch)[:, None] * 3 + prompts).flatten()
    return TextCache([LayerText(t.keys[rows], t.values[rows], t.mask) for t in text.layers])


def attend_by_pass(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """attend() for training: q [B, passes * tokens, N, D], k and v [B * passes, M, N, D]."""
    shape = q.shape
    q, k, v = (t.transpose(1, 2) for t in (q.reshape(k.shape[0], -1, *shape[2:]), k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(shape)


def positions_of(layout: Layout, gap: int) -> Tensor:
    """Latent-frame positions of all passes; blocks behind the sink stand `gap` latent frames later."""
    starts = torch.tensor([BLOCK * p.block + (gap if p.block else 0) for p in layout.passes])
    return (starts[:, None] + torch.arange(BLOCK)).flatten()
