"""The parts of one transformer layer: norms, modulation, self- and cross-attention, MLP.

Tokens [B, L, E] in and out. Layers keep weights only; caches come as arguments, owned by the rollout.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Attend
from .cache import LayerCache, LayerText
from .rope import rotate


class Linear(nn.Linear):
    """A linear layer whose weight may be stored smaller than the arithmetic: bf16 or fp8 with a scale a row.

    The weight is widened for the moment of its use; where it already has the input's dtype, nothing happens.
    """

    def __init__(self, features_in: int, features_out: int):
        super().__init__(features_in, features_out)
        self.register_buffer("scale", None, persistent=False)  # [features out], only beside fp8

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if self.scale is None:
            return F.linear(x, weight, self.bias)
        return torch.addcmul(self.bias, F.linear(x, weight), self.scale.to(x.dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, in fp32, cast back before the weight (as Wan does)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Projections shared by self- and cross-attention: q, k normed over all heads together."""

    def __init__(self, config: ModelConfig, attend: Attend):
        super().__init__()
        dim = config.dim
        self.num_heads, self.attend = config.num_heads, attend
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))  # [B, L, E] -> [B, L, N, D]

    def query(self, x: Tensor) -> Tensor:
        return self.heads(self.norm_q(self.q(x)))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.norm_k(self.k(x))), self.heads(self.v(x))


class SelfAttention(Attention):
    """Attention of a block on the window: itself and what the cache holds."""

    def forward(self, x: Tensor, rotations: Tensor, cache: LayerCache) -> Tensor:
        keys, values = self.remember(x, rotations, cache)
        seen = self.attend(rotate(self.query(x), rotations), keys, values, cache.mask)
        return self.o(seen.flatten(2))

    def remember(self, x: Tensor, rotations: Tensor, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Write this block's K and V into the cache; returns all K and V that it may see."""
        k, v = self.keys_values(x)
        return cache.write(rotate(k, rotations), v)


class CrossAttention(Attention):
    """Attention on the prompt, whose K and V were read once. Padding rows are attended (reference)."""

    def forward(self, x: Tensor, text: LayerText) -> Tensor:
        return self.o(self.attend(self.query(x), text.keys, text.values, text.mask).flatten(2))


class LayerTime(NamedTuple):
    """What a noise level asks of one layer, each [B or 1, L or 1, E]."""

    shift1: Tensor
    scale1: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    gate2: Tensor


class Layer(nn.Module):
    """One transformer layer; modulation [1, 6, E] is added to the time embedding's."""

    def __init__(self, config: ModelConfig, attend: Attend):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = SelfAttention(config, attend)
        self.cross_attn = CrossAttention(config, attend)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.ffn = nn.Sequential(
            Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            Linear(config.ffn_dim, config.dim),
        )

    def read_time(self, modulation: Tensor) -> LayerTime:
        """The time embedding's modulation [B or 1, L or 1, 6, E] -> this layer's, 1 added to the scales."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation).unbind(2)
        return LayerTime(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)

    def forward(
        self, x: Tensor, time: LayerTime, rotations: Tensor, cache: LayerCache, text: LayerText
    ) -> Tensor:
        """x [B, L, E] -> [B, L, E]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = time
        x = x + gate1 * self.self_attn(modulate(x, shift1, scale1, self.eps), rotations, cache)
        x = x + self.cross_attn(self.norm3(x), text)
        return x + gate2 * self.ffn(modulate(x, shift2, scale2, self.eps))

    def remember(self, x: Tensor, time: LayerTime, rotations: Tensor, cache: LayerCache) -> None:
        """Only what the cache needs of this layer: its K and V."""
        self.self_attn.remember(modulate(x, time.shift1, time.scale1, self.eps), rotations, cache)


class Head(nn.Module):
    """Tokens -> latent patches; modulated by the time embedding itself."""

    def __init__(self, config: ModelConfig, patch_values: int):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.proj = Linear(config.dim, patch_values)

    def read_time(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding [B or 1, L or 1, E] -> shift, and scale with its 1 added."""
        shift, scale = (time.unsqueeze(2) + self.modulation).unbind(2)
        return shift, 1 + scale

    def forward(self, x: Tensor, time: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, L, E] -> [B, L, patch values]."""
        return self.proj(modulate(x, *time, self.eps))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights, then scale (1 and more) and shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), scale)
