"""A model made ready for blocks of one size: attention chosen, layers compiled, passes recorded.

Each of them is an option that falls back to the plain way, says so once in a sentence, and never stops a run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .config import WindowConfig
from .geometry import tokens_per_frame
from .model.attention import AUTO, attention_backend
from .model.causal_wan import CausalWan
from .model.compiled import compile_layers, release_layers
from .model.fastest import AttentionShape, fastest_attention
from .model.graphs import CudaRecorder, GraphedModel

PLAIN, GRAPHS, COMPILED = SPEEDS = ("plain", "graphs", "compiled")


@dataclass(frozen=True)
class Speed:
    """How to run a model.

    `layers`: plain; graphs (passes recorded as CUDA graphs); compiled (layers compiled by torch, and on cards
    graphs). `attention` auto: on cards the fastest exact backend; any other leaves it as it was loaded.
    """

    layers: str = PLAIN
    attention: str = "sdpa"

    def __post_init__(self):
        if self.layers not in SPEEDS:
            raise ValueError(f"unknown speed {self.layers!r}; choose one of {', '.join(SPEEDS)}")


def made_ready(
    model: CausalWan, speed: Speed, window: WindowConfig, block_shape: tuple[int, ...]
) -> tuple[CausalWan | GraphedModel, list[str]]:
    """The model to make blocks [B, C, T, H, W] of latents with, and what the user should know of it."""
    notes = list(_settle_layers(model, speed, window, block_shape))
    if speed.layers == PLAIN:
        return model, notes
    if model.device.type != "cuda":
        if speed.layers == GRAPHS:
            notes.append("speed graphs needs an NVIDIA card; every pass is launched step by step here")
        return model, notes
    return GraphedModel(model, CudaRecorder()), notes


def _settle_layers(
    model: CausalWan, speed: Speed, window: WindowConfig, block_shape: tuple[int, ...]
) -> Iterator[str]:
    batch, _, frames, height, width = block_shape
    tokens = tokens_per_frame(height, width)
    if speed.attention == AUTO and model.device.type == "cuda" and window.window_latent_frames:
        yield f"attention by {_fastest(model, AttentionShape.of(model.config, window, tokens))}"
    release_layers(model)
    if speed.layers == COMPILED:
        yield compile_layers(model, batch, frames, tokens)


def _fastest(model: CausalWan, shape: AttentionShape) -> str:
    """Let self-attention run by the fastest backend for that shape; returns its name."""
    name = fastest_attention(shape, model.device, model.dtype)
    for layer in model.layers:
        layer.self_attn.attend = attention_backend(name)
    return name


def synchronize(device: torch.device) -> None:
    """Wait until a card has done all that it was given; nothing to wait for elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
