"""Noise levels: the shifted sigmas, flow -> clean, re-noise. Pure functions of tensors and floats."""

from torch import Tensor

from ..config import SigmaConfig
from ..doubles import widest_float

TIMESTEP_SCALE = 1000.0


def shifted_sigmas(config: SigmaConfig) -> tuple[float, ...]:
    """The sigmas a block passes through; LongLive's are 1, 0.9375, 0.8333, 0.625."""
    levels = (step / TIMESTEP_SCALE for step in config.steps)
    return tuple(config.shift * s / (1 + (config.shift - 1) * s) for s in levels)


def clean_of(latents: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """What the model believes the noise-free latents are: x - sigma * flow, in float64 as the reference.

    Where there is no float64, in float32.
    """
    wide = widest_float(latents.device)
    return (latents.to(wide) - sigma * flow.to(wide)).to(latents.dtype)


def renoise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents brought to noise level `sigma` with fresh noise."""
    return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)
