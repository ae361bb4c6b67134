"""Layers of the Wan 2.1 VAE: causal in time, so that a video can go through in pieces.

Tensors are [B, C, F, H, W], channels last in memory. A layer that looks back takes the end of its earlier
input, its past, and returns the new one; layers made of others take their pasts in order from an iterator
(None at the start of a video) and return the new ones in the same order. Knows neither latents nor files.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Olds = Iterator[Tensor | None]
TINY = 1e-12  # no norm is divided by less
NARROW = 128  # for fewer channels cuDNN has current kernels in two axes only: 3.3 -> 1.5 ms at 96 and 832x480


def used_up(past: list[Tensor] | None) -> Olds:
    """The tensors of a past in order; each leaves the list as it is taken, so old and new never pile up."""
    if past is None:
        yield from repeat(None)
    past.reverse()
    while past:
        yield past.pop()


def channels_last(x: Tensor) -> Tensor:
    """The same [B, C, F, H, W] with the channels of a position side by side."""
    return x.contiguous(memory_format=torch.channels_last_3d)


class CausalConv(nn.Conv3d):
    """A convolution that sees the past, not the future; zeros stand before the start of a video."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: tuple[int, int, int] = (3, 3, 3), stride=1
    ):
        """`kernel` and the padding are (time, height, width); `stride` is of time alone."""
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(channels_in, channels_out, kernel, stride=(stride, 1, 1), padding=padding)
        self.num_past = kernel[0] - stride

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """x and the last frames of the x before it -> (convolved, new past)."""
        past = channels_last(self.no_past(x) if past is None else past)
        frames = torch.cat((past, x), dim=2)
        is_narrow = self.kernel_size == (3, 3, 3) and self.in_channels < NARROW
        is_gpu = x.is_cuda or (x.is_meta and x.dtype != torch.float32)  # on meta half precision stands for it
        y = self.in_two_axes(frames) if is_narrow and is_gpu else super().forward(frames)
        return y, frames[:, :, -self.num_past :].clone()  # a view would keep all of the frames in memory

    def in_two_axes(self, x: Tensor) -> Tensor:
        """The same convolution of images: three frames become one of three times the channels."""
        made = x.shape[2] - self.num_past
        frames = rearrange(x, "b c f h w -> b f h w c")  # as it lies in memory
        triples = torch.cat([frames[:, time : time + made] for time in range(3)], dim=-1)
        images = rearrange(triples, "b f h w c -> (b f) c h w")
        weight = rearrange(self.weight, "o c k h w -> o (k c) h w")
        y = F.conv2d(images, weight.contiguous(memory_format=torch.channels_last), self.bias, padding=1)
        return rearrange(y, "(b f) c h w -> b c f h w", f=made)

    def no_past(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:2], self.num_past, *x.shape[3:])


