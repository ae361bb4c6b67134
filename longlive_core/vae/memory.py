"""The memory of decoders and encoders as a closed formula: weights and past exact, working sets upper bounds.

Values are counted for one position of a latent frame; bytes follow from the size and the dtype.
"""

from itertools import pairwise
from math import prod

import torch

from ..config import TINY_WAN, Preset, TinyAutoencoderConfig, WanAutoencoderConfig
from ..geometry import SPACE_STRIDE, TIME_STRIDE, latent_size, num_frames
from .streaming import RGB
from .tiled import TILE_PIXELS, num_tiles
from .tiny import frames_at_once

# Weights of the published Wan autoencoder; past: two frames of what enters each of its convolutions in time.
WAN_WEIGHTS, WAN_PAST = 126_892_531, 151_328
# Largest is a residual, in frames of 96 channels at full size. On a GPU at half size: four frames are 2, as
# input and as norm; 3 with the past; 1 the new past. On a CPU at full size: 4, 4, 6, 2, and oneDNN copies 6.
WAN_FRAMES, WAN_FRAMES_CPU, FRAME = 8, 22, 96 * SPACE_STRIDE**2
# Its encoder: the past, and the frames that encoding a block takes with a second past: the old one is kept
# until the new one is there. Mini's encoder has no past; values of four frames at its peak.
WAN_ENCODER_PAST, WAN_ENCODER_FRAMES, WAN_ENCODER_FRAMES_CPU = 89_856, 24, 35
TINY_ENCODER = 2_816
WAN_IMAGE_FRAMES, WAN_STILL_FRAMES = 16, 24  # the same for one image, and for one that is held for a block
BLOCK_COPIES = 4  # a memory block of a tiny decoder: its input, and with the one before it; one product
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
    if isinstance(config, TinyAutoencoderConfig):
        values = tiny_values(config, prod(tile), is_cpu)
    else:
        values = WAN_WEIGHTS, WAN_PAST, FRAME * (WAN_FRAMES_CPU if is_cpu else WAN_FRAMES)
    weights, past, working = (value * compute.itemsize for value in values)
    cells, pixels = prod(latent_size(*tile)), VIDEO_COPIES * (prod(size) + is_tiled * prod(tile))
    video = RGB * TIME_STRIDE * (pixels * block * torch.float32.itemsize + 2 * prod(tile) * compute.itemsize)
    latents = 2 * config.latent_channels * block * cells * torch.float32.itemsize
    return weights, num_pasts * past * cells, working * cells + video + latents


def encoder_bytes(
    preset: Preset, block: int, size: tuple[int, int], compute: torch.dtype, is_cpu: bool = False
) -> tuple[int, int]:
    """The past of an encoder in mid-video, and the working set of encoding a block of latent frames."""
    past, working = WAN_ENCODER_PAST, FRAME * (WAN_ENCODER_FRAMES_CPU if is_cpu else WAN_ENCODER_FRAMES)
    if preset.autoencoder:
        past, working = 0, TINY_ENCODER
    cells, frames = prod(latent_size(*size)), VIDEO_COPIES * TIME_STRIDE * block * prod(size)
    video = RGB * frames * torch.float32.itemsize
    return past * cells * compute.itemsize, working * cells * compute.itemsize + video


def image_bytes(preset: Preset, name: str, block: int, size: tuple[int, int], compute: torch.dtype) -> int:
    """What encoding an image in mid-video takes on a GPU, beyond the decoder's past, which is freed for it.

    Of a tiled decoder nothing waits there. A tiny one only decodes, but for a preset's own.
    """
    if name == "tiny" and not preset.autoencoder:
        return 0
    frames = num_frames(block) if preset.commits_past else 1
    working = FRAME * (WAN_STILL_FRAMES if frames > 1 else WAN_IMAGE_FRAMES)
    working = TINY_ENCODER if preset.autoencoder else working
    past = 0 if name == "tiled" else decoder_bytes(preset, name, block, size, compute)[1]
    video = RGB * VIDEO_COPIES * frames * prod(size) * torch.float32.itemsize
    return max(0, working * prod(latent_size(*size)) * compute.itemsize + video - past)


def tiny_values(config: TinyAutoencoderConfig, pixels: int, is_cpu: bool) -> tuple[int, int, int]:
    """Weights of a tiny autoencoder (but its biases); past and working set for one latent position."""
    widths, latent, patch = config.widths, config.latent_channels, config.patch
    weights, past, working = 9 * (latent * widths[0] + RGB * patch**2 * widths[-1]), 0, 0
    steps = zip(pairwise(widths), pairwise(TINY_FRAMES), config.memory_blocks, strict=True)
    for level, ((wide, narrow), (before, after), blocks) in enumerate(steps):
        weights += wide * (36 * blocks * wide + wide * after // before + 9 * narrow)
        past += blocks * wide * 4**level
        held, grown = before * wide * 4**level, after * wide * 4**level
        is_last, grows = level == 2, level < 2 or patch == 1  # patch 2: pixels are shuffled last
        at_once = min(after, frames_at_once(pixels // patch**2)) if is_last else after
        sized = at_once * ((grows + is_cpu) * wide + narrow) * 4 ** (level + grows)  # oneDNN copies its input
        working = max(working, (BLOCK_COPIES + 2 * is_cpu) * held, held + grown, grown + sized)
    if config.encoder_widths:
        wide, narrow = config.encoder_widths
        patch_pixels = RGB * TIME_STRIDE * 16  # 4 frames of 4x4
        weights += 9 * (patch_pixels * wide + 2 * wide**2 + wide * narrow + 4 * narrow**2 + narrow * latent)
    return weights, past, working
