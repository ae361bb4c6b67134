"""The Wan 2.1 VAE: frames [B, F, 3, 8H, 8W] in [0, 1] <-> normalised latents [B, C, T, H, W].

Both ways go piece by piece, with bounded memory and the past handed on, so decoding in pieces is decoding
the whole, bit for bit. Knows neither prompts nor files.
"""

from torch import Tensor, nn

from ..config import WanAutoencoderConfig
from ..geometry import SPACE_STRIDE
from .layers import (
    CausalConv,
    ChannelNorm,
    Downsample,
    LatentSpace,
    Middle,
    Olds,
    Stage,
    Upsample,
    activated,
    channels_last,
    through,
    through_by_frame,
    used_up,
)
from .streaming import RGB, decoded_by_latent, encoded_by_latent


class Head(nn.Module):
    """What encoder and decoder end with: a norm and a convolution, that their files name apart."""

    norm: ChannelNorm
    head: CausalConv

    def last(self, x: Tensor, olds: Olds) -> tuple[Tensor, list[Tensor]]:
        frames, news = self.head.joined(activated(self.norm, x), olds)
        return self.head.convolved(frames), news


class WanEncoder(Head):
    """Video in [-1, 1] -> mean and log variance of raw latents."""

    def __init__(self, config: WanAutoencoderConfig):
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        downs = [Downsample(*step) for step in zip(widths[:-1], config.has_time, strict=True)]
        self.stem = CausalConv(RGB, widths[0])
        self.stages = nn.ModuleList(
            Stage(narrow, wide, config.num_residuals, down)
            for narrow, wide, down in zip((widths[0], *widths[:-1]), widths, (*downs, None), strict=True)
        )
        self.middle = Middle(widths[-1])
        self.norm = ChannelNorm(widths[-1])
        self.head = CausalConv(widths[-1], 2 * config.latent_channels)
        self.moments = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, video: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Video [B, 3, F, 8H, 8W] -> (moments [B, 2C, T, H, W], new past): F is 1 at the start, then 4."""
        olds, (first, *others) = used_up(past), self.stages
        x, news = through_by_frame([self.stem, *first.layers], channels_last(video), olds)
        layers = [layer for stage in others for layer in stage.layers]
        x, more = through([*layers, self.middle, self.last], x, olds)
        return self.moments(x), news + more


class WanDecoder(Head):
    """One raw latent frame -> the video frames it adds."""

    def __init__(self, config: WanAutoencoderConfig):
        super().__init__()
        widths = [config.width * multiplier for multiplier in reversed(config.multipliers)]
        ups = [Upsample(*step) for step in zip(widths[:-1], reversed(config.has_time), strict=True)]
        entries = [widths[0], *(width // 2 for width in widths[:-1])]
        self.unpack = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.stem = CausalConv(config.latent_channels, widths[0])
        self.middle = Middle(widths[0])
        self.stages = nn.ModuleList(
            Stage(entry, width, config.num_residuals + 1, up)
            for entry, width, up in zip(entries, widths, (*ups, None), strict=True)
        )
        self.norm = ChannelNorm(widths[-1])
        self.head = CausalConv(widths[-1], RGB)

    def forward(self, latent: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Latent [B, C, 1, H, W] -> (video [B, 3, F, 8H, 8W], new past): F is 1 without a past, else 4."""
        olds, layers = used_up(past), [layer for stage in self.stages for layer in stage.layers]
        full_size = layers.index(self.stages[-2].resample)
        early, late = layers[:full_size], layers[full_size:]
        x, news = through([self.stem, self.middle, *early], channels_last(self.unpack(latent)), olds)
        x, more = through_by_frame([*late, self.last], x, olds)
        return x, news + more


class WanAutoencoder(nn.Module):
    """Encoder and decoder; they compute in the type of their weights, on the device of these."""

    def __init__(self, config: WanAutoencoderConfig):
        super().__init__()
        self.config = config
        self.space = LatentSpace(config.latent_mean, config.latent_std)  # no buffers: a cast would round them
        self.encoder = WanEncoder(config)
        self.decoder = WanDecoder(config)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, F, 3, 8H, 8W] in [0, 1] -> normalised latents [B, C, 1 + (F - 1) // 4, H, W] in fp32.

        The mean of the distribution, nothing drawn. Up to three frames beyond the last full group of four
        are left out. Raises ValueError for no frames or sizes that are no multiples of 8.
        """
        count, _, height, width = frames.shape[1:]
        if not count or height % SPACE_STRIDE or width % SPACE_STRIDE:
            raise ValueError(
                f"{count} frames of {width}x{height} cannot be encoded; "
                f"give at least one, with sides that are multiples of {SPACE_STRIDE}"
            )
        return self.encode_next(frames)[0]

    def encode_next(self, frames: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Frames [B, F, 3, 8H, 8W] in [0, 1] -> (normalised latents [B, C, T, H, W] in fp32, new past).

        Without a past this is the start of a video: F = 4T - 3, else 4T. One latent frame at a time; the past
        has the same size whatever T is, and is emptied by its use.
        """
        moments, past = encoded_by_latent(self._moments, frames, past)
        means, _ = moments.float().chunk(2, dim=1)
        return self.space.normalised(means), past

    def _moments(self, frames: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        return self.encoder((frames * 2 - 1).transpose(1, 2).to(self.decoder.stem.weight), past)

    def decode(self, latents: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents [B, C, T, H, W] -> (frames [B, F, 3, 8H, 8W] in [0, 1] in fp32, new past).

        Without a past this is the start of a video: F = 4T - 3, else 4T. One latent frame at a time, as in
        Wan 2.1 `wan/modules/vae.py`; the past has the same size whatever T is, and is emptied by its use.
        """
        raw = self.space.raw(latents.float()).to(self.decoder.stem.weight)
        frames, past = decoded_by_latent(self.decoder, raw, past)
        return frames.div_(2).add_(0.5).clamp_(0, 1), past
