"""The memory that a run needs: a closed formula and an upper bound. No module is built for it.

A run holds weights, KV cache, text cache, decoder and the decoder's past. On top comes one working set, the
larger of two that take turns: a pass of the transformer, the decoding of a block. A GPU adds its context and
fragments. Fitted to an NVIDIA H200 (torch 2.11, 832x480, window 12, one stream): fp8 with the tiny decoder
took 8.4 GiB (9.1 with cudaMallocAsync), 9.2 are planned; bf16 with the Wan decoder 12.8, 13.9 are planned.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

import torch

from .config import ModelConfig, Preset, WindowConfig
from .geometry import PATCH, latent_size
from .vae.memory import decoder_bytes
from .weights.checkpoints import PRECISIONS, compute_dtype

GIB = 2**30
FLOAT_BYTES = torch.float32.itemsize
GPU_CONTEXT = int(0.65 * GIB)  # CUDA's context and its libraries
FRAGMENTS = 0.5  # of what every block allocates and frees: 0.19 to 0.47 were measured
# A pass is largest in a feed-forward: [tokens, dim] of x before and after attention, q, k, v, what attention
# gave, modulated x; [tokens, ffn_dim] before and after GELU, that 8-bit products divide by a scale in fp32.
TOKEN_COPIES, HIDDEN_COPIES, HIDDEN_COPIES_8_BIT = 7, 2, 4
DECODERS = "wan", "tiled", "tiny"  # the largest first
SMALLER_SIZES = (640, 368), (480, 272), (320, 192)
SMALLER_WINDOWS = 9, 6


@dataclass(frozen=True)
class Needs:
    """Bytes of one run, part by part. The text encoder is unloaded before the rollout begins."""

    weights: int
    kv_cache: int
    text: int
    decoder: int
    decoder_past: int
    working: int
    fragments: int = 0
    gpu_context: int = 0

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def lines(self) -> list[str]:
        """A table, in GiB."""
        parts = vars(self) | {"total": self.total}
        return [f"{name.replace('_', ' '):<13}{size / GIB:8.2f} GiB" for name, size in parts.items()]


@dataclass(frozen=True)
class Setting:
    """What a user may choose to make a run fit; with full attention the window is `num_blocks` long."""

    width: int
    height: int
    precision: str = "bf16"
    decoder: str = "wan"
    window: WindowConfig = field(default_factory=WindowConfig)
    num_blocks: int = 1

    @property
    def frames(self) -> int:
        """Latent frames in a full window."""
        return self.window.window_latent_frames or self.num_blocks * self.window.block_latent_frames

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.precision}, {self.decoder} decoder, window {self.frames}"


def estimate(preset: Preset, setting: Setting, device: torch.device) -> Needs:
    """What a run needs at most; `device` also decides on the dtype of the arithmetic."""
    compute, is_cpu = compute_dtype(setting.precision, device), device.type == "cpu"
    weights = weight_bytes(preset.model, setting.precision, compute)
    cache, text, passing = transformer_bytes(preset, setting, compute)
    size, block = (setting.width, setting.height), setting.window.block_latent_frames
    decoder, past, decoding = decoder_bytes(preset, setting.decoder, block, size, compute, is_cpu)
    working = max(passing, decoding)
    gpu = () if is_cpu else (int(FRAGMENTS * (past + working)), GPU_CONTEXT)
    return Needs(weights, cache, text, decoder, past, working, *gpu)


def weight_bytes(config: ModelConfig, precision: str, compute: torch.dtype) -> int:
    """The transformer's weights: the layers' matrices as stored, all others in the compute dtype."""
    dim, hidden, patch = config.dim, config.ffn_dim, config.latent_channels * PATCH**2
    matrices = config.num_layers * (8 * dim**2 + 2 * dim * hidden)
    rows = config.num_layers * (9 * dim + hidden)  # of the matrices: each has a bias, in 8 bits a scale too
    norms = config.num_layers * 12 * dim  # and modulation
    embeddings = dim * (config.text_dim + config.freq_dim + 2 * patch + 8 * dim + 13) + patch  # and head
    stored = PRECISIONS[precision].itemsize
    scales = rows * FLOAT_BYTES if stored == 1 else 0
    return matrices * stored + scales + (rows + norms + embeddings) * compute.itemsize


def transformer_bytes(preset: Preset, setting: Setting, compute: torch.dtype) -> tuple[int, int, int]:
    """KV cache of a full window with its clean latents, text cache, and the working set of a pass.

    The largest pass computes all of a window again: the switch to a prompt when it has just become full.
    """
    config, window, cells = preset.model, setting.window, prod(latent_size(setting.width, setting.height))
    tokens, token = setting.frames * cells // PATCH**2, config.dim * compute.itemsize
    latents = setting.frames * cells * config.latent_channels * FLOAT_BYTES
    kept = config.dim + config.num_heads * FLOAT_BYTES if window.has_small_cache else token
    sink = window.sink_latent_frames * cells // PATCH**2 if window.endless else 0  # its keys at position 0
    cache = config.num_layers * (2 * tokens * kept + sink * token) + latents
    text = config.num_layers * 2 * config.text_tokens * token
    is_small = PRECISIONS[setting.precision].itemsize == 1
    hidden = HIDDEN_COPIES_8_BIT if is_small and setting.precision != "fp8" else HIDDEN_COPIES
    layer = tokens * (TOKEN_COPIES * token + hidden * config.ffn_dim * compute.itemsize)
    rotations = tokens * config.head_dim * FLOAT_BYTES
    modulation = (1 + len(preset.sigmas.steps)) * config.num_layers * 8 * token
    dequantised = is_small * config.ffn_dim * token + window.has_small_cache * 2 * tokens * token
    return cache, text, layer + rotations + latents + modulation + dequantised


def fitting(
    preset: Preset, wanted: Setting, budget: int, device: torch.device
) -> Iterator[tuple[Setting, Needs]]:
    """Settings that need at most `budget` bytes, those nearest to what was wanted first."""
    tried = ((setting, estimate(preset, setting, device)) for setting in smaller(wanted))
    return ((setting, needs) for setting, needs in tried if needs.total <= budget)


def smaller(wanted: Setting) -> Iterator[Setting]:
    """The wanted setting, then ever smaller ones: decoder, precision, window, size."""
    size, window, is_portrait = (wanted.width, wanted.height), wanted.window, wanted.height > wanted.width
    sizes = [other[::-1] if is_portrait else other for other in SMALLER_SIZES if prod(other) < prod(size)]
    least = window.sink_latent_frames + window.block_latent_frames
    lengths = (frames for frames in SMALLER_WINDOWS if least <= frames < wanted.frames)
    windows = [replace(window, window_latent_frames=frames) for frames in lengths]
    precisions = ["fp8"] if PRECISIONS[wanted.precision].itemsize > 1 else []
    decoders = DECODERS[DECODERS.index(wanted.decoder) :]
    all_of_them = [size, *sizes], [window, *windows], [wanted.precision, *precisions], decoders
    for (width, height), shorter, precision, decoder in product(*all_of_them):
        yield Setting(width, height, precision, decoder, shorter, wanted.num_blocks)
