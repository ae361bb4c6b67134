"""Model and decoder made ready for blocks of one size: attention chosen, both compiled, passes recorded.

Each of them is an option that falls back to the plain way, says so once in a sentence, and never stops a run.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .config import WindowConfig
from .geometry import tokens_per_frame
from .model.attention import AUTO, Attend, attention_backend, is_recordable
from .model.causal_wan import CausalWan
from .model.compiled import compile_layers, release_layers
from .model.fastest import AttentionShape, fastest_attention
from .model.graphs import CudaRecorder, GraphedModel
from .vae.autoencoder import WanAutoencoder
from .vae.compiled import compile_decoder, release_decoder
from .vae.tiny import TinyAutoencoder

PLAIN, GRAPHS, COMPILED = SPEEDS = ("plain", "graphs", "compiled")
ROOMY_CARD = 20 * 2**30  # bytes: a compiled Wan decoder holds its past twice, 3 GiB at 832x480
PATIENCE = "the first time takes up to a minute or two, later ones find the result on disk"
Tell = Callable[[str], None]  # what the user should know


@dataclass(frozen=True)
class Speed:
    """How to run a model.

    `layers`: plain; graphs (passes recorded as CUDA graphs); compiled (layers compiled by torch, on cards the
    decoder too, and graphs). `attention` auto: on cards the fastest exact backend; any other leaves it as it
    was loaded.
    """

    layers: str = PLAIN
    attention: str = "sdpa"

    def __post_init__(self):
        if self.layers not in SPEEDS:
            raise ValueError(f"unknown speed {self.layers!r}; choose one of {', '.join(SPEEDS)}")


class Settled(NamedTuple):
    """What a module was last made ready for, and what was said of it."""

    wanted: Hashable
    notes: list[str]


_SETTLED: WeakKeyDictionary[nn.Module, Settled] = WeakKeyDictionary()
_LOADED_WITH: WeakKeyDictionary[CausalWan, Attend] = WeakKeyDictionary()  # before a faster one was chosen


def made_ready(
    model: CausalWan, speed: Speed, window: WindowConfig, block_shape: tuple[int, ...], tell: Tell
) -> CausalWan | GraphedModel:
    """The model to make blocks [B, C, T, H, W] of latents with; the same object is made ready only once."""
    wanted = (speed, window, block_shape, model.device, model.dtype)
    _settle(model, wanted, lambda: _settle_layers(model, speed, window, block_shape, tell), tell)
    if speed.layers == PLAIN:
        return model
    if model.device.type != "cuda":
        if speed.layers == GRAPHS:
            tell("speed graphs needs an NVIDIA card; every pass is launched step by step here")
        return model
    if not is_recordable(model.layers[0].self_attn.attend):
        tell("this attention cannot be recorded as CUDA graphs; every pass is launched step by step")
        return model
    return GraphedModel(model, CudaRecorder(model.device))


def ready_decoder(decoder: Any, speed: Speed, block_shape: tuple[int, ...], tell: Tell) -> None:
    """Compile a decoder of ours on a card, where that is wanted; any other stays as it is.

    One that wraps another shows it as `inner`. On CPUs the convolutions take nearly all of the time, which no
    compiler changes.
    """
    while hasattr(decoder, "inner"):
        decoder = decoder.inner
    if not isinstance(decoder, WanAutoencoder | TinyAutoencoder):
        return
    is_compiled = speed.layers == COMPILED and runs_on_card(decoder)
    wanted = (is_compiled, block_shape, decoder.decoder.stem.weight.dtype)
    _settle(decoder, wanted, lambda: _settle_decoder(decoder, is_compiled, block_shape, tell), tell)


def _settle(module: nn.Module, wanted: Hashable, work: Callable[[], Iterator[str]], tell: Tell) -> None:
    """Do the work that makes a module ready, unless it is; what is to be said is said every time."""
    known = _SETTLED.get(module)
    if not known or known.wanted != wanted:
        known = _SETTLED[module] = Settled(wanted, list(work()))
    for note in known.notes:
        tell(note)


def _settle_layers(
    model: CausalWan, speed: Speed, window: WindowConfig, block_shape: tuple[int, ...], tell: Tell
) -> Iterator[str]:
    batch, _, frames, height, width = block_shape
    tokens = tokens_per_frame(height, width)
    if speed.attention == AUTO and model.device.type == "cuda" and window.window_latent_frames:
        yield f"attention by {_fastest(model, AttentionShape.of(model.config, window, tokens))}"
    elif model in _LOADED_WITH:
        _attend_by(model, _LOADED_WITH[model])
    release_layers(model)
    if speed.layers == COMPILED:
        tell(f"compiling the layers; {PATIENCE}")
        yield compile_layers(model, batch, frames, tokens)


def _settle_decoder(
    decoder: WanAutoencoder | TinyAutoencoder, is_compiled: bool, block_shape: tuple[int, ...], tell: Tell
) -> Iterator[str]:
    release_decoder(decoder)
    device = decoder.decoder.stem.weight.device
    if is_compiled and isinstance(decoder, WanAutoencoder) and not has_room_to_compile(device):
        yield "the full decoder is not compiled: on a card of less than 20 GiB its memory counts for more"
    elif is_compiled:
        tell(f"compiling the decoder; {PATIENCE}")
        yield compile_decoder(decoder, block_shape)


def runs_on_card(decoder: WanAutoencoder | TinyAutoencoder) -> bool:
    """Whether its weights are on a card."""
    return decoder.decoder.stem.weight.is_cuda


def has_room_to_compile(device: torch.device) -> bool:
    """Whether a card is large enough to compile the full decoder for; one that is not here is."""
    is_here = device.type == "cuda" and torch.cuda.is_available()
    return not is_here or torch.cuda.get_device_properties(device).total_memory >= ROOMY_CARD


def _fastest(model: CausalWan, shape: AttentionShape) -> str:
    """Let self-attention run by the fastest backend for that shape; returns its name."""
    name = fastest_attention(shape, model.device, model.dtype)
    _LOADED_WITH.setdefault(model, model.layers[0].self_attn.attend)
    _attend_by(model, attention_backend(name))
    return name


def _attend_by(model: CausalWan, attend: Attend) -> None:
    for layer in model.layers:
        layer.self_attn.attend = attend


def synchronize(device: torch.device) -> None:
    """Wait until a card has done all that it was given; nothing to wait for elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
