"""The parts of one transformer layer: norms, modulation, self- and cross-attention, MLP.

Tokens [B, L, E] in and out. Layers keep weights only; caches come as arguments, owned by the rollout.
"""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import ModelConfig
from ..fast.products import stored_linear
from .attention import Attend
from .cache import LayerCache, LayerText
from .rope import rotate

Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x, weight, scale, bias -> x @ weight.T + bias
CHUNK_BYTES = 24 << 20  # larger buffers go back to the OS at once, and page faults dominate


class Linear(nn.Linear):
    """A linear layer whose weight may be stored small: in bf16, or in 8 bits with a `scale` [out].

    A stored weight is dequantised at its use, or a `product` of x, weight, scale and bias takes it as it is.
    """

    product: Product | None = None

    def __init__(self, features_in: int, features_out: int):
        super().__init__(features_in, features_out)
        self.register_buffer("scale", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.product:
            return self.product(x, self.weight, self.scale, self.bias)
        if self.weight.dtype == x.dtype:
            return F.linear(x, self.weight, self.bias)
        return stored_linear(x, self.weight, self.scale, self.bias)


class FeedForward(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(Linear(dim, hidden), nn.GELU(approximate="tanh"), Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        chunks = self.num_chunks(x)
        if chunks == 1:
            return self.of_chunk(x)
        return torch.cat([self.of_chunk(chunk) for chunk in x.chunk(chunks, dim=1)], dim=1)

    def num_chunks(self, x: Tensor) -> int:
        """In how many chunks a CPU takes the tokens [B, L, E]; a stored weight is dequantised only once."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or self[2].weight.dtype != x.dtype:
            return 1
        return ceil(x.shape[0] * x.shape[1] * self[2].in_features * x.itemsize / CHUNK_BYTES)

    def of_chunk(self, x: Tensor) -> Tensor:
        """All of these tokens at once."""
        up, gelu, down = self
        hidden = up(x)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return down(gelu(hidden))
        return down(torch.ops.aten.gelu_(hidden, approximate="tanh"))  # in place: half the memory


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width; torch computes it in fp32 and casts back, as Wan does."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class Attention(nn.Module):
    """Projections shared by self- and cross-attention: q, k normed over all heads together."""

    def __init__(self, config: ModelConfig, attend: Attend):
        super().__init__()
        dim = config.dim
        self.num_heads, self.attend = config.num_heads, attend
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)

    def heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (n d) -> b l n d", n=self.num_heads)

    def query(self, x: Tensor) -> Tensor:
        return self.heads(self.norm_q(self.q(x)))

    def key(self, x: Tensor) -> Tensor:
        return self.heads(self.norm_k(self.k(x)))

    def kv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, N, D] of x [B, L, E]."""
        return self.key(x), self.heads(self.v(x))

    def of_query(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.o(self.attend(q, keys, values, mask).flatten(2))


class SelfAttention(Attention):
    """Attention of a block on the window: itself and what the cache holds."""

    def forward(self, x: Tensor, rotations: Tensor, cache: LayerCache) -> Tensor:
        """x [B, L, E] -> [B, L, E]; leaves its keys and values in the cache."""
        q = rotate(self.query(x), rotations)
        keys, values = cache.write(*self.kv_at(x, rotations))
        return self.of_query(q, keys, values, cache.mask)

    def kv_at(self, x: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, rotated to their places, and values [B, L, N, D] of x [B, L, E]."""
        return rotate(self.key(x), rotations), self.heads(self.v(x))


class CrossAttention(Attention):
    """Attention on the prompt, whose K and V are computed once. Padding rows are attended (reference)."""

    def forward(self, x: Tensor, text: LayerText) -> Tensor:
        return self.of_query(self.query(x), text.keys, text.values, text.mask)


class Modulation(NamedTuple):
    """Shift, scale and gate of one layer at one noise level, each [B or 1, L or 1, E]; 1 is in the scales."""

    shift1: Tensor
    scale1: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    gate2: Tensor


class Layer(nn.Module):
    """One transformer layer; its own modulation [1, 6, E] is added to the time embedding's."""

    def __init__(self, config: ModelConfig, attend: Attend, attend_text: Attend):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = SelfAttention(config, attend)
        self.cross_attn = CrossAttention(config, attend_text)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)

    def modulation_at(self, time: Tensor) -> Modulation:
        """The time embedding's modulation [B or 1, L or 1, 6, E] -> this layer's, 1 added to the scales."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (time + self.modulation).unbind(2)
        return Modulation(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)

    def text_kv(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, N, D] of a prompt's rows [B, L, E], for cross-attention."""
        return self.cross_attn.kv(rows)

    def forward(
        self, x: Tensor, rotations: Tensor, time: Modulation, cache: LayerCache, text: LayerText
    ) -> Tensor:
        """x [B, L, E] -> [B, L, E]; its K and V are left in the cache."""
        seen = self.self_attn(modulate(x, time.shift1, time.scale1, self.eps), rotations, cache)
        return self.after_attention(torch.addcmul(x, time.gate1, seen), time, text)

    def fill_cache(
        self, x: Tensor, rotations: Tensor, time: Modulation, cache: LayerCache, tokens: Tensor
    ) -> None:
        """Only what the cache needs of this layer: the K and V of x, at the token indices [L]."""
        modulated = modulate(x, time.shift1, time.scale1, self.eps)
        cache.put(tokens, *self.self_attn.kv_at(modulated, rotations))

    def on_filled(
        self,
        x: Tensor,
        rotations: Tensor,
        time: Modulation,
        seen: tuple[Tensor, Tensor],
        text: LayerText,
    ) -> Tensor:
        """x [B, L, E] -> [B, L, E] as forward does, once its K and V are among those `seen` in the cache."""
        modulated = modulate(x, time.shift1, time.scale1, self.eps)
        seen = self.self_attn.of_query(rotate(self.self_attn.query(modulated), rotations), *seen)
        return self.after_attention(torch.addcmul(x, time.gate1, seen), time, text)

    def after_attention(self, x: Tensor, time: Modulation, text: LayerText) -> Tensor:
        """The rest of a layer: cross-attention and feed-forward."""
        x = x + self.cross_attn(self.norm3(x), text)
        return torch.addcmul(x, time.gate2, self.ffn(modulate(x, time.shift2, time.scale2, self.eps)))


class Head(nn.Module):
    """Tokens -> latent patches; modulated by the time embedding itself."""

    def __init__(self, config: ModelConfig, patch_values: int):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.proj = Linear(config.dim, patch_values)

    def modulation_at(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding [B or 1, L or 1, E] -> shift, and scale with its 1 added."""
        shift, scale = (time.unsqueeze(2) + self.modulation).unbind(2)
        return shift, 1 + scale

    def forward(self, x: Tensor, time: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, L, E] -> [B, L, patch values]."""
        return self.proj(modulate(x, *time, self.eps))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights, then scale (1 and more) and shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), scale)
