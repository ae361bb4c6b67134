"""LongLive Mini's text encoder and autoencoder with the faces of the host's CLIP and VAE.

Stock nodes (CLIP Text Encode, VAE Decode, VAE Encode) call these methods and no others.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..longlive_core.config import WindowConfig
from ..longlive_core.geometry import SPACE_STRIDE, TIME_STRIDE, num_frames
from ..longlive_core.text import WordEncoder
from ..longlive_core.vae.streaming import StreamingDecoder
from ..longlive_core.vae.tiny import TinyAutoencoder

BLOCK = WindowConfig().block_latent_frames
Tokens = dict[str, list[list[tuple[int, float]]]]


class MiniClip:
    """Prompts -> tokens -> embeddings, as the host's text encoders do it."""

    def __init__(self, words: WordEncoder):
        self._words = words

    def tokenize(self, text: str, return_word_ids: bool = False, **_: Any) -> Tokens:
        """One list of (word, weight); LongLive Mini knows no weights, so they are all 1."""
        tokens = self._words.tokenize(text)
        return {"mini": [[(t, 1.0, i) if return_word_ids else (t, 1.0) for i, t in enumerate(tokens, 1)]]}

    def encode_from_tokens(
        self, tokens: Tokens, return_pooled: bool | str = False, return_dict: bool = False
    ) -> Tensor | tuple[Tensor, None] | dict[str, Tensor | None]:
        """Embeddings [1, text tokens, text dim]; there is no pooled one."""
        cond = self._words([" ".join(self._words.words[token] for token, *_ in tokens["mini"][0])])
        if return_dict:
            return {"cond": cond, "pooled_output": None}
        return (cond, None) if return_pooled else cond

    def encode_from_tokens_scheduled(self, tokens: Tokens, add_dict: dict | None = None, **_: Any) -> list:
        """A CONDITIONING of one entry."""
        return [[self.encode_from_tokens(tokens), {"pooled_output": None, **(add_dict or {})}]]


class MiniVae:
    """Pictures [F, H, W, 3] in [0, 1] <-> latents [1, C, T, H, W], as the host's video VAEs do it."""

    def __init__(self, autoencoder: TinyAutoencoder):
        self.autoencoder = autoencoder

    @property
    def device(self) -> torch.device:
        return self.autoencoder.mean.device

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        """Latents [B, C, T, H, W] -> frames [B, F, H, W, 3]: those of the stream, bit for bit."""
        return gathered(samples, decoded(self.autoencoder, samples.to(self.device)))

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        """The same: streaming already bounds the memory."""
        return self.decode(samples)

    def encode(self, pixels: Tensor) -> Tensor:
        """Frames [F, H, W, 3] -> latents [1, C, T, H, W]; F beyond 1 + 4n are left out."""
        height, width = pixels.shape[-3:-1]
        if height % SPACE_STRIDE or width % SPACE_STRIDE:
            raise ValueError(
                f"pictures of {width}x{height} do not divide into latents of {SPACE_STRIDE} pixels; crop"
            )
        frames = pixels[..., :3].reshape(1, -1, height, width, 3).permute(0, 1, 4, 2, 3)
        return self.autoencoder.encode(frames.to(self.device, torch.float32)).cpu()

    def spacial_compression_decode(self) -> int:
        return SPACE_STRIDE

    def temporal_compression_decode(self) -> int:
        return TIME_STRIDE


def decoder_of(vae: Any) -> TinyAutoencoder:
    """The streaming decoder behind a VAE; ValueError if it has none."""
    if not isinstance(vae, MiniVae):
        raise ValueError("this VAE cannot decode a stream; connect the VAE of LongLive: Load Mini")
    return vae.autoencoder


def decoded(decoder: TinyAutoencoder, latents: Tensor, scenes: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """Latents [B, C, T, H, W] -> frames [B, F, H, W, 3], block by block, scene by scene, as once made."""
    check_latents(latents, decoder.config.latent_channels)
    stream = StreamingDecoder(decoder)
    for first in range(0, latents.shape[2], BLOCK):
        frames = stream.push(latents[:, :, first : first + BLOCK], opens_scene=first in scenes)
        yield frames.permute(0, 1, 3, 4, 2)


def check_latents(samples: Tensor, channels: int) -> None:
    """Refuse latents that are no video of LongLive's."""
    if samples.ndim != 5 or samples.shape[1] != channels:
        raise ValueError(
            f"latents of shape {list(samples.shape)} cannot be decoded here: "
            f"expected [batch, {channels}, latent frames, height, width], as LongLive: Stream gives"
        )


def gathered(latents: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """The frames [B, F, H, W, 3] of latents in one tensor on the CPU, filled part by part."""
    whole, end = None, 0
    for part in parts:
        if whole is None:
            whole = torch.empty((len(part), num_frames(latents.shape[2]), *part.shape[2:]))
        whole[:, end : end + part.shape[1]] = part
        end += part.shape[1]
    return whole
