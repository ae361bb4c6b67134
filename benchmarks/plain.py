"""The plain slow twin: the same weights and the same arithmetic, computed the way a first version would.

Eager, nothing kept between passes but K and V: every pass embeds time and text again, every layer computes
its rotations in complex128, clones the whole cache, rolls it when a block begins, and the commit pass runs to
the end. Tests hold our rollout against it; benchmarks give the ratio of both in one run.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive_core.config import WindowConfig
from longlive_core.geometry import PATCH
from longlive_core.model.causal_wan import CausalWan, sinusoid
from longlive_core.model.layers import Attention, Layer
from longlive_core.model.rope import THETA, axis_sizes
from longlive_core.rollout.noise import TIMESTEP_SCALE, clean_of, renoise


@dataclass
class PlainCache:
    """K and V of one layer [B, window tokens, N, D], in the order of time behind the sink."""

    keys: Tensor
    values: Tensor


class PlainScene:
    """The past of a rollout, kept without any care for speed."""

    def __init__(self, model: CausalWan, like: Tensor, window: WindowConfig):
        """`like`: latents of one block [B, C, T, H, W]."""
        self.model, self.window = model, window
        self.block = like.shape[2]
        self.grid = (like.shape[3] // PATCH, like.shape[4] // PATCH)
        self.tokens = self.grid[0] * self.grid[1]
        config = model.config
        shape = (len(like), window.window_latent_frames * self.tokens, config.num_heads, config.head_dim)
        empty = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self.caches = [PlainCache(empty.clone(), empty.clone()) for _ in model.layers]
        self.held = 0  # latent frames in the cache
        self.made: list[Tensor] = []

    def run_block(self, noise: list[Tensor], sigmas: tuple[float, ...], embeds: Tensor) -> Tensor:
        """Denoise and commit one block; noise [B, C, T, H, W] of every step, embeds [B, L, text dim]."""
        first = sum(part.shape[2] for part in self.made)
        is_full = self.held == self.window.window_latent_frames
        if is_full:
            self.roll(self.block)
        slot = self.held - self.block if is_full else self.held
        x = clean = noise[0]
        for step, sigma in enumerate(sigmas):
            if step:
                x = renoise(clean, noise[step], sigma)
            clean = clean_of(x, self.forward(x, sigma, embeds, first, slot), sigma)
        self.forward(clean, 0.0, embeds, first, slot)
        self.held = slot + self.block
        self.made.append(clean)
        return clean

    def recache(self, embeds: Tensor) -> None:
        """One pass over the whole window, as LongLive v1.0 runs it; a full window keeps its sink."""
        made = torch.cat(self.made, dim=2)
        recent = made[:, :, -self.window.window_latent_frames :]
        first = made.shape[2] - recent.shape[2]
        sink = self.window.sink_latent_frames if first else 0
        self.forward(recent, 0.0, embeds, first, 0, protected=sink)

    def roll(self, count: int) -> None:
        """Drop the oldest `count` latent frames behind the sink."""
        start = self.window.sink_latent_frames * self.tokens
        gone = count * self.tokens
        for cache in self.caches:
            cache.keys[:, start:-gone] = cache.keys[:, start + gone :].clone()
            cache.values[:, start:-gone] = cache.values[:, start + gone :].clone()

    def forward(
        self, latents: Tensor, sigma: float, embeds: Tensor, first: int, slot: int, protected: int = 0
    ) -> Tensor:
        """One pass: latent frames `first`.. [B, C, T, H, W], written to slots `slot`.. -> flow.

        The first `protected` of them are computed but their K and V are thrown away.
        """
        model, frames = self.model, latents.shape[2]
        text = model.text_embedding(embeds.to(model.dtype))
        timesteps = torch.full((len(latents), frames), TIMESTEP_SCALE * sigma, device=model.device)
        time = model.time_embedding(sinusoid(timesteps, model.config.freq_dim).to(model.dtype))
        modulation = model.time_projection(time).unflatten(-1, (6, -1))
        x = torch.cat(model._embedded(latents), dim=1)
        where = (first, slot, frames, protected)
        for layer, cache in zip(model.layers, self.caches, strict=True):
            x = self.layer(layer, x, modulation, text, cache, where)
        shift, scale = (time.unsqueeze(2) + model.head.modulation).unbind(2)
        x = modulated(x, shift, scale, frames, model.config.eps)
        return model._unpatchify(model.head.proj(x), latents.shape)

    def layer(
        self, layer: Layer, x: Tensor, modulation: Tensor, text: Tensor, cache: PlainCache, where: tuple
    ) -> Tensor:
        """One transformer layer on tokens [B, L, E]."""
        frames = where[2]
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + layer.modulation).unbind(2)
        y = modulated(x, shift1, scale1, frames, layer.eps)
        y = self.self_attention(layer.self_attn, y, cache, where)
        x = x + (y.unflatten(1, (frames, -1)) * gate1.unsqueeze(2)).flatten(1, 2)
        x = x + cross_attention(layer.cross_attn, layer.norm3(x), text)
        up, gelu, down = layer.ffn
        y = down(gelu(up(modulated(x, shift2, scale2, frames, layer.eps))))
        return x + (y.unflatten(1, (frames, -1)) * gate2.unsqueeze(2)).flatten(1, 2)

    def self_attention(self, attention: Attention, x: Tensor, cache: PlainCache, where: tuple) -> Tensor:
        first, slot, frames, protected = where
        q = heads(rms_norm(attention.q(x), attention.norm_q), attention.num_heads)
        k = heads(rms_norm(attention.k(x), attention.norm_k), attention.num_heads)
        v = heads(attention.v(x), attention.num_heads)
        q, k = self.rope(q, first, frames), self.rope(k, first, frames)
        kept = protected * self.tokens
        start, end = slot * self.tokens, (slot + frames) * self.tokens
        keys, values = cache.keys.clone(), cache.values.clone()
        keys[:, start + kept : end] = k[:, kept:]
        values[:, start + kept : end] = v[:, kept:]
        cache.keys, cache.values = keys, values
        return attention.o(attended(q, keys[:, :end], values[:, :end]))

    def rope(self, x: Tensor, first: int, frames: int) -> Tensor:
        """x [B, L, N, D] rotated in complex128, the angles computed again."""
        rows, columns = self.grid
        parts = []
        sizes = axis_sizes(x.shape[-1])
        for positions, size, shape in zip(
            (torch.arange(first, first + frames), torch.arange(rows), torch.arange(columns)),
            sizes,
            ((-1, 1, 1), (1, -1, 1), (1, 1, -1)),
            strict=True,
        ):
            frequencies = THETA ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
            angles = torch.outer(positions.double(), frequencies)
            turns = torch.polar(torch.ones_like(angles), angles).view(*shape, size // 2)
            parts.append(turns.expand(frames, rows, columns, -1))
        rotations = torch.cat(parts, dim=-1).flatten(0, 2).unsqueeze(1).to(x.device)
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, frames: int, eps: float) -> Tensor:
    """LayerNorm, then scale and shift of every latent frame [B, T, E]."""
    x = F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype).unflatten(1, (frames, -1))
    return (x * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


def rms_norm(x: Tensor, norm: torch.nn.Module) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + norm.eps)).to(x.dtype) * norm.weight


def heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, L, N, D] on [B, M, N, D] -> [B, L, E]."""
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().flatten(2)


def cross_attention(attention: Attention, x: Tensor, text: Tensor) -> Tensor:
    q = heads(rms_norm(attention.q(x), attention.norm_q), attention.num_heads)
    k = heads(rms_norm(attention.k(text), attention.norm_k), attention.num_heads)
    return attention.o(attended(q, k, heads(attention.v(text), attention.num_heads)))
