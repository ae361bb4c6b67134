"""Latents <-> frames, piece by piece: exactly what decoding or encoding the whole at once gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..geometry import SPACE_STRIDE, TIME_STRIDE, num_frames

# How much of an earlier video a decoder is shown before it goes on. Tiny ones look at most 8 back; the Wan
# VAE further, but beyond this the difference is below what eight bits show (tested with random weights).
WARM_LATENT_FRAMES = 21
_WARM_PIECE = 3
TENSOR = "tensor"
RGB = 3
Shape = list["Shape"] | str | None  # lists within lists, TENSOR where there is one


class Decoder(Protocol):
    """What a StreamingDecoder needs of an autoencoder."""

    def decode(self, latents: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """Latents [B, C, T, H, W] and the past -> frames [B, F, 3, 8H, 8W] in [0, 1], new past.

        The past belongs to the call, which may empty it to save memory: it cannot be used twice.
        """


def decoded_by_latent(
    decode: Callable[[Tensor, Any], tuple[Tensor, Any]], latents: Tensor, past: Any
) -> tuple[Tensor, Any]:
    """Decode [B, C, T, H, W] one latent frame at a time -> (frames [B, F, 3, 8H, 8W] in fp32, new past).

    `decode` takes one latent frame and the past, and gives a video [B, 3, F, 8H, 8W] in any dtype.
    """
    batch, _, count, *cells = latents.shape
    size = [SPACE_STRIDE * cell for cell in cells]
    total = num_frames(count) if past is None else TIME_STRIDE * count
    frames, end = latents.new_empty(batch, total, RGB, *size, dtype=torch.float32), 0
    for latent in latents.split(1, dim=2):
        video, past = decode(latent, past)
        frames[:, end : end + video.shape[2]] = video.transpose(1, 2)
        end += video.shape[2]
    return frames, past


class Encoder(Protocol):
    """What a StreamingEncoder needs of an autoencoder."""

    def encode_next(self, frames: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """Frames [B, F, 3, 8H, 8W] in [0, 1] and the past -> normalised latents [B, C, T, H, W], new past.

        F is 1 + 4n at the start of a video, where there is no past, else 4n. The past is emptied by its use.
        """


def encoded_by_latent(
    encode: Callable[[Tensor, Any], tuple[Tensor, Any]], frames: Tensor, past: Any
) -> tuple[Tensor, Any]:
    """Encode [B, F, 3, 8H, 8W] one latent frame at a time -> (what `encode` gives for all, new past).

    `encode` takes the frames of one latent frame, 1 without a past, else 4. What is left over is left out.
    """
    count, first = frames.shape[1], int(past is None)
    starts = range(first, count - TIME_STRIDE + 1, TIME_STRIDE)
    groups = [*([frames[:, :1]] if first else []), *(frames[:, i : i + TIME_STRIDE] for i in starts)]
    made = []
    for group in groups:
        latent, past = encode(group, past)
        made.append(latent)
    return torch.cat(made, dim=2), past


class StreamingEncoder:
    """`push(frames)` returns the latents they add: 3 for the first 9 frames, then 3 for every 12."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._past: Any = None

    @torch.no_grad()
    def push(self, frames: Tensor, opens_scene: bool = False) -> Tensor:
        """Frames [B, F, 3, 8H, 8W] in [0, 1] -> latents [B, C, T, H, W]: F is 4T, at a scene's start 4T - 3.

        A push that fails changes nothing: the past that it used is kept until the new one is there.
        """
        past = None if opens_scene or self._past is None else list(self._past)
        latents, self._past = self._encoder.encode_next(frames, past)
        return latents


@dataclass(frozen=True)
class DecoderState:
    """A decoder's past: its shape, its tensors on the CPU, and the device on which it was used."""

    shape: Shape
    tensors: tuple[Tensor, ...] = field(repr=False)
    device: str


class StreamingDecoder:
    """`push(latents)` returns the frames they add: 9 for the first block of three, then 12."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._past: Any = None
        self._is_first_scene = True
        self._is_restored = False

    @torch.no_grad()
    def push(self, latents: Tensor, opens_scene: bool = False) -> Tensor:
        """Latents [B, C, T, H, W] -> frames [B, F, 3, 8H, 8W] in [0, 1].

        A new scene in mid-video drops the past; its first latent frame makes one frame, which is repeated for
        the four that are due, so that times in the video stay right. Raises ValueError where the past of
        another decoder was restored.
        """
        held = TIME_STRIDE - 1 if opens_scene and not self._is_first_scene else 0
        is_restored, self._is_restored = self._is_restored, False
        try:
            frames, self._past = self._decoder.decode(latents, None if opens_scene else self._past)
        except Exception as error:  # a damaged state may hold anything
            if not is_restored or lacks_memory(error):
                raise
            raise ValueError(
                "the decoder's state from the earlier video does not fit this VAE; "
                "connect the one that the video was made with, on the same device"
            ) from error
        self._is_first_scene = False
        return torch.cat((frames[:, :1].expand(-1, held, -1, -1, -1), frames), dim=1) if held else frames

    def warm(self, latents: Tensor, num_shown: int = 0) -> Tensor:
        """Show the end of an earlier video [B, C, T, H, W], so that the next push goes on from it.

        Returns the last `num_shown` of its frames [B, F, 3, 8H, 8W], fewer where there are fewer.
        """
        shown = None
        for piece in latents[:, :, -WARM_LATENT_FRAMES:].split(_WARM_PIECE, dim=2):
            frames = self.push(piece)
            shown = frames if shown is None else torch.cat((shown, frames), dim=1)
            shown = shown[:, max(0, shown.shape[1] - num_shown) :]
        return shown

    def forget(self) -> None:
        """Free the past: the next push opens a scene."""
        self._past = None

    def state(self) -> DecoderState:
        """What the next push goes on from, copied to the CPU."""
        leaves, spec = tree_flatten(self._past)
        shape = tree_unflatten([TENSOR if isinstance(leaf, Tensor) else None for leaf in leaves], spec)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        copies = tuple(tensor.to("cpu", copy=True) for tensor in tensors)
        return DecoderState(shape, copies, str(tensors[0].device) if tensors else "cpu")

    def restore(self, state: DecoderState) -> None:
        """Continue as the decoder would have that left this state.

        ValueError where its device is not here; from the next push where the state is another decoder's.
        """
        try:
            copies = [tensor.to(state.device, copy=True) for tensor in state.tensors]
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            if lacks_memory(error):
                raise
            raise ValueError(
                f"the earlier video was decoded on {state.device}, which this machine does not have; "
                "continue from its latents alone"
            ) from error
        leaves, spec = tree_flatten(state.shape)
        news = iter(copies)
        self._past = tree_unflatten([next(news) if leaf == TENSOR else None for leaf in leaves], spec)
        self._is_first_scene = False
        self._is_restored = True


def lacks_memory(error: Exception) -> bool:
    """Whether an error may say, in the words of torch or CUDA's libraries, that memory did not suffice."""
    return any(word in str(error).lower() for word in ("memory", "alloc"))
