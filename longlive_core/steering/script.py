"""Cues and a text encoder -> the rollout's Script: which embedding begins at which block, with which policy.

Here "no policy" becomes recache, and a blend becomes one switch a block on the way to the new prompt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ..config import Policy
from ..geometry import FRAME_RATE, TIME_STRIDE
from ..rollout.rollout import Script, Switch
from ..schedule.cue import DEFAULT_BLEND_SECONDS, Cue
from ..schedule.schedule import Timeline

EncodeText = Callable[[str], Tensor]  # prompt -> [1, text tokens, text dim]
KEPT_PROMPTS = 64  # embeddings of a schedule that are kept, in case a prompt comes again


def linear(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """The embedding on the straight way from `start` (weight 0) to `end` (1), [1, L, C]."""
    return torch.lerp(start, end, weight)


@dataclass(frozen=True)
class BlendStyle:
    """How a blend goes: the way between embeddings, and the policy of its blocks before the last.

    The defaults were the smoothest of those measured (docs/blend.md).
    """

    mix: Callable[[Tensor, Tensor, float], Tensor] = linear
    on_the_way: Policy = Policy.RECACHE


@dataclass(frozen=True)
class ScriptState:
    """Which prompt is in effect, or blended to: its embedding `embeds` [1, L, C] at the newest block.

    Of a blend that is on its way `done` of `of` blocks are made, from the embedding `start` to `target`.
    """

    prompt: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    done: int
    of: int


class PromptScript:
    """Calling it with block after block, once each, gives the Switch of each, as the rollout's Script does.

    `opens(block)` is the cue that begins there, if one does. A cue that comes while a blend is on its way
    starts from the embedding in effect.
    """

    def __init__(
        self,
        opens: Callable[[int], Cue | None],
        encode: EncodeText,
        block_latent_frames: int,
        style: BlendStyle = BlendStyle(),
    ):
        self._opens, self._encode, self._style = opens, encode, style
        self._block_latent_frames = block_latent_frames
        self.embeds: Tensor | None = None  # what is in effect at the newest block asked for
        self._way: tuple[Tensor, Tensor] | None = None  # where a blend comes from and goes to
        self._done, self._of = 0, 0  # blocks of the blend
        self._prompt: str | None = None  # in effect, or blended to
        self._inherited: str | None = None  # in effect before the first block

    def state(self) -> ScriptState:
        """What is in effect at the newest block asked for, copied to the CPU."""
        named = {"embeds": self.embeds} | dict(zip(("start", "target"), self._way or (), strict=False))
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in named.items()}
        return ScriptState(self._prompt, copies, self._done, self._of)

    def resume(self, state: ScriptState) -> None:
        """Go on from there. A first cue of the same prompt that names no policy then changes nothing."""
        self._prompt = self._inherited = state.prompt
        self.embeds = state.tensors["embeds"]
        self._done, self._of = state.done, state.of
        if "target" in state.tensors:
            self._way = state.tensors["start"], state.tensors["target"]

    def __call__(self, block: int) -> Switch | None:
        cue = self._opens(block)
        if cue and not self._is_inherited(cue):
            return self._begin(cue)
        return self._go_on() if self._way else None

    def _is_inherited(self, cue: Cue) -> bool:
        """Whether the first cue of all only says again what an earlier video left in effect."""
        inherited, self._inherited = self._inherited, None
        return cue.policy is None and cue.prompt == inherited

    def _begin(self, cue: Cue) -> Switch:
        """The first block under a cue; the first of all prompts has nothing to blend from."""
        target, start = self._encode(cue.prompt), self.embeds
        self._way, self._prompt = None, cue.prompt
        if cue.policy is Policy.BLEND and start is not None:
            self._way = start.to(target), target
            self._done, self._of = 0, blend_blocks(cue.blend_seconds, self._block_latent_frames)
            return self._go_on()
        self.embeds = target
        is_switch = cue.policy not in (None, Policy.BLEND)
        return Switch(target, cue.policy if is_switch else Policy.RECACHE)

    def _go_on(self) -> Switch:
        """The next block of a blend; the last one is the new prompt itself."""
        start, target = self._way
        self._done += 1
        if self._done == self._of:
            self._way, self.embeds = None, target
            return Switch(target, Policy.RECACHE)
        self.embeds = self._style.mix(start, target, self._done / self._of)
        return Switch(self.embeds, self._style.on_the_way)


def blend_blocks(seconds: float | None, block_latent_frames: int) -> int:
    """How many blocks a blend of that many seconds takes: the nearest number, at least 1."""
    block = block_latent_frames * TIME_STRIDE / FRAME_RATE
    return max(1, round((DEFAULT_BLEND_SECONDS if seconds is None else seconds) / block))


def script_of(
    timeline: Timeline, encode: EncodeText, block_latent_frames: int, first_block: int = 0
) -> Script:
    """A resolved schedule as the rollout's script, its blocks counted from `first_block`.

    Prompts are encoded when their block comes. The rollout asks for blocks in order, once a rollout.
    """

    def opens(block: int) -> Cue | None:
        segment = timeline.opens(block - first_block)
        return segment.cue if segment else None

    return PromptScript(opens, lru_cache(KEPT_PROMPTS)(encode), block_latent_frames)
