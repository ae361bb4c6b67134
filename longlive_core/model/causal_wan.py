"""The causal Wan transformer: noisy latents of one block in, flow out; embed -> layers -> head.

It sees the past only through the cache that the caller passes in, and the prompt only through the text
cache. It knows neither blocks, nor sigmas, nor seeds.
"""

from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..doubles import widest_float
from ..geometry import PATCH
from .attention import Attend, sdpa
from .cache import KVCache, LayerText, TextCache
from .layers import Head, Layer, LayerTime, Linear
from .rope import rotation

TIMESTEP_BASE = 10000.0


class TimeCache(NamedTuple):
    """What one noise level asks of every layer and of the head; computed once, it serves all blocks."""

    layers: list[LayerTime]
    head: tuple[Tensor, Tensor]


class CausalWan(nn.Module):
    """Wan 2.1 text-to-video transformer, run causally over latent frames (LongLive, section 3).

    `attend` looks at the window, `attend_text` at the prompt's 512 rows, where special kernels gain nothing.
    """

    def __init__(self, config: ModelConfig, attend: Attend = sdpa, attend_text: Attend = sdpa):
        super().__init__()
        self.config = config
        patch_values, dim = config.latent_channels * PATCH**2, config.dim
        self.patch_embedding = Linear(patch_values, dim)
        self.text_embedding = nn.Sequential(
            Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(Linear(config.freq_dim, dim), nn.SiLU(), Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))
        self.layers = nn.ModuleList(Layer(config, attend, attend_text) for _ in range(config.num_layers))
        self.head = Head(config, patch_values)

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic, the latents and the cache; weights may be stored smaller."""
        return self.patch_embedding.bias.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def read_text(self, embeds: Tensor) -> TextCache:
        """Prompt embeddings [B, text tokens, text dim] (padding rows zero) -> K and V of every layer.

        On a CPU the padding is one row; a card's kernels want no mask, and graphs want prompts of one size.
        """
        embeds, mask = embeds.to(self.device, self.dtype), None
        if self.device.type == "cpu" and not torch.is_grad_enabled():
            embeds, mask = fold_padding(embeds)
        rows = self.text_embedding(embeds)
        return TextCache([LayerText(*layer.cross_attn.keys_values(rows), mask) for layer in self.layers])

    def rotations(self, positions: Tensor, latent_height: int, latent_width: int) -> Tensor:
        """Rotations of the tokens of latent frames at integer positions [T] -> [L, 1, D / 2, 2]."""
        rows, columns = latent_height // PATCH, latent_width // PATCH
        return rotation(positions.to(self.device), rows, columns, self.config.head_dim)

    def read_time(self, timesteps: Tensor, tokens: int = 1) -> TimeCache:
        """What timesteps 0..1000 ask of all layers: [1], or one a latent frame [B, T] of `tokens` tokens."""
        time = self.time_embedding(sinusoid(timesteps.to(self.device), self.config.freq_dim).to(self.dtype))
        time = time.view(-1, timesteps.shape[-1], self.config.dim)
        if time.shape[1] > 1:
            time = time.repeat_interleave(tokens, dim=1)
        modulation = self.time_projection(time).unflatten(-1, (6, -1))
        return TimeCache([layer.read_time(modulation) for layer in self.layers], self.head.read_time(time))

    def forward(
        self, latents: Tensor, time: TimeCache, rotations: Tensor, cache: KVCache, text: TextCache
    ) -> Tensor:
        """Noisy latents [B, C, T, H, W] at the noise level of `time` -> flow.

        Writes the K and V of these latents into the frames that `cache` has open.
        """
        x = self._embed(latents)
        seen = zip(self.layers, time.layers, cache.layers, text.layers, strict=True)
        for layer, layer_time, layer_cache, layer_text in seen:
            x = layer(x, layer_time, rotations, layer_cache, layer_text)
        return self._unpatchify(self.head(x, time.head), latents.shape)

    def remember(
        self, latents: Tensor, time: TimeCache, rotations: Tensor, cache: KVCache, text: TextCache
    ) -> None:
        """As forward, but only for what it leaves in the cache: stops at the last layer's K and V."""
        x = self._embed(latents)
        *body, last = zip(self.layers, time.layers, cache.layers, text.layers, strict=True)
        for layer, layer_time, layer_cache, layer_text in body:
            x = layer(x, layer_time, rotations, layer_cache, layer_text)
        layer, layer_time, layer_cache, _ = last
        layer.remember(x, layer_time, rotations, layer_cache)

    def _embed(self, latents: Tensor) -> Tensor:
        """Latents -> tokens [B, L, E]."""
        x = latents.to(self.dtype).unflatten(3, (-1, PATCH)).unflatten(5, (-1, PATCH))
        x = x.permute(0, 2, 3, 5, 1, 4, 6).reshape(len(latents), -1, self.patch_embedding.in_features)
        return self.patch_embedding(x)

    @staticmethod
    def _unpatchify(x: Tensor, shape: torch.Size) -> Tensor:
        """[B, L, (2, 2, C)] -> [B, C, T, H, W]."""
        batch, channels, frames, height, width = shape
        x = x.view(batch, frames, height // PATCH, width // PATCH, PATCH, PATCH, channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(shape)


def fold_padding(embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt embeddings [B, L, E] with their zero rows at the end as one row, and the mask [1, M] it needs.

    Attention on n equal rows is attention on one of them whose score is log(n) higher.
    """
    real = embeds.any(-1).any(0)
    padding = int(real.flip(0).cumsum(0).eq(0).sum())
    rows = embeds.shape[1] - max(padding - 1, 0)
    mask = embeds.new_zeros(1, rows)
    mask[0, -1] = log(max(padding, 1))
    return embeds[:, :rows], mask


def sinusoid(timesteps: Tensor, size: int) -> Tensor:
    """Timesteps of any shape -> [..., size]: cosines then sines, base 10000, in the widest float."""
    wide, half = widest_float(timesteps.device), size // 2
    exponents = torch.arange(half, dtype=wide, device=timesteps.device) / half
    angles = timesteps.to(wide).unsqueeze(-1) * TIMESTEP_BASE**-exponents
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
