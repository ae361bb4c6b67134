"""Noise levels and noise: the shifted sigmas, flow -> clean latents, and noise anyone can draw again."""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from ..config import SigmaConfig
from ..model.rope import widest_float

TIMESTEP_SCALE = 1000.0


class Sigmas(tuple[float, ...]):
    """The sigmas a block passes through; `first` are those of the first block that is made in a scene."""

    first: tuple[float, ...]


def shifted(share: float, shift: float) -> float:
    """A share of noise in (0, 1], such as 0.75 for step 750 of 1000, warped by `shift`."""
    return shift * share / (1 + (shift - 1) * share)


def begun_at(sigmas: tuple[float, ...], sigma: float) -> tuple[float, ...]:
    """The sigmas of a block that begins at noise level `sigma`: that one, then those below it."""
    return sigma, *(level for level in sigmas if level < sigma)


def shifted_sigmas(config: SigmaConfig) -> Sigmas:
    """The sigmas of a config; LongLive's are 1, 0.9375, 0.8333, 0.625, for every block."""

    def levels(steps: tuple[int, ...]) -> Sigmas:
        return Sigmas(shifted(step / TIMESTEP_SCALE, config.shift) for step in steps)

    sigmas = levels(config.steps)
    sigmas.first = levels(config.first_steps or config.steps)
    return sigmas


def clean_of(latents: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """The model's estimate of noise-free latents: x - sigma * flow, in the widest float (reference)."""
    wide = widest_float(latents.device)
    return (latents.to(wide) - sigma * flow.to(wide)).to(latents.dtype)


def renoise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents brought to noise level `sigma` with fresh noise."""
    return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)


@dataclass(frozen=True)
class SeededNoise:
    """Standard normal noise of `shape` [B, C, T, H, W]: a pure function of (seed, block, step).

    `later` has (block, seed) in order of blocks: from that block on the seed is another one. Noise is drawn
    in fp32 on torch's CPU generator, so that any block can be made again, on any device.
    """

    seed: int
    shape: tuple[int, ...]
    later: tuple[tuple[int, int], ...] = ()

    def __call__(self, block: int, step: int) -> Tensor:
        seed = seed_at(self.later, block, self.seed)
        digest = hashlib.blake2b(f"{seed}/{block}/{step}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.randn(self.shape, generator=generator)


def seed_at(later: tuple[tuple[int, int], ...], block: int, first: int | None = None) -> int | None:
    """The newest of seeds that begin at blocks, `first` before them."""
    index = bisect_right(later, block, key=itemgetter(0))
    return later[index - 1][1] if index else first


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device; to a GPU through pinned memory, so that neither waits for the other."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
