"""Blocks that the next run of a node need not make again: those before the first cue that differs."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..longlive_core.pipeline import Plan
from ..longlive_core.resume import Rewind
from ..longlive_core.schedule.cue import Cue, whole

KEPT_NODES = 4  # whose newest runs are kept, the very newest alone with its states
KEPT_BYTES = 1 << 30  # of the latents of each: ten minutes at 832x480, hours of Mini
FREE = {"schedule", "seconds"}  # settings in which two runs may differ
EncodeText = Callable[[str], Tensor]


@dataclass
class Take:
    """What a run of a node was made with, what it played, and what it has made so far."""

    parts: tuple[Any, ...]  # that are the same objects as long as ComfyUI does not load them again
    settings: Mapping[str, Any]
    begins: Tensor | None  # latents that it begins with or goes on from
    always: str
    rewind: Rewind
    cues: Callable[[], Mapping[int, Cue]] = field(repr=False)
    embeds: dict[str, str] = field(default_factory=dict)  # check sums by prompt

    def noted(self, encode: EncodeText) -> EncodeText:
        """The same encoder; what its embeddings were is kept."""

        def encoded(prompt: str) -> Tensor:
            embeds = encode(prompt)
            self.embeds[prompt] = checksum(embeds)
            return embeds

        return encoded

    def finished(self) -> "Take":
        """The same, without what only a run that goes on needs, and without a journal: in RAM."""
        rewind, cues = Rewind(), self.cues()
        first = next(self.rewind.made(), None)
        rewind.take_over(self.rewind, KEPT_BYTES // first.latents.nbytes if first else 0)
        return replace(self, rewind=rewind, cues=lambda: cues)

    def num_shared(self, plan: Plan, other: "Take", encode: EncodeText) -> int:
        """How many blocks of this run are those of a plan, by whose take `other` it will be made."""
        if not self._is_like(other) or plan.request.source or plan.control or plan.request.state:
            return 0
        ours, theirs = self.cues(), {segment.block: segment.cue for segment in plan.timeline.segments}
        pairs = {block: (ours.get(block), theirs.get(block)) for block in {*ours, *theirs}}
        differing = [block for block, cues in pairs.items() if not self._is_same(*cues, encode)]
        end = min([*differing, plan.blocks.stop - plan.first_block]) + plan.first_block
        return len([index for index in self.rewind.blocks if index < end])

    def _is_like(self, other: "Take") -> bool:
        takes, latents = (self, other), (self.begins, other.begins)
        ours, theirs = ({name: take.settings[name] for name in {*take.settings} - FREE} for take in takes)
        if ours != theirs or self.always != other.always:
            return False
        if any(mine is not its for mine, its in zip(self.parts, other.parts, strict=True)):
            return False
        return latents[0] is latents[1] or (all(one is not None for one in latents) and torch.equal(*latents))

    def _is_same(self, ours: Cue | None, theirs: Cue | None, encode: EncodeText) -> bool:
        if ours is None or theirs is None or ours.image or kind_of(ours) != kind_of(theirs):
            return False
        prompt = whole(self.always, ours.prompt)
        return self.embeds.get(prompt) == checksum(encode(prompt))


class Takes:
    """The newest runs of nodes, by the ids of these."""

    def __init__(self):
        self._takes: dict[str | None, Take] = {}

    def begin(self, node_id: str | None, take: Take, plan: Plan, encode: EncodeText) -> int:
        """Let a run begin with the blocks of the one before that are its own. -> how many"""
        earlier = self._takes.pop(node_id, None)
        for other in self._takes.values():
            other.rewind.states.clear()
        shared = earlier.num_shared(plan, take, encode) if earlier else 0
        if shared:
            take.rewind.take_over(earlier.rewind, shared)
            take.embeds.update(earlier.embeds)
        return shared

    def keep(self, node_id: str | None, take: Take) -> None:
        """Keep what a run has made, which is over."""
        self._takes[node_id] = take.finished()
        while len(self._takes) > KEPT_NODES:
            del self._takes[next(iter(self._takes))]


def kind_of(cue: Cue) -> tuple[Any, ...]:
    """All that decides what a cue does at its block."""
    return cue.prompt, cue.policy, cue.blend_seconds, cue.seed, cue.image


def checksum(embeds: Tensor) -> str:
    return hashlib.sha256(embeds.float().contiguous().numpy()).hexdigest()


TAKES = Takes()
