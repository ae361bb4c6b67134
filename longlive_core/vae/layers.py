"""Layers of the Wan 2.1 VAE: causal in time, so that a video can go through in pieces.

Tensors are [B, C, F, H, W], channels last in memory. A layer that looks back takes the last frames of its
earlier input, its past, from an iterator, one by one (None at the start of a video), and returns the new
ones in the same order. What an activation is made of is freed as soon as it is made. Knows neither latents
nor files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Olds = Iterator[Tensor | None]
TINY = 1e-12  # no norm is divided by less
NARROW = 128  # for fewer channels cuDNN has current kernels in two axes only: 3.3 -> 1.5 ms at 96 and 832x480


def used_up(past: list[Tensor] | None) -> Olds:
    """The frames of a past in order; each leaves the list as it is taken, so old and new never pile up."""
    if past is None:
        yield from repeat(None)
    past.reverse()
    while past:
        yield past.pop()


def channels_last(x: Tensor) -> Tensor:
    """The same [B, C, F, H, W] with the channels of a position side by side."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def counts_as_gpu(x: Tensor) -> bool:
    """Whether x is computed as on a GPU; on the meta device half precision stands for it."""
    return x.is_cuda or (x.is_meta and x.dtype != torch.float32)


class CausalConv(nn.Conv3d):
    """A convolution that sees the past, not the future; zeros stand before the start of a video."""

    def __init__(self, channels_in: int, channels_out: int, kernel=(3, 3, 3), stride: int = 1):
        """`kernel` and the padding are (time, height, width); `stride` is of time alone."""
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(channels_in, channels_out, kernel, stride=(stride, 1, 1), padding=padding)
        self.num_past = kernel[0] - stride

    def forward(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        """x, and its past from `olds` -> (convolved, new past)."""
        frames, news = self.joined(x, olds)
        return self.convolved(frames), news

    def joined(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        """What `convolved` takes, and the new past; a step of its own, after which x can be freed."""
        past = [next(olds) for _ in range(self.num_past)]
        past = [channels_last(self.blank(x) if old is None else old) for old in past]
        frames = [*past, *x.split(1, dim=2)]
        news = frames[-self.num_past :]
        if (made := x.shape[2]) > 1:
            news = [new.clone() for new in news]  # a view would keep all of the frames in memory
        if not self.is_flat(x):
            return torch.cat(frames, dim=2), news
        shifted = (frames[time : time + made] for time in range(3))
        return torch.cat([torch.cat(some, dim=2) if made > 1 else some[0] for some in shifted], dim=1), news

    def is_flat(self, x: Tensor) -> bool:
        """Whether x is convolved as images are: three frames become one of three times the channels."""
        return counts_as_gpu(x) and self.kernel_size == (3, 3, 3) and self.in_channels < NARROW

    def convolved(self, frames: Tensor) -> Tensor:
        is_flat = frames.shape[1] > self.in_channels
        return self.in_two_axes(frames) if is_flat else super().forward(frames)

    def in_two_axes(self, triples: Tensor) -> Tensor:
        images = rearrange(triples, "b c f h w -> (b f) c h w")
        weight = rearrange(self.weight, "o c k h w -> o (k c) h w")
        y = F.conv2d(images, weight.contiguous(memory_format=torch.channels_last), self.bias, padding=1)
        return rearrange(y, "(b f) c h w -> b c f h w", b=len(triples))

    def blank(self, x: Tensor) -> Tensor:
        """A frame of zeros."""
        return x.new_zeros(*x.shape[:2], 1, *x.shape[3:])


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
        y, news = self.conv1.joined(activated(self.norm1, x), olds)
        y = self.conv1.convolved(y)
        y = activated(self.norm2, y)
        y, more = self.conv2.joined(y, olds)
        y = self.conv2.convolved(y)
        return y.add_(self.shortcut(x)), news + more


def activated(norm: ChannelNorm, x: Tensor) -> Tensor:
    return F.silu(norm(x), inplace=True)


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
        old = next(olds)
        return (x, [x]) if old is None else self.time(x, iter([old]))


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
            old = next(olds)
            if old is None:
                news = [self.time.blank(x)] * self.time.num_past
            else:
                x, news = self.time(x, chain([old], olds))
                x = rearrange(x, "b (two c) f h w -> b c (f two) h w", two=2)  # side by side -> in order
        return frame_by_frame(lambda frames: self.space(F.interpolate(frames, scale_factor=2)), x), news


Layer = Callable[[Tensor, Olds], tuple[Tensor, list[Tensor]]]


def through(layers: Iterable[Layer], x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
    """x through one layer after the other -> (x, their new pasts)."""
    news = []
    for layer in layers:
        x, more = layer(x, olds)
        news += more
    return x, news


def through_by_frame(layers: Sequence[Layer], x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
    """The same; on a GPU every frame goes through all layers before the next, to save memory at full size.

    On CPUs convolutions of one frame would take 1.7 times as long.
    """
    made, news = [], []
    for frame in x.split(1 if counts_as_gpu(x) else x.shape[2], dim=2):
        frame, news = through(layers, frame, used_up(news) if made else olds)
        made.append(frame)
    return torch.cat(made, dim=2), news


class Stage(nn.Module):
    """Residuals of one size, then the way to the next size if there is one."""

    def __init__(self, channels_in: int, channels_out: int, num_residuals: int, resample: nn.Module | None):
        super().__init__()
        channels = [channels_in] + [channels_out] * num_residuals
        self.residuals = nn.ModuleList(Residual(*pair) for pair in pairwise(channels))
        self.resample = resample

    @property
    def layers(self) -> list[nn.Module]:
        return [*self.residuals, *([self.resample] if self.resample else [])]


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
