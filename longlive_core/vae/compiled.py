"""A decoder's network compiled by torch for blocks in mid-video; the start of a video goes the plain way."""

import functools
import time

import torch
from torch import Tensor, nn

from ..reasons import reason_of
from .autoencoder import WanAutoencoder
from .tiny import TinyAutoencoder

Past = list[Tensor] | None


class CompiledNetwork:
    """A decoder network's forward, compiled for latents [B, C, T, H, W] of one shape that have a past."""

    def __init__(self, network: nn.Module, shape: torch.Size):
        plain = type(network).forward
        self._shape = shape
        self._plain = functools.partial(plain, network)
        self._compiled = functools.partial(torch.compile(plain, dynamic=False, fullgraph=True), network)

    def __call__(self, latents: Tensor, past: Past = None) -> tuple[Tensor, list[Tensor]]:
        run = self._compiled if past and latents.shape == self._shape else self._plain
        return run(latents, past)


def compile_decoder(decoder: WanAutoencoder | TinyAutoencoder, block_shape: tuple[int, ...]) -> str:
    """Compile for blocks [B, C, T, H, W] of latents; a sentence says how it went.

    Where there is no compiler, or it fails, the decoder stays as it is.
    """
    network, start = decoder.decoder, time.perf_counter()
    batch, channels, frames, height, width = block_shape
    shape = torch.Size((batch, channels, decoder.latents_a_pass or frames, height, width))
    try:
        network.forward = CompiledNetwork(network, shape)
        _try_out(decoder, block_shape)
    except Exception as error:  # the compiler's failures have no common kind
        release_decoder(decoder)
        return f"decoder not compiled: {reason_of(error)}"
    return f"decoder compiled in {time.perf_counter() - start:.0f} s"


def release_decoder(decoder: nn.Module) -> None:
    """Back to the plain way."""
    decoder.decoder.__dict__.pop("forward", None)


@torch.no_grad()
def _try_out(decoder: WanAutoencoder | TinyAutoencoder, block_shape: tuple[int, ...]) -> None:
    """Decode as a video would, the past of a compiled pass going into another."""
    latents = next(decoder.decoder.parameters()).new_zeros(block_shape)
    past = None
    for _ in range(3):
        _, past = decoder.decode(latents, past)
