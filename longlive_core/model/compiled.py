"""Layers compiled by torch: one layer is compiled, all of them run it (regional compilation).

Compiled are the two halves of a layer around its cache, which are pure and have fixed shapes, so nothing is
compiled again while the window grows, when its ring turns or when a prompt changes. Tokens in any other
number, as in a recache, go the plain way.
"""

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..compiling import Compiled, new_size
from .causal_wan import CausalWan
from .layers import Layer
from .rope import rotation

HALVES = (Layer.ask, Layer.recall, Layer.answer)
ON_CARDS = {"triton.multi_kernel": 1}  # norms of this width are faster in one read, which has to be tried


class CompiledLayers:
    """The halves of all layers of a model, compiled for tokens [B, L, E] of one shape."""

    def __init__(self, shape: tuple[int, ...], options: dict[str, Any] | None):
        self.shape = torch.Size(shape)
        how = {"dynamic": False, "fullgraph": True, "options": options}
        self._halves = {half: Compiled(half, **how) for half in HALVES}

    @property
    def failure(self) -> str | None:
        """Why a half could not be compiled, if so."""
        return next((half.failure for half in self._halves.values() if half.failure is not None), None)

    def run(self, layer: Layer, half: Callable[..., Any], x: Tensor, *rest: Any) -> Any:
        """As Layer.run."""
        chosen = self._halves[half] if x.shape == self.shape else half
        return chosen(layer, x, *rest)


class Runner:
    """What stands in place of a layer's own `run`; it does not keep the layer."""

    def __init__(self, layers: CompiledLayers, layer: Layer):
        self._layers, self._layer = layers, weakref.ref(layer)

    def __call__(self, half: Callable[..., Any], x: Tensor, *rest: Any) -> Any:
        return self._layers.run(self._layer(), half, x, *rest)


def compile_layers(model: CausalWan, batch: int, frames: int, tokens: int) -> str:
    """Compile for blocks of so many latent frames and tokens a latent frame; a sentence says how it went.

    The first time takes up to a minute or two; later starts find the result on disk. Where there is no
    compiler, or it fails, the layers stay as they are.
    """
    shape, start = (batch, frames * tokens, model.config.dim), time.perf_counter()
    for options in (ON_CARDS, None) if model.device.type == "cuda" else (None,):
        layers = CompiledLayers(shape, options)
        with new_size():
            _try_out(model, layers, frames, tokens)
        if not layers.failure:
            for layer in model.layers:
                layer.run = Runner(layers, layer)
            return f"layers compiled in {time.perf_counter() - start:.0f} s"
    return f"not compiled, every operator runs by itself as with speed plain: {layers.failure}"


def release_layers(model: CausalWan) -> None:
    """Back to the plain way."""
    for layer in model.layers:
        layer.__dict__.pop("run", None)


@torch.no_grad()
def _try_out(model: CausalWan, layers: CompiledLayers, frames: int, tokens: int) -> None:
    """Run every half as a block would, which compiles it; on two layers, to see that they share it."""
    config = model.config
    x, seen = (torch.zeros(layers.shape, device=model.device, dtype=model.dtype) for _ in range(2))
    seen = seen.unflatten(-1, (config.num_heads, -1))
    rotations = rotation(torch.arange(frames, device=model.device), 1, tokens, config.head_dim)
    times = model.read_time(torch.zeros(1)).layers
    embeds = torch.zeros(1, config.text_tokens, config.text_dim)
    embeds[:, : config.text_tokens // 2] = 1  # a prompt and padding
    texts = model.read_text(embeds).layers
    for layer, level, text in list(zip(model.layers, times, texts, strict=True))[:2]:
        if text.mask is not None:
            for rows in (text.keys, text.values, text.mask):
                torch._dynamo.maybe_mark_dynamic(rows, 1)  # prompts of all lengths share one graph
        layers.run(layer, Layer.ask, x, level, rotations)
        layers.run(layer, Layer.recall, x, level, rotations)
        layers.run(layer, Layer.answer, x, seen, level, text)
