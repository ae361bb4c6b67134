"""Cues and a text encoder -> the rollout's Script: which embedding and which policy begin at a block."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

from ..config import Policy
from ..geometry import FRAME_RATE, TIME_STRIDE
from ..rollout.rollout import Switch
from ..schedule.cue import Cue, whole
from ..schedule.schedule import Timeline

EncodeText = Callable[[str], Tensor]  # prompt -> [1, text tokens, text dim]
CACHED_PROMPTS = 16  # embeddings, on the CPU and of a few MB each


class SceneImages(Protocol):
    """The images that cues name; ValueError for one that is missing or cannot be read."""

    def read(self, name: str) -> Tensor:
        """Its frames [1, H, W, 3] in [0, 1]."""

    def latents(self, name: str, block: int) -> Tensor:
        """Clean latents [1, C, T, h, w] that a scene begins with, at that block for the first time."""


@dataclass(frozen=True)
class ScriptState:
    """The prompt in effect at the newest block, or blended to, and its embedding `embeds` [1, L, C].

    During a blend `done` of `of` blocks are made, from the embedding `start` to `target`.
    """

    prompt: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    done: int = 0
    of: int = 0


class PromptScript:
    """The rollout's Script: called with block after block, once each, it gives the Switch of each.

    `cue_at(block)` is the cue that takes effect there, if one does. `on_switch` is for one with none. A
    blend is one switch a block, from the embedding in effect, even in mid-blend. Its `mix` and `on_the_way`,
    the policy of its blocks before the last, were the smoothest of those measured (docs/blend.md). `always`
    comes before every prompt that is encoded. `images` are those that cues name.
    """

    def __init__(
        self,
        cue_at: Callable[[int], Cue | None],
        encode: EncodeText,
        block_latent_frames: int,
        mix: Callable[[Tensor, Tensor, float], Tensor] = torch.lerp,  # the last is the new one's weight
        on_the_way: Policy = Policy.RECACHE,
        always: str = "",
        images: SceneImages | None = None,
    ):
        self._images = images
        self._whole = partial(whole, always)
        self.encode = lru_cache(CACHED_PROMPTS)(lambda prompt: encode(self._whole(prompt)))
        self._cue_at, self._block_latent_frames = cue_at, block_latent_frames
        self._mix, self._on_the_way = mix, on_the_way
        self.on_switch = Policy.RECACHE
        self._now = ScriptState("", {})
        self._inherited: str | None = None  # the prompt in effect before the first block

    def state(self) -> ScriptState:
        """What is in effect at the newest block, copied to the CPU."""
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in self._now.tensors.items()}
        return replace(self._now, tensors=copies)

    def resume(self, state: ScriptState, is_another: bool = True) -> None:
        """Continue from a state. A first cue of another video that repeats its prompt changes nothing.

        It does where it names a policy.
        """
        self._now, self._inherited = state, state.prompt if is_another else None

    def prepare(self, cue: Cue) -> None:
        """Encode the prompt of a cue that comes later and read its image; ValueError if it cannot be."""
        self.encode(cue.prompt)
        if cue.image:
            self._images.read(cue.image)

    def __call__(self, block: int) -> Switch | None:
        cue = self._cue_at(block)
        if cue:
            inherited, self._inherited = self._inherited, None
            if cue.policy is not None or self._whole(cue.prompt) != inherited:
                return self._begin(cue, block)
        return self._blend() if "target" in self._now.tensors else None

    def _begin(self, cue: Cue, block: int) -> Switch:
        """The first block under a cue; the first prompt of all has nothing to blend from."""
        target, start = self.encode(cue.prompt), self._now.tensors.get("embeds")
        prompt = self._whole(cue.prompt)
        if cue.policy is Policy.BLEND and start is not None:
            num_blocks = blend_blocks(cue.blend_seconds, self._block_latent_frames)
            self._now = ScriptState(prompt, {"start": start.to(target), "target": target}, of=num_blocks)
            return self._blend()
        self._now = ScriptState(prompt, {"embeds": target})
        is_switch = cue.policy not in (None, Policy.BLEND)
        given = self._images.latents(cue.image, block) if cue.image else None
        return Switch(target, cue.policy if is_switch else self.on_switch, given)

    def _blend(self) -> Switch:
        """The next block of a blend; the last one is the new prompt itself."""
        way, done, of = self._now.tensors, self._now.done + 1, self._now.of
        if done == of:
            self._now = replace(self._now, tensors={"embeds": way["target"]}, done=done)
            return Switch(way["target"])
        embeds = self._mix(way["start"], way["target"], done / of)
        self._now = replace(self._now, tensors={**way, "embeds": embeds}, done=done)
        return Switch(embeds, self._on_the_way)


def blend_blocks(seconds: float, block_latent_frames: int) -> int:
    """Blocks that a blend of that many seconds takes: the nearest number, at least 1."""
    return max(1, round(seconds / (block_latent_frames * TIME_STRIDE / FRAME_RATE)))


def script_of(
    timeline: Timeline,
    encode: EncodeText,
    block_latent_frames: int,
    first_block: int = 0,
    images: SceneImages | None = None,
) -> PromptScript:
    """The script of a schedule whose block 0 is `first_block`; each prompt is encoded at its block."""
    return PromptScript(
        lambda block: timeline.cue_at(block - first_block),
        encode,
        block_latent_frames,
        always=timeline.always,
        images=images,
    )
