"""The Wan decoder in the plainest way, a slow twin of ours: what cat, clone and Conv3d make of its weights.

One latent frame at a time; every layer joins its past and its input, and keeps a copy of the last frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.layers import CausalConv, ChannelNorm, Residual, Upsample

Past = dict[CausalConv, Tensor | None]


class PlainDecoder:
    """Decodes with the weights of a WanAutoencoder: a Decoder as StreamingDecoder asks for it."""

    def __init__(self, autoencoder: WanAutoencoder):
        self._net, self._config = autoencoder.decoder, autoencoder.config

    def decode(self, latents: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """As WanAutoencoder.decode."""
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (self._config.latent_mean, self._config.latent_std)
        )
        raw = (latents.float() * std + mean).to(self._net.stem.weight)
        is_start, past, pieces = past is None, past or {}, []
        for latent in raw.split(1, dim=2):
            pieces.append(self._decode_one(latent, past, is_start))
            is_start = False
        frames = torch.cat(pieces, dim=2).transpose(1, 2).float()
        return (frames / 2 + 0.5).clamp(0, 1), past

    def _decode_one(self, latent: Tensor, past: Past, is_start: bool) -> Tensor:
        net = self._net
        x = conv(net.stem, net.unpack(latent), past)
        x = residual(net.middle.first, x, past)
        x = attention(net.middle.attention, x)
        x = residual(net.middle.last, x, past)
        for stage in net.stages:
            for layer in stage.residuals:
                x = residual(layer, x, past)
            x = x if stage.resample is None else upsample(stage.resample, x, past, is_start)
        return conv(net.head, F.silu(norm(net.norm, x)), past)


def conv(layer: CausalConv, x: Tensor, past: Past) -> Tensor:
    """Convolve past and x [B, C, F, H, W]."""
    old = past.get(layer)
    if old is None:
        old = x.new_zeros(*x.shape[:2], layer.num_past, *x.shape[3:])
    x = torch.cat((old, x), dim=2)
    past[layer] = x[:, :, -layer.num_past :].clone()
    return F.conv3d(x, layer.weight, layer.bias, padding=layer.padding)


def norm(layer: ChannelNorm, x: Tensor) -> Tensor:
    return F.normalize(x, dim=1) * len(layer.gamma) ** 0.5 * layer.gamma


def residual(layer: Residual, x: Tensor, past: Past) -> Tensor:
    y = conv(layer.conv1, F.silu(norm(layer.norm1, x)), past)
    y = conv(layer.conv2, F.silu(norm(layer.norm2, y)), past)
    return y + layer.shortcut(x)


def by_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer for images on every frame of [B, C, F, H, W]."""
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (len(x), -1)).transpose(1, 2)


def attention(layer: nn.Module, x: Tensor) -> Tensor:
    frames = x.transpose(1, 2).flatten(0, 1)
    q, k, v = layer.to_qkv(norm(layer.norm, frames)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
    shares = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)
    y = layer.proj((shares @ v).transpose(1, 2).unflatten(2, x.shape[3:]))
    return x + y.unflatten(0, (len(x), -1)).transpose(1, 2)


def upsample(layer: Upsample, x: Tensor, past: Past, is_start: bool) -> Tensor:
    """The first frame of a video is one; every later one becomes two where the layer has time."""
    if layer.time is not None and not is_start:
        x = torch.stack(conv(layer.time, x, past).chunk(2, dim=1), dim=3).flatten(2, 3)
    return by_frame(nn.Sequential(nn.Upsample(scale_factor=2.0), layer.space), x)
