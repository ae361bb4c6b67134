"""All that is random in a tuning run: a pure function of the seed and of what it is drawn for.

What all ranks must agree on depends on neither rank nor stream, so nothing is broadcast; a resumed run draws
what it would have drawn.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Recipe

LEVELS = 1000


def generator(*key: object) -> torch.Generator:
    """A CPU generator whose seed is made of `key`."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Draws:
    """Draws of some `streams` of the recipe's, which are numbered over all ranks.

    `shape` is that of a block of one stream, [C, T, H, W]; `num_pairs` counts pairs of prompts.
    """

    recipe: Recipe
    shape: tuple[int, int, int, int]
    num_pairs: int
    streams: range

    def exit(self, chunk: int) -> int:
        """The denoising step whose estimate is taken, for all blocks of a chunk (paper section 3.3)."""
        return self._below(len(self.recipe.sigmas.steps), "exit", chunk)

    def new_frames(self, chunk: int, choices: range) -> int:
        """How many latent frames a chunk adds."""
        return choices[self._below(len(choices), "new", chunk)]

    def switch(self, sequence: int) -> int:
        """The latent frame from which a sequence is under its second prompt; its end where there is none."""
        choices = self.recipe.switches
        return choices[self._below(len(choices), "switch", sequence)] if choices else self.recipe.longest

    def pairs(self, sequence: int) -> list[int]:
        """Which pair of prompts each stream gets: all of them in random order, again and again."""
        found = []
        for stream in self.streams:
            passes, place = divmod(sequence * self.recipe.streams + stream, self.num_pairs)
            order = torch.randperm(self.num_pairs, generator=self._generator("pairs", passes))
            found.append(int(order[place]))
        return found

    def noise(self, chunk: int, block: int, step: int) -> Tensor:
        """What a block begins from, or is noised with before a later step: [B, C, T, H, W]."""
        return self._normal(self.shape, "noise", chunk, block, step)

    def level(self, chunk: int) -> Tensor:
        """At which of 1,000 noise levels a clip is judged, before the shift: integers [B]."""
        drawn = [self._below(LEVELS, "level", chunk, stream) for stream in self.streams]
        return torch.tensor(drawn)

    def clip_noise(self, chunk: int) -> Tensor:
        """The noise with which a clip is judged [B, C, T, H, W]."""
        channels, _, *size = self.shape
        return self._normal((channels, self.recipe.clip, *size), "clip", chunk)

    def _normal(self, shape: tuple[int, ...], *key: object) -> Tensor:
        drawn = [torch.randn(shape, generator=self._generator(*key, stream)) for stream in self.streams]
        return torch.stack(drawn)

    def _below(self, count: int, *key: object) -> int:
        return int(torch.randint(count, (), generator=self._generator(*key)))

    def _generator(self, *key: object) -> torch.Generator:
        return generator(self.recipe.seed, *key)
