"""What teacher and critic say of a clip: the gradient for the student, and the critic's own loss.

Distribution matching distillation (arXiv 2405.14867), as LongLive uses it (section 3.3). Both are plain Wan:
every latent frame of a clip sees all of it. Clips and noise are [B, C, T, H, W], timesteps [B] in 0..1000.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longlive_core.config import SigmaConfig
from longlive_core.geometry import tokens_per_frame
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.rope import widest_float
from longlive_core.rollout.noise import TIMESTEP_SCALE


class WholeLayer:
    """Stands in for a layer's cache where all tokens see each other; may be filled in parts."""

    mask = None

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self._parts: list[tuple[Tensor, Tensor]] = []

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [B, L, N, D] of all tokens, as they are."""
        return k, v

    def put(self, tokens: Tensor, k: Tensor, v: Tensor) -> None:
        """K and V [B, L, N, D] of the next part of the tokens."""
        self._parts.append((k, v))

    def seen(self) -> tuple[Tensor, Tensor]:
        """K and V of all parts, which are forgotten."""
        keys, values = zip(*self._parts, strict=True)
        self._parts.clear()
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)


@dataclass
class Whole:
    """Stands in for the KV cache of a bidirectional model."""

    layers: list[WholeLayer]


class Judged(NamedTuple):
    """A clip as it was judged: `outcome` is the gradient for the student, or the critic's flow."""

    clip: Tensor
    supervised: Tensor  # bool [T]
    timesteps: Tensor
    outcome: Tensor
    loss: Tensor


def recompute_layers(model: CausalWan) -> None:
    """Keep only the inputs of each layer for the backward pass, and run it again there."""
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def whole_flow(model: CausalWan, noisy: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
    """Flow of noisy clips under prompt embeddings [B, text tokens, text dim], like `noisy`."""
    frames, height, width = noisy.shape[2:]
    tokens = torch.arange(frames * tokens_per_frame(height, width), device=noisy.device)
    rotations = model.rotations(torch.arange(frames), height, width)
    cache = Whole([WholeLayer(tokens) for _ in model.layers])
    text = model.encode_text(embeds.expand(len(noisy), -1, -1))
    return model(noisy, model.modulations(timesteps[:, None]), rotations, cache, text)


def shifted_timesteps(levels: Tensor, sigmas: SigmaConfig, bounds: tuple[float, float]) -> Tensor:
    """Noise levels, integers [B] of 0..999 -> timesteps, warped by the shift, then clamped to the bounds.

    In fp32, as the reference: the models see the last bit of a timestep.
    """
    share = levels / TIMESTEP_SCALE
    return (sigmas.shift * share / (1 + (sigmas.shift - 1) * share) * TIMESTEP_SCALE).clamp(*bounds)


def noised(clip: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The clip at the noise level of its timestep."""
    return torch.lerp(clip, noise, _like(timesteps / TIMESTEP_SCALE, clip))


def clean_clip(noisy: Tensor, flow: Tensor, timesteps: Tensor) -> Tensor:
    """The estimate of the clip without noise, in the widest float."""
    wide = widest_float(noisy.device)
    return noisy.to(wide) - _like(timesteps.to(wide) / TIMESTEP_SCALE, noisy) * flow.to(wide)


@torch.no_grad()
def student_gradient(
    teacher: CausalWan,
    critic: CausalWan,
    guidance: float,
    clip: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    prompts: tuple[Tensor, Tensor],
) -> Tensor:
    """Where the clip ought to move: (critic - teacher) / mean |clip - teacher|, like `clip`.

    The teacher's estimate is cond + guidance * (cond - negative), of the `prompts` (cond, negative); the mean
    is over all of a clip, supervised or not. What is not finite becomes a number.
    """
    cond, negative = prompts
    fake = clean_clip(noisy, whole_flow(critic, noisy, timesteps, cond), timesteps)
    real = clean_clip(noisy, whole_flow(teacher, noisy, timesteps, cond), timesteps)
    if guidance:
        apart = real - clean_clip(noisy, whole_flow(teacher, noisy, timesteps, negative), timesteps)
        real = real + guidance * apart
    scale = (clip - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return torch.nan_to_num(((fake - real) / scale).to(clip.dtype))


def student_loss(gradient: Tensor, supervised: Tensor) -> Tensor:
    """0.5 * mean g^2 over the supervised latent frames [T]: its gradient on these is g / their number."""
    return 0.5 * gradient[:, :, supervised].to(widest_float(gradient.device)).square().mean()


def critic_loss(flow: Tensor, clip: Tensor, noise: Tensor, supervised: Tensor) -> Tensor:
    """Flow matching on the student's own clip: mean (flow - (noise - clip))^2 over supervised frames [T]."""
    return (flow.float() - (noise - clip))[:, :, supervised].square().mean()


def _like(numbers: Tensor, clip: Tensor) -> Tensor:
    """Numbers [B] for clips [B, C, T, H, W]."""
    return numbers.view(-1, *[1] * (clip.ndim - 1))
