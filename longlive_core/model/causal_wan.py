"""The causal Wan transformer: noisy latents of one block in, flow out; embed -> layers -> head.

It sees the past only through the cache that the caller passes in, and the prompt only through the text
cache. It knows neither blocks, nor sigmas, nor seeds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import ceil, log
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import MAX_TOKENS, ModelConfig
from ..fast.compiled import Compiled
from ..geometry import PATCH
from .attention import Attend, sdpa
from .cache import KVCache, LayerCache, LayerText, TextCache
from .layers import Head, Layer, Linear, Modulation
from .rope import rotation, widest_float

TIMESTEP_BASE = 10000.0


class LayerCalls(NamedTuple):
    """How a layer is run, eagerly or compiled: on all open tokens, or in parts, in two steps.

    Eager calls ask the layer itself, whose methods gather its weights where these are sharded.
    """

    forward: Callable[..., Any] = Layer.__call__
    fill_cache: Callable[..., Any] = lambda layer, *inputs: layer.fill_cache(*inputs)
    on_filled: Callable[..., Any] = lambda layer, *inputs: layer.on_filled(*inputs)


class Modulations(NamedTuple):
    """Modulation of every layer and of the head at one noise level; computed once, it serves all blocks."""

    layers: list[Modulation]
    head: tuple[Tensor, Tensor]


class Clean(NamedTuple):
    """The first `frames` latent frames of a pass are clean: their modulations are of noise level 0."""

    frames: int
    time: Modulations


class Hints(NamedTuple):
    """What VACE adds to the tokens of a pass: after layer places[n] the n-th of `made`, times `scale`.

    `made` takes a function that runs a layer, all parts of the tokens, and how many of these are clean.
    """

    places: Sequence[int]
    scale: float
    made: Callable[[Callable[..., None], list[Tensor], int], Iterator[list[Tensor]]]


class CausalWan(nn.Module):
    """Wan 2.1 text-to-video transformer, run causally over latent frames (LongLive, section 3).

    `attend` is for the window, `attend_text` for the prompt's 512 rows, where special kernels gain nothing.
    More than `max_tokens` go through each layer in parts, so that a recache takes little more than a block.
    `vace`, where a file of it was grafted on, is run by a ControlledWan alone.
    """

    context_of = None

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
        self.vace: nn.Module | None = None
        self.max_tokens = MAX_TOKENS
        self._calls = LayerCalls()
        self._is_failure_reported = False

    @property
    def is_compiled(self) -> bool:
        return isinstance(self._calls.forward, Compiled)

    def compile_layers(self, is_compiled: bool) -> bool:
        """Run the layers compiled from now on, or eagerly; True if compiling is still to come."""
        is_new = is_compiled and not self.is_compiled
        if is_new:
            functions = Layer.forward, Layer.fill_cache, Layer.on_filled
            self._calls = LayerCalls(*(Compiled(function, self.device) for function in functions))
            self._is_failure_reported = False
        elif not is_compiled:
            self._calls = LayerCalls()
        return is_new

    @property
    def compile_failure(self) -> Exception | None:
        """Why compiled layers run eagerly after all; None where they do not."""
        failures = (getattr(call, "failure", None) for call in self._calls)
        return next(filter(None, failures), None)

    def take_compile_failure(self) -> Exception | None:
        """The same, but only once; None where an earlier call returned it."""
        failure = None if self._is_failure_reported else self.compile_failure
        self._is_failure_reported |= failure is not None
        return failure

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic, the latents and the cache; weights may be stored smaller."""
        return self.patch_embedding.bias.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def encode_text(self, embeds: Tensor) -> TextCache:
        """Prompt embeddings [B, text tokens, text dim] (padding rows zero) -> K and V of every layer.

        On a CPU the padding is folded into one row; kernels of GPUs want no mask, compiled layers one size.
        """
        return TextCache(self.text_of(self.layers, embeds))

    def text_of(self, layers: Sequence[Layer], embeds: Tensor) -> list[LayerText]:
        """The same for other layers of this width."""
        embeds, mask = embeds.to(self.device, self.dtype), None
        is_eager = not (torch.is_grad_enabled() or self.is_compiled)
        if self.device.type == "cpu" and is_eager:
            embeds, mask = fold_padding(embeds)
        rows = self.text_embedding(embeds)
        return [LayerText(*layer.text_kv(rows), mask) for layer in layers]

    def rotations(self, positions: Tensor, latent_height: int, latent_width: int) -> Tensor:
        """Rotations of the tokens of latent frames at integer positions [T] -> [L, 1, D / 2, 2]."""
        rows, columns = latent_height // PATCH, latent_width // PATCH
        return rotation(positions.to(self.device), rows, columns, self.config.head_dim)

    def modulations(self, timesteps: Tensor, tokens: int = 1) -> Modulations:
        """Timesteps 0..1000, [1] or one a latent frame [B, T] of `tokens` tokens -> all modulations."""
        layers, time = self.modulations_of(self.layers, timesteps, tokens)
        return Modulations(layers, self.head.modulation_at(time))

    def modulations_of(
        self, layers: Sequence[Layer], timesteps: Tensor, tokens: int = 1
    ) -> tuple[list[Modulation], Tensor]:
        """The same for other layers of this width, and the time embedding [B or 1, L or 1, E] itself."""
        time = self.time_embedding(sinusoid(timesteps.to(self.device), self.config.freq_dim).to(self.dtype))
        time = time.view(-1, timesteps.shape[-1], self.config.dim)
        if time.shape[1] > 1:
            time = time.repeat_interleave(tokens, dim=1)
        by_layer = self.time_projection(time).unflatten(-1, (6, -1))
        return [layer.modulation_at(by_layer) for layer in layers], time

    def forward(
        self,
        latents: Tensor,
        time: Modulations,
        rotations: Tensor,
        cache: KVCache,
        text: TextCache,
        clean: Clean | None = None,
        hints: Hints | None = None,
    ) -> Tensor:
        """Noisy latents [B, C, T, H, W] at the noise level of `time` -> flow.

        Writes the K and V of these latents into the frames that `cache` has open. A pass with `clean` frames
        runs eagerly: its parts have sizes of their own, for which nothing is compiled.
        """
        calls, at_once = self._calls, [(latents, time)]
        if clean:
            given, made = latents.tensor_split([clean.frames], dim=2)
            calls, at_once = LayerCalls(), [(given, clean.time), (made, time)]
        embedded = [(part, of_part) for some, of_part in at_once for part in self._embedded(some)]
        parts, times = map(list, zip(*embedded, strict=True))
        del embedded  # it would keep the tokens of the first layer
        by_layer = zip(*(time.layers for time in times), strict=True)
        layers = zip(self.layers, by_layer, cache.layers, text.layers, strict=True)
        num_clean = sum(time is not times[-1] for time in times)
        self._run_all(calls, layers, parts, rotations, hints, num_clean)
        flow = [self.head(x, time.head) for x, time in zip(parts, times, strict=True)]
        return self._unpatchify(torch.cat(flow, dim=1), latents.shape)

    def fill_cache(
        self,
        latents: Tensor,
        time: Modulations,
        rotations: Tensor,
        cache: KVCache,
        text: TextCache,
        hints: Hints | None = None,
    ) -> None:
        """As forward, but only for the K and V it leaves in the cache: stops at the last layer's."""
        parts, calls = self._embedded(latents), self._calls
        by_layer = ((own,) * len(parts) for own in time.layers)
        *body, last = zip(self.layers, by_layer, cache.layers, text.layers, strict=True)
        self._run_all(calls, body, parts, rotations, hints)
        layer, layer_times, layer_cache, _ = last
        self._fill(calls, layer, parts, rotations, layer_times, layer_cache)

    def _run_all(
        self,
        calls: LayerCalls,
        layers: Iterable[tuple],
        parts: list[Tensor],
        rotations: Tensor,
        hints: Hints | None,
        num_clean: int = 0,
    ) -> None:
        """Put tokens in parts through layers, each with its inputs, in place; hints are added on the way."""
        made = hints and hints.made(partial(self._run, calls), [*parts], num_clean)
        for index, (layer, *inputs) in enumerate(layers):
            self._run(calls, layer, parts, rotations, *inputs)
            if hints and index in hints.places:
                pairs = zip(parts, next(made), strict=True)
                parts[:] = [torch.add(x, hint, alpha=hints.scale) for x, hint in pairs]

    def _run(
        self,
        calls: LayerCalls,
        layer: Layer,
        parts: list[Tensor],
        rotations: Tensor,
        times: Sequence[Modulation],
        cache: LayerCache,
        text: LayerText,
    ) -> None:
        """Put tokens in parts [B, L, E] through a layer, in place; all are cached before any attends.

        `times` are the layer's modulations, one a part.
        """
        if len(parts) == 1:
            parts[0] = calls.forward(layer, parts[0], rotations, times[0], cache, text)
            return
        self._fill(calls, layer, parts, rotations, times, cache)
        seen = cache.seen()
        for index, places in enumerate(split_like(rotations, parts)):
            parts[index] = calls.on_filled(layer, parts[index], places, times[index], seen, text)

    def _fill(
        self,
        calls: LayerCalls,
        layer: Layer,
        parts: list[Tensor],
        rotations: Tensor,
        times: Sequence[Modulation],
        cache: LayerCache,
    ) -> None:
        """Leave the K and V of all parts in the cache of a layer."""
        places = split_like(rotations, parts), split_like(cache.tokens, parts)
        for x, time, part_rotations, tokens in zip(parts, times, *places, strict=True):
            calls.fill_cache(layer, x, part_rotations, time, cache, tokens)

    def _embedded(self, latents: Tensor) -> list[Tensor]:
        """Latents [B, C, T, H, W] -> tokens [B, L, E] in parts; in one where gradients are asked for."""
        x = patches(latents.to(self.dtype))
        num_parts = 1 if torch.is_grad_enabled() else ceil(x.shape[1] / self.max_tokens)
        return [self.patch_embedding(part) for part in x.chunk(num_parts, dim=1)]

    @staticmethod
    def _unpatchify(x: Tensor, shape: torch.Size) -> Tensor:
        """Tokens [B, L, (2, 2, C)] -> latents [B, C, T, H, W]."""
        sizes = {"t": shape[2], "h": shape[3] // PATCH, "p": PATCH, "q": PATCH}
        return rearrange(x, "b (t h w) (p q c) -> b c t (h p) (w q)", **sizes)


def patches(latents: Tensor) -> Tensor:
    """Latents [B, C, T, H, W] -> [B, tokens, 4 C], a row for every 2x2 patch."""
    return rearrange(latents, "b c t (h p) (w q) -> b (t h w) (c p q)", p=PATCH, q=PATCH)


def split_like(places: Tensor, parts: list[Tensor]) -> tuple[Tensor, ...]:
    """Rows [L, ...] of all tokens -> those of each part [B, L of the part, E]."""
    return places.split([part.shape[1] for part in parts])


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
