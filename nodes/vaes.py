"""VAEs as streaming decoders: ours for stock nodes, ComfyUI's with their weights shared."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..longlive_core.config import LONGLIVE_1_3B, Preset, WindowConfig
from ..longlive_core.geometry import SPACE_STRIDE, TIME_STRIDE, num_frames
from ..longlive_core.vae.autoencoder import WanAutoencoder
from ..longlive_core.vae.memory import decoder_bytes
from ..longlive_core.vae.streaming import Decoder, StreamingDecoder
from ..longlive_core.vae.tiled import TiledDecoder
from ..longlive_core.vae.tiny import TinyAutoencoder
from ..longlive_core.weights.vae_files import build_tiny_decoder, build_wan_autoencoder
from . import host
from .io_types import latent_space

BLOCK = WindowConfig().block_latent_frames
Autoencoder = WanAutoencoder | TinyAutoencoder


class PlacedDecoder:
    """A decoder on its device, in tiles if asked; it takes latents from any device."""

    def __init__(self, decoder: Decoder, device: torch.device, is_tiled: bool = False):
        self._decoder = TiledDecoder(decoder, past_device="cpu") if is_tiled else decoder
        self._device = device

    def decode(self, latents: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """As the decoder itself."""
        return self._decoder.decode(latents.to(self._device), past)


@dataclass(eq=False)
class StreamVae:
    """A streaming decoder whose weights ComfyUI manages, and the preset whose latents it decodes.

    `kind` names it for estimates of memory: wan, tiled or tiny.
    """

    decoder: host.Managed[Decoder]
    preset: Preset
    kind: str


class OwnVae(StreamVae):
    """An autoencoder of ours behind a VAE socket: frames [F, H, W, 3] in [0, 1] <-> LATENT samples."""

    def __init__(self, autoencoder: Autoencoder, preset: Preset, is_tiled: bool = False):
        decoder = PlacedDecoder(autoencoder, host.vae_device(), is_tiled)
        kind = "tiny" if isinstance(autoencoder, TinyAutoencoder) else "wan"
        super().__init__(host.managed_vae(autoencoder, decoder), preset, "tiled" if is_tiled else kind)
        self._autoencoder = autoencoder

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        """Samples [B, C, T, H, W] -> frames [B, F, H, W, 3]: those of the stream, bit for bit."""
        return gathered(samples, decoded(self, samples))

    decode_tiled = decode  # streaming already bounds the memory

    def encode(self, pixels: Tensor) -> Tensor:
        """Frames [F, H, W, 3] -> samples [1, C, T, H, W]; F beyond 1 + 4n are left out."""
        if self._autoencoder.encoder is None:
            raise ValueError("a tiny decoder only decodes; connect the Wan 2.1 VAE to encode images")
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
        return shared(vae, lambda state: build_tiny_decoder(state, is_raw=True), "tiny")
    raise ValueError(
        "this VAE cannot decode a stream; connect a Wan 2.1 VAE, or a tiny decoder from LongLive: Load VAE"
    )


def shared(vae: Any, build: Callable[[dict[str, Tensor]], nn.Module], kind: str) -> StreamVae:
    """A VAE of ComfyUI's, decoded by our layers with the very weights that ComfyUI holds."""

    def decoder_of(weights: dict[str, Tensor]) -> Decoder:
        try:
            return PlacedDecoder(build(weights), vae.device)
        except ValueError as error:
            raise ValueError(f"this VAE cannot decode a stream: {error}") from error

    bind = partial(host.built_once, vae, decoder_of)
    return StreamVae(host.Managed(vae.patcher, bind), LONGLIVE_1_3B, kind)


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


def decode_bytes(vae: StreamVae, samples: Tensor) -> int:
    """Bytes that decoding needs next to the weights; ComfyUI accounts for GPUs only."""
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
