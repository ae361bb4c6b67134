"""The memory of a decoder as a closed formula: weights and past exact, working sets an upper bound.

Values are counted for one position of a latent frame; bytes follow from the size and the dtype.
"""

from itertools import pairwise
from math import prod

import torch

from ..config import TINY_WAN, Preset, TinyAutoencoderConfig, WanAutoencoderConfig
from ..geometry import TIME_STRIDE, latent_size
from .autoencoder import RGB
from .tiled import TILE_PIXELS, num_tiles

# Weights of the published Wan autoencoder; past: two frames of what enters each of its convolutions in time.
# Largest is a residual at full size, in frames of 96 channels: 12 (three side by side), 6 (with the past), 4
# each (the input, two norms, two products) and 2 (the new past).
WAN_WEIGHTS, WAN_PAST, WAN_WORKING = 126_892_531, 151_328, 40 * 96 * 64
# A memory block of a tiny decoder holds its input, the delayed one, both joined, two products, copies of two;
# a convolution between sizes holds input and output twice, since cuDNN copies them to have channels last.
BLOCK_COPIES, CONV_COPIES = 8, 2
TINY_FRAMES = 1, 1, 2, 4  # that a latent frame has become at 1/8, 1/4, 1/2 and full size
VIDEO_COPIES = 2  # fp32 frames of a block: those just decoded, and those the caller may still hold


def decoder_config(preset: Preset, name: str) -> TinyAutoencoderConfig | WanAutoencoderConfig:
    """The decoder called wan, tiled or tiny; a preset's own comes first."""
    return preset.autoencoder or (TINY_WAN if name == "tiny" else WanAutoencoderConfig())


def decoder_bytes(
    preset: Preset, name: str, block: int, size: tuple[int, int], compute: torch.dtype, is_cpu: bool = False
) -> tuple[int, int, int]:
    """The decoder's weights, its past, and the working set of a block of latent frames in mid-video.

    A tiled one on a GPU holds the past of one tile there, on a CPU those of all.
    """
    config, is_tiled = decoder_config(preset, name), name == "tiled"
    tile = [min(side, TILE_PIXELS) for side in size] if is_tiled else size
    num_pasts = num_tiles(*latent_size(*size)) if is_tiled and is_cpu else 1
    is_tiny = isinstance(config, TinyAutoencoderConfig)
    weights, past, working = tiny_values(config, block) if is_tiny else (WAN_WEIGHTS, WAN_PAST, WAN_WORKING)
    position = prod(latent_size(*tile)) * compute.itemsize
    video = VIDEO_COPIES * block * TIME_STRIDE * RGB * prod(size) * torch.float32.itemsize
    return weights * compute.itemsize, num_pasts * past * position, working * position + video


def tiny_values(config: TinyAutoencoderConfig, block: int) -> tuple[int, int, int]:
    """Weights of a tiny autoencoder (but its biases); past and working set for one latent position."""
    widths, latent, patch = config.widths, config.latent_channels, config.patch
    weights, past, working = 9 * (latent * widths[0] + RGB * patch**2 * widths[-1]), 0, 0
    steps = zip(pairwise(widths), pairwise(TINY_FRAMES), config.memory_blocks, strict=True)
    for level, ((wide, narrow), (before, after), blocks) in enumerate(steps):
        weights += wide * (36 * blocks * wide + wide * after // before + 9 * narrow)
        past += blocks * wide * 4**level
        held = before * wide * 4**level
        grown = after * (wide + narrow) * 4 ** min(level + 1, 4 - patch)  # patch 2: pixels are shuffled last
        working = max(working, BLOCK_COPIES * held, held + CONV_COPIES * grown)
    if config.encoder_widths:
        wide, narrow = config.encoder_widths
        pixels = RGB * TIME_STRIDE * 16  # 4 frames of 4x4
        weights += 9 * (pixels * wide + 2 * wide**2 + wide * narrow + 4 * narrow**2 + narrow * latent)
    return weights, past, working * block + past
