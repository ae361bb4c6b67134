"""Videos under way on the student's own cache, made and trained chunk by chunk (LongLive, section 3.3).

A chunk is made without gradient, exactly as in inference but for its exit step. For its gradient, which comes
from the whole clip, the past is restored and each block's exit step runs once more, alone, against it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longlive_core.config import Policy
from longlive_core.model.cache import TextCache
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.noise import TIMESTEP_SCALE, clean_of, renoise, shifted_sigmas
from longlive_core.rollout.rollout import Switch, commit, denoise, encode_prompt, recache
from longlive_core.rollout.scene import RolloutState, Scene

from ..past import Past, Trajectory
from .draws import Draws
from .recipe import Recipe

Embeddings = Callable[[list[int]], tuple[Tensor, Tensor]]  # pairs -> prompts, follow-ups [B, tokens, dim]


class MadeBlock(NamedTuple):
    """A block: input of its exit step, what came out [B, C, T, H, W], the prompt it was made under."""

    x: Tensor
    latents: Tensor
    embeds: Tensor
    is_switch: bool


@dataclass(frozen=True)
class Chunk:
    """The newest blocks of a sequence, the clip before them, and the past to restore for a gradient.

    `embeds` is the prompt of the clip that is judged: the new one as soon as the chunk reaches the switch.
    """

    number: int
    sigma: float
    blocks: list[MadeBlock]
    embeds: Tensor
    before: Tensor
    past: RolloutState | None

    @property
    def latents(self) -> Tensor:
        """The new latent frames [B, C, T, H, W]."""
        return torch.cat([block.latents for block in self.blocks], dim=2)


class Stream:
    """One sequence after another, `recipe.streams` of them side by side; chunks are counted over all."""

    def __init__(self, model: CausalWan, recipe: Recipe, draws: Draws, embeddings: Embeddings):
        self._model, self._recipe, self._draws, self._embeddings = model, recipe, draws, embeddings
        self._block = recipe.window.block_latent_frames
        self._sigmas = shifted_sigmas(recipe.sigmas)
        self.sequence, self.chunk = -1, 0
        self.scene: Scene | None = None

    @property
    def is_over(self) -> bool:
        """Whether the next chunk needs a new sequence."""
        return self.scene is None or not self._recipe.takes(self.scene.end)

    def begin(self, sequence: int) -> None:
        """Begin a sequence: an empty cache, other prompts."""
        self.scene = None  # its memory is free for the next one
        like = self._draws.noise(0, 0, 0).to(self._model.device)
        self.sequence, self.switch = sequence, self._draws.switch(sequence)
        self.prompts = self._embeddings(self._draws.pairs(sequence))
        self.scene = Scene(self._model, like, self._recipe.window, self._recipe.longest)
        self.newest = like[:, :, :0]

    def next_chunk(self, for_gradient: bool = False) -> Chunk:
        """Make the next chunk of the sequence; RolloutError if it is not finite."""
        number, first = self.chunk, self.scene.end
        new = self._new_frames(number, first)
        embeds = self.prompts[self.switch < first + new]
        past = self.scene.state(embeds) if for_gradient and first else None
        exit_step = self._draws.exit(number)
        blocks = self._make(number, exit_step, new // self._block)
        chunk = Chunk(number, self._sigmas[exit_step], blocks, embeds, self.newest, past)
        self.newest = torch.cat((self.newest, chunk.latents), dim=2)[:, :, -self._recipe.clip :]
        self.chunk += 1
        return chunk

    def _new_frames(self, number: int, first: int) -> int:
        """How many latent frames the next chunk has: a whole clip at first, then less."""
        recipe = self._recipe
        if not first:
            return recipe.clip
        stop = min(recipe.longest - first + 1, recipe.clip)
        return self._draws.new_frames(number, range(recipe.min_new, stop, self._block))

    def _make(self, number: int, exit_step: int, count: int) -> list[MadeBlock]:
        blocks, text = [], None
        for index in range(count):
            end = self.scene.end
            is_switch = end - self._block < self.switch <= end
            embeds = self.prompts[self.switch <= end]
            if is_switch or text is None:
                text = prompt_of(self.scene, embeds, is_switch)
            x, latents = self._denoised(number, index, exit_step, text)
            commit(self.scene, text, latents)
            blocks.append(MadeBlock(x, latents, embeds, is_switch))
        return blocks

    def _denoised(self, number: int, index: int, exit_step: int, text: TextCache) -> tuple[Tensor, Tensor]:
        """The input of a block's exit step and its estimate there, which is the block."""

        def noise(block: int, step: int) -> Tensor:
            return self._draws.noise(number, block, step)

        trajectory = Trajectory()
        levels = self._sigmas[: exit_step + 1]
        latents = denoise(self.scene, text, noise, levels, index, trajectory)
        x = noise(index, exit_step).to(latents.device)
        return renoise(trajectory.cleans[-2], x, levels[-1]) if exit_step else x, latents

    def backward(self, chunk: Chunk, gradient: Tensor) -> None:
        """Add to the gradients of the weights what `gradient` [B, C, T, H, W] on the chunk's latents gives.

        It reaches the exit step of each block: queries, the block's own keys and values, the prompt's. The
        past is constant. Blocks before a switch inside the chunk get none. The cache ends as it was.
        """
        scene = self.scene
        scene.clear()
        if chunk.past:
            scene.restore(chunk.past)
        first = next((i for i, block in enumerate(chunk.blocks) if block.is_switch), 0)
        for index, part in enumerate(gradient.split(self._block, dim=2)):
            block = chunk.blocks[index]
            text = prompt_of(scene, block.embeds, block.is_switch)
            scene.open(scene.end, self._block)
            if index >= first:
                exit_estimate(scene, block, chunk.sigma).backward(part)
            commit(scene, text, block.latents)

    def tensors(self) -> dict[str, Tensor]:
        """All that the next chunk depends on, on the CPU; empty where it begins a sequence."""
        if self.is_over:
            return {}
        return {"newest": self.newest, **self.scene.state(self.prompts[0]).tensors}

    def restore(self, sequence: int, chunk: int, end: int, tensors: dict[str, Tensor]) -> None:
        """Become the stream that had these `tensors` after `end` latent frames of a sequence."""
        self.sequence, self.chunk, self.scene = sequence, chunk, None
        if tensors:
            self.begin(sequence)
            self.scene.restore(RolloutState(self._recipe.window, end, 0, tensors))
            self.newest = tensors["newest"].to(self._model.device)


def prompt_of(scene: Scene, embeds: Tensor, is_switch: bool) -> TextCache:
    """K and V of a prompt without gradient; at a switch the past is brought under it."""
    text = encode_prompt(scene.model, Switch(embeds))
    if is_switch:
        recache(scene, text, Policy.RECACHE)
    return text


def exit_estimate(scene: Scene, block: MadeBlock, sigma: float) -> Tensor:
    """The exit step of the open block again, with gradient, its past constant: [B, C, T, H, W]."""
    model = scene.model
    time = model.modulations(torch.tensor([TIMESTEP_SCALE * sigma]))
    text = model.encode_text(block.embeds)
    flow = model(block.x, time, scene.rotations, Past.of(scene.cache), text)
    return clean_of(block.x, flow, sigma)
