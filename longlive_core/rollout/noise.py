"""Noise that is a pure function of (seed, block, step): any block can be made again, on any device."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SeededNoise:
    """Standard normal noise of `shape` [B, C, T, H, W], drawn in fp32 on torch's CPU generator."""

    seed: int
    shape: tuple[int, ...]

    def __call__(self, block: int, step: int) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}/{block}/{step}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.randn(self.shape, generator=generator)
