"""VAEs as streaming decoders and encoders: ours for stock nodes, ComfyUI's with their weights shared."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..longlive_core.config import LONGLIVE_1_3B, Preset, WindowConfig
from ..longlive_core.geometry import SPACE_STRIDE, TIME_STRIDE, num_frames
from ..longlive_core.vae.autoencoder import WanAutoencoder
from ..longlive_core.vae.memory import decoder_bytes, encoder_bytes
from ..longlive_core.vae.streaming import Encoder, StreamingDecoder
from ..longlive_core.vae.tiled import TiledDecoder
from ..longlive_core.vae.tiny import TinyAutoencoder
from ..longlive_core.weights.vae_files import build_tiny_decoder, build_wan_autoencoder
from . import host
from .io_types import latent_space

BLOCK = WindowConfig().block_latent_frames
Autoencoder = WanAutoencoder | TinyAutoencoder
NO_ENCODER = "a tiny decoder only decodes; connect the Wan 2.1 VAE to encode images and footage"


class PlacedVae:
    """An autoencoder on its device, decoding in tiles if asked; it takes tensors from any device.

    `encoder` is itself, or None where it only decodes.
    """

    def __init__(self, autoencoder: Autoencoder, device: torch.device, is_tiled: bool = False):
        self._autoencoder, self._device = autoencoder, device
        self._decoder = TiledDecoder(autoencoder, past_device="cpu") if is_tiled else autoencoder
        self.encoder: Encoder | None = None if autoencoder.encoder is None else self

    def decode(self, latents: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """As the decoder itself."""
        return self._decoder.decode(latents.to(self._device), past)

    def encode(self, frames: Tensor) -> Tensor:
        """As the encoder itself; the latents are where the frames were."""
        return self._autoencoder.encode(frames.to(self._device)).to(frames.device)

    def encode_next(self, frames: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """The same, piece by piece."""
        latents, past = self._autoencoder.encode_next(frames.to(self._device), past)
        return latents.to(frames.device), past


@dataclass(eq=False)
class StreamVae:
    """A streaming decoder whose weights ComfyUI manages, and the preset whose latents it decodes.

    `kind` names it for estimates of memory: wan, tiled or tiny. Some only decode.
    """

    decoder: host.Managed[PlacedVae]
    preset: Preset
    kind: str
    has_encoder: bool = True


class OwnVae(StreamVae):
    """An autoencoder of ours behind a VAE socket: frames [F, H, W, 3] in [0, 1] <-> LATENT samples."""

    def __init__(self, autoencoder: Autoencoder, preset: Preset, is_tiled: bool = False):
        placed = PlacedVae(autoencoder, host.vae_device(), is_tiled)
        kind = "tiny" if isinstance(autoencoder, TinyAutoencoder) else "wan"
        managed, has_encoder = host.managed_vae(autoencoder, placed), autoencoder.encoder is not None
        super().__init__(managed, preset, "tiled" if is_tiled else kind, has_encoder)
        self._autoencoder = autoencoder

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        """Samples [B, C, T, H, W] -> frames [B, F, H, W, 3]: those of the stream, bit for bit."""
        return gathered(samples, decoded(self, samples))

    decode_tiled = decode  # streaming already bounds the memory

    def encode(self, pixels: Tensor) -> Tensor:
        """Frames [F, H, W, 3] -> samples [1, C, T, H, W]; F beyond 1 + 4n are left out."""
        if not self.has_encoder:
            raise ValueError(NO_ENCODER)
        height, width = pixels.shape[-3:-1]
        if height % SPACE_STRIDE or width % SPACE_STRIDE:
            raise ValueError(
                f"images of {width}x{height} cannot be encoded: "
                f"both sides must be multiples of {SPACE_STRIDE}; crop or resize them"
            )
        host.load([self.decoder])
        frames = pixels[..., :3].reshape(1, -1, height, width, 3).permute(0, 1, 4, 2, 3)
        latents = self._autoencoder.encode(frames.to(host.vae_device(), torch.float32)).cpu()
        return latent_space(self.preset).raw(latents)

    def spacial_compression_decode(self) -> int:
        return SPACE_STRIDE

    def temporal_compression_decode(self) -> int:
        return TIME_STRIDE


def stream_vae(vae: Any) -> StreamVae:
    """A VAE as our nodes use it; ValueError if it cannot decode a stream."""
    if isinstance(vae, StreamVae):
        return vae
    if host.is_wan_vae(vae):
        return shared(vae, build_wan_autoencoder, "wan")
    if host.is_tiny_vae(vae):
        return shared(vae, lambda state: build_tiny_decoder(state, is_raw=True), "tiny", has_encoder=False)
    raise ValueError(
        "this VAE cannot decode a stream; connect a Wan 2.1 VAE, or a tiny decoder from LongLive: Load VAE"
    )


def shared(
    vae: Any, build: Callable[[dict[str, Tensor]], Autoencoder], kind: str, has_encoder: bool = True
) -> StreamVae:
    """A VAE of ComfyUI's, run by our layers with the very weights that ComfyUI holds."""

    def placed(weights: dict[str, Tensor]) -> PlacedVae:
        try:
            return PlacedVae(build(weights), vae.device)
        except ValueError as error:
            raise ValueError(f"this VAE cannot decode a stream: {error}") from error

    bind = partial(host.built_once, vae, placed)
    return StreamVae(host.Managed(vae.patcher, bind), LONGLIVE_1_3B, kind, has_encoder)


def decoded(vae: StreamVae, samples: Tensor, scenes: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """LATENT samples [B, C, T, H, W] -> frames [B, F, H, W, 3], block by block, scene by scene."""
    latents = latent_space(vae.preset).normalised(samples)
    (decoder,) = host.load([vae.decoder], decode_bytes(vae, samples))
    stream = StreamingDecoder(decoder)
    for first, end in pieces(latents.shape[2], scenes):
        frames = stream.push(latents[:, :, first:end], opens_scene=first in scenes)
        yield frames.permute(0, 1, 3, 4, 2)


def pieces(num_latents: int, scenes: Sequence[int]) -> list[tuple[int, int]]:
    """Where latents are split to be decoded: into blocks, and where a scene begins within one.

    Scenes of a frame-wise model begin anywhere; those beyond the end were cut off by another node.
    """
    firsts = {*range(0, num_latents, BLOCK), *(first for first in scenes if first < num_latents)}
    return list(pairwise([*sorted(firsts), num_latents]))


def encode_bytes(vae: StreamVae, width: int, height: int) -> int:
    """Bytes that encoding needs next to the weights; ComfyUI accounts for GPUs only."""
    if host.vae_device().type == "cpu":
        return 0
    return sum(encoder_bytes(vae.preset, BLOCK, (width, height), host.vae_dtype()))


def decode_bytes(vae: StreamVae, samples: Tensor) -> int:
    """The same for decoding."""
    if host.vae_device().type == "cpu":
        return 0
    size = (samples.shape[4] * SPACE_STRIDE, samples.shape[3] * SPACE_STRIDE)
    _, past, working = decoder_bytes(vae.preset, vae.kind, BLOCK, size, host.vae_dtype())
    return past + working


def gathered(samples: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """The frames [B, F, H, W, 3] of LATENT samples in one tensor on the CPU, filled part by part."""
    whole, end = None, 0
    for part in parts:
        if whole is None:
            whole = torch.empty((len(part), num_frames(samples.shape[2]), *part.shape[2:]))
        whole[:, end : end + part.shape[1]] = part
        end += part.shape[1]
    return whole
