"""Tiny streaming autoencoder: LongLive Mini's own, and the layout of the TAEHV family of decoders.

Latents [B, C, T, H, W] in, frames [B, F, 3, 8H, 8W] in [0, 1] out. A decoder layer that looks back takes its
past and returns its new past, so decoding in pieces is decoding the whole. Knows neither prompts nor files.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TinyAutoencoderConfig
from ..geometry import TIME_STRIDE
from .layers import LatentSpace

LATENT_BOUND = 3.0  # raw latents reach the decoder through a soft clamp to (-3, 3)
_UNSHUFFLE = 4


def conv3(channels_in: int, channels_out: int, **options) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)


class MemoryBlock(nn.Module):
    """A residual block that sees its own input of one time step ago (zeros before the first)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            conv3(2 * channels, channels),
            nn.ReLU(inplace=True),
            conv3(channels, channels),
            nn.ReLU(inplace=True),
            conv3(channels, channels),
        )

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B, T, C, H, W] and the last x of the previous call -> (same shape, new past)."""
        past = torch.zeros_like(x[:, :1]) if past is None else past
        delayed = torch.cat((past, x[:, :-1]), dim=1)
        both = torch.cat((x, delayed), dim=2).flatten(0, 1)
        return F.relu(x + self.conv(both).unflatten(0, x.shape[:2])), x[:, -1:].clone()


class Grow(nn.Module):
    """Turn every time step into `times`, then change size: space twice (or not), channels in -> out."""

    def __init__(self, channels_in: int, channels_out: int, times: int, is_wider: bool):
        super().__init__()
        self.times, self.is_wider = times, is_wider
        self.grow = nn.Conv2d(channels_in, channels_in * times, 1, bias=False)
        self.conv = conv3(channels_in, channels_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.grow(x.flatten(0, 1)).unflatten(1, (self.times, -1)).flatten(0, 1)
        if self.is_wider:
            x = F.interpolate(x, scale_factor=2)
        return self.conv(x).unflatten(0, (batch, -1))


class TinyDecoder(nn.Module):
    """Raw latents -> frames. The very first latent gives one frame, every later one four."""

    def __init__(self, config: TinyAutoencoderConfig):
        super().__init__()
        widths = config.widths
        self.patch = config.patch
        self.stem = conv3(config.latent_channels, widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList(MemoryBlock(width) for _ in range(count))
            for width, count in zip(widths, config.memory_blocks, strict=False)
        )
        self.grows = nn.ModuleList(
            Grow(widths[i], widths[i + 1], times, is_wider=i < 2 or config.patch == 1)
            for i, times in enumerate((1, 2, 2))
        )
        self.head = conv3(widths[3], 3 * config.patch**2)

    def forward(self, latents: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Raw latents [B, C, T, H, W] -> (frames [B, F, 3, 8H, 8W], the past for the next call).

        Without a past this is the start of a video: F = 4T - 3, else 4T. Values are not clamped.
        """
        x = LATENT_BOUND * torch.tanh(latents / LATENT_BOUND)
        x = x.transpose(1, 2)  # -> [B, T, C, H, W]
        x = F.relu(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        olds, news = iter(past or ()), []
        for blocks, grow in zip(self.stages, self.grows, strict=True):
            for block in blocks:
                x, new = block(x, next(olds, None))
                news.append(new)
            x = grow(x)
        frames = F.pixel_shuffle(self.head(F.relu(x.flatten(0, 1))), self.patch).unflatten(0, x.shape[:2])
        return (frames if past else frames[:, TIME_STRIDE - 1 :]), news


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Sequential(conv3(channels, channels), nn.ReLU(inplace=True), conv3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class TinyEncoder(nn.Module):
    """Frames -> raw latents, four frames at a time and without memory; frame 0 stands for four of itself."""

    def __init__(self, config: TinyAutoencoderConfig):
        super().__init__()
        wide, narrow = config.encoder_widths
        self.net = nn.Sequential(
            nn.PixelUnshuffle(_UNSHUFFLE),
            conv3(3 * TIME_STRIDE * _UNSHUFFLE**2, wide),
            nn.ReLU(inplace=True),
            _Residual(wide),
            conv3(wide, narrow, stride=2),
            nn.ReLU(inplace=True),
            _Residual(narrow),
            _Residual(narrow),
            conv3(narrow, config.latent_channels),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, 4T - 3, 3, 8H, 8W] in [0, 1] -> raw latents [B, C, T, H, W].

        Up to three frames beyond the last full group of four are left out, as the Wan encoder does.
        """
        groups = (frames.shape[1] - 1) // TIME_STRIDE
        first = frames[:, :1].expand(-1, TIME_STRIDE, -1, -1, -1)
        x = torch.cat((first, frames[:, 1 : 1 + groups * TIME_STRIDE]), dim=1)
        x = x.unflatten(1, (groups + 1, TIME_STRIDE)).flatten(2, 3)  # -> [B, T, 12, 8H, 8W]
        return self.net(x.flatten(0, 1) * 2 - 1).unflatten(0, x.shape[:2]).transpose(1, 2)


class TinyAutoencoder(nn.Module):
    """Encoder, decoder, and the mean and std [C] that make latents unit-variance for the transformer.

    Where the config has no `encoder_widths` there is no encoder: it decodes the latents of another model.
    """

    def __init__(self, config: TinyAutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config) if config.encoder_widths else None
        self.decoder = TinyDecoder(config)
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, F, 3, 8H, 8W] in [0, 1] -> normalised latents [B, C, T, H, W]."""
        return LatentSpace(self.mean, self.std).normalised(self.encoder(frames))

    def decode(self, latents: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents [B, C, T, H, W] -> (frames [B, F, 3, 8H, 8W] in [0, 1] in fp32, new past)."""
        raw = LatentSpace(self.mean, self.std).raw(latents)
        frames, past = self.decoder(raw.to(self.decoder.stem.weight), past)
        return frames.float().clamp(0, 1), past