class ChannelNorm(nn.Module):
    """Every position's channels scaled to a root mean square of 1, times gamma [C, 1, ...]."""

    def __init__(self, channels: int, num_axes: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel; a CPU takes twice as long this way
            return F.rms_norm(x.movedim(1, -1), x.shape[1:2], self.gamma.flatten(), TINY**2).movedim(-1, 1)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(TINY)
        return (x * (len(self.gamma) ** 0.5 / length)).mul_(self.gamma)


class Residual(nn.Module):
    """Two causal convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = ChannelNorm(channels_in)
        self.conv1 = CausalConv(channels_in, channels_out)
        self.norm2 = ChannelNorm(channels_out)
        self.conv2 = CausalConv(channels_out, channels_out)
        is_same = channels_in == channels_out
        self.shortcut = nn.Identity() if is_same else nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        y, new1 = self.conv1(F.silu(self.norm1(x), inplace=True), next(olds))
        y, new2 = self.conv2(F.silu(self.norm2(y), inplace=True), next(olds))
        return y + self.shortcut(x), [new1, new2]


def frame_by_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer for images [B, C, H, W], applied to every frame."""
    return rearrange(layer(rearrange(x, "b c f h w -> (b f) c h w")), "(b f) c h w -> b c f h w", b=len(x))


class FrameAttention(nn.Module):
    """One head of self-attention among the positions of a frame [B, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels, num_axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)  # -> [B, H W, 3C]
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # -> [B, H W, C]
        return x + self.proj(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    """What stands at 1/8 size: residual, attention, residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = Residual(channels, channels)
        self.attention = FrameAttention(channels)
        self.last = Residual(channels, channels)

    def forward(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        x, first = self.first(x, olds)
        x, last = self.last(frame_by_frame(self.attention, x), olds)
        return x, first + last


class Downsample(nn.Module):
    """Half the size; with `has_time` half the frames too, but the first of the video stays as it is."""

    def __init__(self, channels: int, has_time: bool):
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, stride=2)
        self.time = CausalConv(channels, channels, (3, 1, 1), stride=2) if has_time else None

    def forward(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        """A video starts with one frame alone; later x hold a multiple of two."""
        x = frame_by_frame(lambda frames: self.space(F.pad(frames, (0, 1, 0, 1))), x)
        if self.time is None:
            return x, []
        past = next(olds)
        if past is None:
            return x, [x.clone()]
        x, new = self.time(x, past)
        return x, [new]


class Upsample(nn.Module):
    """Twice the size, half the channels; with `has_time` twice the frames too, but for the first."""

    def __init__(self, channels: int, has_time: bool):
        super().__init__()
        self.time = CausalConv(channels, 2 * channels, (3, 1, 1)) if has_time else None
        self.space = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        """A video starts with one frame alone, which stays one and which the later ones do not see."""
        news = []
        if self.time is not None:
            past = next(olds)
            if past is None:
                new = self.time.no_past(x)
            else:
                x, new = self.time(x, past)
                x = rearrange(x, "b (two c) f h w -> b c (f two) h w", two=2)  # side by side -> in order
            news.append(new)
        return frame_by_frame(lambda frames: self.space(F.interpolate(frames, scale_factor=2)), x), news


def through(layers: Iterable[nn.Module], x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
    """x through one layer after the other -> (x, their new pasts)."""
    news = []
    for layer in layers:
        x, more = layer(x, olds)
        news += more
    return x, news


class Stage(nn.Module):
    """Residuals of one size, then the way to the next size if there is one."""

    def __init__(self, channels_in: int, channels_out: int, num_residuals: int, resample: nn.Module | None):
        super().__init__()
        channels = [channels_in] + [channels_out] * num_residuals
        self.residuals = nn.ModuleList(Residual(*pair) for pair in pairwise(channels))
        self.resample = resample

    def forward(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        return through((*self.residuals, *([self.resample] if self.resample else [])), x, olds)


def run_in_order(
    net: nn.Module, stages: Iterable[nn.Module], x: Tensor, past: list[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """x [B, C, F, H, W] through an encoder or decoder: stem, stages, norm, head -> (x, new past)."""
    olds = used_up(past)
    x, first = net.stem(channels_last(x), next(olds))
    x, news = through(stages, x, olds)
    x, last = net.head(F.silu(net.norm(x), inplace=True), next(olds))
    return x, [first, *news, last]


class LatentSpace(NamedTuple):
    """raw latents = those of the transformer * std + mean, channel by channel; each [C]."""

    mean: Tensor | tuple[float, ...]
    std: Tensor | tuple[float, ...]

    def raw(self, normalised: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] of the transformer -> those of the autoencoder."""
        return normalised * self._by_channel(self.std, normalised) + self._by_channel(self.mean, normalised)

    def normalised(self, raw: Tensor) -> Tensor:
        """The way back."""
        return (raw - self._by_channel(self.mean, raw)) / self._by_channel(self.std, raw)

    @staticmethod
    def _by_channel(values: Tensor | tuple[float, ...], like: Tensor) -> Tensor:
        return torch.as_tensor(values, device=like.device).view(1, -1, 1, 1, 1)
