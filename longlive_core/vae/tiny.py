"""Tiny streaming autoencoder: LongLive Mini's own, and the layout of the TAEHV family of decoders.

Latents [B, C, T, H, W] in, frames [B, F, 3, 8H, 8W] in [0, 1] out. A decoder layer that looks back takes its
past and returns its new past, so decoding in pieces is decoding the whole. The decoder's layers see images
[T B, C, H, W], time first. Knows neither prompts nor files.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import TinyAutoencoderConfig
from ..geometry import TIME_STRIDE
from .layers import LatentSpace, Olds, counts_as_gpu, used_up
from .streaming import decoded_by_latent, encoded_by_latent

LATENT_BOUND = 3.0  # raw latents reach the decoder through a soft clamp to (-3, 3)
_UNSHUFFLE = 4
MOST_PIXELS = 2**19  # at full size that are computed at once: one frame of 832x480


def conv3(channels_in: int, channels_out: int, **options) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)


def frames_at_once(pixels: int) -> int:
    """How many images of so many pixels go through the last layers together."""
    return max(1, MOST_PIXELS // pixels)


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

    def forward(self, x: Tensor, olds: Olds, batch: int) -> tuple[Tensor, Tensor]:
        """x [T B, C, H, W], and the last image [B, C, H, W] before it -> (same shape as x, new past)."""
        past = next(olds)
        past = torch.zeros_like(x[:batch]) if past is None else as_convolved(past)
        y = torch.cat((x, torch.cat((past, x[:-batch]))), dim=1)
        for layer in self.conv:  # one by one: nn.Sequential keeps its input in memory
            y = layer(y)
        return y.add_(x).relu_(), x[-batch:].clone()


def as_convolved(x: Tensor) -> Tensor:
    """Images as the device convolves them: a GPU with channels last, else cuDNN copies input and output."""
    return x.contiguous(memory_format=torch.channels_last) if counts_as_gpu(x) else x


class Grow(nn.Module):
    """Turn every time step into `times`, then change size: space twice (or not), channels in -> out."""

    def __init__(self, channels_in: int, channels_out: int, times: int, is_wider: bool):
        super().__init__()
        self.times, self.is_wider = times, is_wider
        self.grow = nn.Conv2d(channels_in, channels_in * times, 1, bias=False)
        self.conv = conv3(channels_in, channels_out, bias=False)

    def in_time(self, x: Tensor, batch: int) -> Tensor:
        """Images [T B, C, H, W] -> [T times B, C, H, W]."""
        return rearrange(self.grow(x), "(t b) (n c) h w -> (t n b) c h w", n=self.times, b=batch)

    def in_space(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2) if self.is_wider else x)


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
        batch, is_start = len(latents), past is None
        x = LATENT_BOUND * torch.tanh(latents / LATENT_BOUND)
        x = self.stem(as_convolved(rearrange(x, "b c t h w -> (t b) c h w"))).relu_()
        olds, news = used_up(past), []
        for blocks, grow in zip(self.stages, self.grows, strict=True):
            for block in blocks:
                x, new = block(x, olds, batch)
                news.append(new)
            x = grow.in_time(x, batch)
            x = self.shown(x) if grow is self.grows[-1] else grow.in_space(x)
        frames = rearrange(x, "(t b) c h w -> b t c h w", b=batch)
        return (frames[:, TIME_STRIDE - 1 :] if is_start else frames), news

    def shown(self, x: Tensor) -> Tensor:
        """Images before the last doubling -> images of three colours, few of the large ones at a time."""
        pixels = x.shape[2] * x.shape[3] * (4 if self.grows[-1].is_wider else 1)
        parts = x.split(frames_at_once(pixels))
        made = torch.cat([self.head(self.grows[-1].in_space(part).relu_()) for part in parts])
        return F.pixel_shuffle(made, self.patch)


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
        return self.of_groups(torch.cat((first, frames[:, 1 : 1 + groups * TIME_STRIDE]), dim=1))

    def of_groups(self, frames: Tensor) -> Tensor:
        """The same for [B, 4T, 3, 8H, 8W], four frames for every latent frame."""
        x = frames.unflatten(1, (-1, TIME_STRIDE)).flatten(2, 3)  # -> [B, T, 12, 8H, 8W]
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

    @property
    def looks_back(self) -> int:
        """How many latent frames before it the frames of one depend on, at most."""
        return sum(self.config.memory_blocks)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, F, 3, 8H, 8W] in [0, 1] -> normalised latents [B, C, T, H, W]."""
        return self.encode_next(frames)[0]

    def encode_next(self, frames: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The same in pieces: without a past the start of a video. The past is empty: nothing looks back."""
        raw, past = encoded_by_latent(self._encode_one, frames, past)
        return LatentSpace(self.mean, self.std).normalised(raw.float()), past

    def _encode_one(self, frames: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        held = frames.expand(-1, TIME_STRIDE, -1, -1, -1)  # the first of a video stands for four
        return self.encoder.of_groups(held.to(self.decoder.stem.weight)), []

    def decode(self, latents: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents [B, C, T, H, W] -> (frames [B, F, 3, 8H, 8W] in [0, 1] in fp32, new past)."""
        raw = LatentSpace(self.mean, self.std).raw(latents)
        frames, past = decoded_by_latent(self._decode_one, raw.to(self.decoder.stem.weight), past)
        return frames.clamp_(0, 1), past

    def _decode_one(self, latent: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        frames, past = self.decoder(latent, past)
        return frames.transpose(1, 2), past
