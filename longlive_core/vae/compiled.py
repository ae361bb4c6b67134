"""A decoder's network compiled by torch for blocks in mid-video; the start of a video goes the plain way."""

import time
import weakref

import torch
from torch import Tensor, nn

from ..compiling import Compiled, new_size
from .autoencoder import WanAutoencoder
from .tiny import TinyAutoencoder

Past = list[Tensor] | None


class CompiledNetwork:
    """A decoder network's forward, compiled for latents [B, C, T, H, W] of one shape that have a past.

    It stands in place of the network's own forward and does not keep the network. Every past is brought into
    the one layout in memory that was compiled for.
    """

    def __init__(self, network: nn.Module, shape: torch.Size, layout: torch.memory_format):
        self._network, self._shape, self._layout = weakref.ref(network), shape, layout
        self.in_mid_video = Compiled(forward, dynamic=False, fullgraph=True)

    def __call__(self, latents: Tensor, past: Past = None) -> tuple[Tensor, list[Tensor]]:
        network = self._network()
        if not past or latents.shape != self._shape:
            return type(network).forward(network, latents, past)
        olds = [laid_out(old, self._layout) for old in past]
        past.clear()
        return self.in_mid_video(network, latents, *olds)


def forward(network: nn.Module, latents: Tensor, *olds: Tensor) -> tuple[Tensor, list[Tensor]]:
    """That of the network, as a function which uses up nothing of the caller's."""
    return type(network).forward(network, latents, list(olds))


def laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """x in that layout, its strides too: along an axis of size 1 they mean nothing, but a compiler asks."""
    like = torch.empty(x.shape, device="meta", memory_format=layout)
    return x.contiguous(memory_format=layout).as_strided(like.shape, like.stride())


def compile_decoder(decoder: WanAutoencoder | TinyAutoencoder, block_shape: tuple[int, ...]) -> str:
    """Compile for blocks [B, C, T, H, W] of latents; a sentence says how it went.

    Where there is no compiler, or it fails, the decoder stays as it is.
    """
    start = time.perf_counter()
    batch, channels, frames, height, width = block_shape
    shape = torch.Size((batch, channels, decoder.latents_a_pass or frames, height, width))
    layout = torch.channels_last_3d if isinstance(decoder, WanAutoencoder) else torch.contiguous_format
    decoder.decoder.forward = compiled = CompiledNetwork(decoder.decoder, shape, layout)
    with new_size():
        _try_out(decoder, block_shape)
    if compiled.in_mid_video.failure is not None:
        release_decoder(decoder)
        return f"decoder not compiled: {compiled.in_mid_video.failure}"
    return f"decoder compiled in {time.perf_counter() - start:.0f} s"


def release_decoder(decoder: WanAutoencoder | TinyAutoencoder) -> None:
    """Back to the plain way."""
    decoder.decoder.__dict__.pop("forward", None)


@torch.no_grad()
def _try_out(decoder: WanAutoencoder | TinyAutoencoder, block_shape: tuple[int, ...]) -> None:
    """Decode as a video would, the past of a compiled pass going into another."""
    latents = next(decoder.decoder.parameters()).new_zeros(block_shape)
    past = None
    for _ in range(3):
        _, past = decoder.decode(latents, past)
