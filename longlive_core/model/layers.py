"""The parts of one transformer layer: norms, modulation, self- and cross-attention, MLP.

Tokens [B, L, E] in and out. Layers keep weights only; caches come as arguments, owned by the rollout.
"""

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Attend
from .cache import LayerCache, LayerText
from .linear8 import Multiply
from .rope import rotate

KEPT_BYTES = 24 << 20  # glibc gives what is larger than 32 MiB back to the system at once


class Linear(nn.Linear):
    """A linear layer whose weight may be stored small: in bf16, or in 8 bits with a scale a row.

    The weight is widened for the moment of its use; where it already has the input's dtype, nothing happens.
    With `multiply` set, a kernel of linear8, the arithmetic is in 8 bits too.
    """

    multiply: Multiply | None = None

    def __init__(self, features_in: int, features_out: int):
        super().__init__(features_in, features_out)
        self.register_buffer("scale", None, persistent=False)  # [features out], only beside 8 bits

    def forward(self, x: Tensor) -> Tensor:
        if self.multiply is not None:
            return self.multiply(x, self.weight, self.scale, self.bias)
        weight = self.weight.to(x.dtype)
        if self.scale is None:
            return F.linear(x, weight, self.bias)
        return torch.addcmul(self.bias, F.linear(x, weight), self.scale.to(x.dtype))

    def gelu(self, x: Tensor) -> Tensor:
        """GELU (tanh) of what forward gives."""
        if x.is_cuda and self.multiply is None and self.scale is None and not torch.is_grad_enabled():
            return linear_gelu(x, self.weight.to(x.dtype), self.bias)
        if x.device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            return torch.ops.aten.gelu_(self(x), approximate="tanh")  # in place: half the memory
        return F.gelu(self(x), approximate="tanh")


@torch.library.custom_op("longlive::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A card's product with GELU (tanh) at its end, where it costs nothing; without gradients.

    An operator of its own, because the compiler would take torch's private one apart again.
    """
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True).unflatten(
        0, x.shape[:-1]
    )


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


class FeedForward(nn.Sequential):
    """What widens every token, bends it and narrows it again."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(Linear(dim, hidden), nn.GELU(approximate="tanh"), Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.num_parts(x)
        if parts == 1:
            return self.bend(x)
        return torch.cat([self.bend(part) for part in x.chunk(parts, dim=1)], dim=1)

    def num_parts(self, x: Tensor) -> int:
        """In how many parts a CPU takes the tokens [B, L, E].

        What is too large to be kept for the next use comes from the system anew, page by page. Weights that
        are widened at every use are not widened more often.
        """
        if x.device.type != "cpu" or torch.is_grad_enabled() or self[2].weight.dtype != x.dtype:
            return 1
        return ceil(x.shape[0] * x.shape[1] * self[2].in_features * x.itemsize / KEPT_BYTES)

    def bend(self, x: Tensor) -> Tensor:
        """All of these tokens at once."""
        widen, gelu, narrow = self
        return narrow(widen.gelu(x) if isinstance(widen, Linear) else gelu(widen(x)))  # or a host's linear


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

    def rotated_keys_values(self, x: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of these tokens [B, L, N, D], as the cache keeps them."""
        k, v = self.keys_values(x)
        return rotate(k, rotations), v


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

    def __init__(self, config: ModelConfig, attend: Attend, attend_text: Attend):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = SelfAttention(config, attend)
        self.cross_attn = CrossAttention(config, attend_text)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)

    def read_time(self, modulation: Tensor) -> LayerTime:
        """The time embedding's modulation [B or 1, L or 1, 6, E] -> this layer's, 1 added to the scales."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation).unbind(2)
        return LayerTime(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)

    def forward(
        self, x: Tensor, time: LayerTime, rotations: Tensor, cache: LayerCache, text: LayerText
    ) -> Tensor:
        """x [B, L, E] -> [B, L, E]; its K and V are left in the cache.

        What lies before and after the cache are two pure functions of fixed shapes, which can be compiled
        while the window still grows.
        """
        q, k, v = self.run(Layer.ask, x, time, rotations)
        keys, values = cache.write(k, v)
        seen = self.self_attn.attend(q, keys, values, cache.mask)
        return self.run(Layer.answer, x, seen, time, text)

    def remember(self, x: Tensor, time: LayerTime, rotations: Tensor, cache: LayerCache) -> None:
        """Only what the cache needs of this layer: its K and V."""
        cache.write(*self.run(Layer.recall, x, time, rotations))

    def run(self, half: Callable[..., Any], x: Tensor, *rest: Any) -> Any:
        """Half of this layer, as it stands here; whoever compiles layers puts their own in place of it."""
        return half(self, x, *rest)

    def ask(self, x: Tensor, time: LayerTime, rotations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, L, E] -> rotated q, rotated k, and v, each [B, L, N, D]."""
        x = modulate(x, time.shift1, time.scale1, self.eps)
        q = rotate(self.self_attn.query(x), rotations)
        return q, *self.self_attn.rotated_keys_values(x, rotations)

    def recall(self, x: Tensor, time: LayerTime, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """As `ask`, only k and v."""
        return self.self_attn.rotated_keys_values(modulate(x, time.shift1, time.scale1, self.eps), rotations)

    def answer(self, x: Tensor, seen: Tensor, time: LayerTime, text: LayerText) -> Tensor:
        """Tokens and what their queries saw [B, L, N, D] -> the layer's output [B, L, E]."""
        x = torch.addcmul(x, time.gate1, self.self_attn.o(seen.flatten(2)))
        x = x + self.cross_attn(self.norm3(x), text)
        return torch.addcmul(x, time.gate2, self.ffn(modulate(x, time.shift2, time.scale2, self.eps)))


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
