"""Latents in, frames out, piece by piece: exactly the frames of decoding the whole at once."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ..geometry import TIME_STRIDE

# How much of an earlier video a decoder is shown before it goes on. Tiny ones look at most 8 back; the Wan
# VAE further, but beyond this the difference is below what eight bits show (tested with random weights).
WARM_LATENT_FRAMES = 21
_WARM_PIECE = 3


class Decoder(Protocol):
    """What a StreamingDecoder needs of an autoencoder."""

    def decode(self, latents: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """Latents [B, C, T, H, W] and the past -> frames [B, F, 3, 8H, 8W] in [0, 1], new past.

        The past belongs to the call, which may empty it to save memory: it cannot be used twice.
        """


class StreamingDecoder:
    """`push(latents)` returns the frames they add: 9 for the first block of three, then 12."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._past: Any = None
        self._is_first_scene = True

    @torch.no_grad()
    def push(self, latents: Tensor, opens_scene: bool = False) -> Tensor:
        """Latents [B, C, T, H, W] -> frames [B, F, 3, 8H, 8W] in [0, 1].

        A new scene in mid-video forgets the old one; its first latent frame makes one picture, which is held
        for the four that are due, so that the clock of the video goes on.
        """
        held = TIME_STRIDE - 1 if opens_scene and not self._is_first_scene else 0
        past = None if opens_scene else self._past
        frames, self._past = self._decoder.decode(latents, past)
        self._is_first_scene = False
        return torch.cat((frames[:, :1].expand(-1, held, -1, -1, -1), frames), dim=1) if held else frames

    def warm(self, latents: Tensor) -> None:
        """Show the end of an earlier video [B, C, T, H, W], so that the next push goes on from it."""
        for piece in latents[:, :, -WARM_LATENT_FRAMES:].split(_WARM_PIECE, dim=2):
            self.push(piece)
