"""The memory that a run needs: a closed formula and an upper bound. No module is built for it.

A run holds weights, KV cache, text cache, decoder and the decoder's past, with a source the encoder's too,
and the largest of the working sets that alternate: a pass of the transformer, the decoding of a block, the
encoding of one, or of an image. Tensors are counted, on the meta device too; a GPU adds its context and
fragments, as an H200 showed with torch 2.11 (benchmarks/README.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil, prod

import torch

from .config import CONTEXT_CHANNELS, MAX_TOKENS, ModelConfig, Preset, WindowConfig
from .geometry import PATCH, latent_size
from .vae.memory import decoder_bytes, encoder_bytes, image_bytes
from .weights.quantize import PRECISIONS, compute_dtype

GIB, FLOAT_BYTES = 2**30, torch.float32.itemsize
GPU_CONTEXT = int(0.65 * GIB)  # CUDA's context and its libraries
# What torch holds and cannot use: of a working set, whose sizes differ from layer to layer; of the past,
# whose sizes are the same in every block. Measured when working sets were larger: 1.12 of 2.5 + 0.06 GiB
# (tiny decoder, cudaMallocAsync), 1.16 of 3.0 + 1.76 (Wan, expandable segments); smaller ones split worse.
WORKING_FRAGMENTS, PAST_FRAGMENTS = 0.6, 0.15
# Two peaks of a layer, for the tokens that go through it at once. Rotating keys in bf16, [tokens, dim]: x,
# modulated x, q, k, k in fp32 (2), rotated (2), and k again. Feed-forward: x before and after attention,
# attention's output, modulated x, the output; [tokens, ffn_dim] once, with fp8 products also in fp32.
KEY_COPIES, TOKEN_COPIES, HIDDEN_COPIES, HIDDEN_COPIES_FP8 = 9, 5, 1, 4
# Of VACE, [tokens, dim], in a pass: its tokens, those it began from, a hint, the keys and values of a layer.
CONTROL_COPIES, CONTROL_STREAMS = 5, 2  # and the videos that become context: what is kept, what is made
DECODERS = "wan", "tiled", "tiny"  # the largest first
SMALLER_SIZES, SMALLER_WINDOWS = ((640, 368), (480, 272), (320, 192)), (9, 6)


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
    encoder_past: int = 0

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def lines(self) -> list[str]:
        """A table, in GiB; the encoder is named where there is a source or control."""
        parts = {name: size for name, size in vars(self).items() if size or name != "encoder_past"}
        parts |= {"total": self.total}
        return [f"{name.replace('_', ' '):<13}{size / GIB:8.2f} GiB" for name, size in parts.items()]


@dataclass(frozen=True)
class Setting:
    """What a user may choose to make a run fit; with full attention the window is `num_blocks` long.

    With `has_source` footage is encoded while the video is made; `has_control` is VACE's, with a reference.
    With `has_images` scenes may begin with images that are sent live.
    """

    width: int
    height: int
    precision: str = "bf16"
    decoder: str = "wan"
    window: WindowConfig = field(default_factory=WindowConfig)
    num_blocks: int = 1
    has_source: bool = False
    has_control: bool = False
    has_images: bool = False

    @property
    def frames(self) -> int:
        """Latent frames in a full window."""
        return self.window.window_latent_frames or self.num_blocks * self.window.block_latent_frames

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.precision}, {self.decoder} decoder, window {self.frames}"


def estimate(preset: Preset, setting: Setting, device: torch.device) -> Needs:
    """What a run needs at most; `device` also decides on the dtype of the arithmetic."""
    compute, is_cpu = compute_dtype(setting.precision, device), device.type == "cpu"
    weights = preset.num_sets * weight_bytes(preset.model, setting.precision, compute)
    cache, text, passing = transformer_bytes(preset, setting, compute)
    size, block = (setting.width, setting.height), setting.window.block_latent_frames
    decoder, past, decoding = decoder_bytes(preset, setting.decoder, block, size, compute, is_cpu)
    encoder_past, encoding = encoder_bytes(preset, block, size, compute, is_cpu)
    encoder_past *= setting.has_source + CONTROL_STREAMS * setting.has_control
    if setting.has_control:
        weights += vace_weight_bytes(preset.model, setting.precision, compute)
        more = control_bytes(preset, setting, compute)
        cache, text, passing = cache + more[0], text + more[1], passing + more[2]
    is_encoding = setting.has_source or setting.has_control
    imaging = image_bytes(preset, setting.decoder, block, size, compute) if setting.has_images else 0
    working = max(passing, decoding, encoding if is_encoding else 0, imaging)
    fragments = int(WORKING_FRAGMENTS * working + PAST_FRAGMENTS * (past + encoder_past))
    gpu = (0, 0) if is_cpu else (fragments, GPU_CONTEXT)
    return Needs(weights, cache, text, decoder, past, working, *gpu, encoder_past)


def weight_bytes(config: ModelConfig, precision: str, compute: torch.dtype) -> int:
    """The transformer's weights: the layers' matrices as stored, all others in the compute dtype."""
    dim, hidden, patch = config.dim, config.ffn_dim, config.latent_channels * PATCH**2
    matrices = config.num_layers * (8 * dim**2 + 2 * dim * hidden)
    rows = config.num_layers * (9 * dim + hidden)  # of the matrices: each has a bias, in 8 bits a scale too
    norms = config.num_layers * 12 * dim  # and modulation
    embeddings = dim * (config.text_dim + config.freq_dim + 2 * patch + 8 * dim + 13) + patch  # and head
    return stored_bytes(matrices, rows, norms + embeddings, precision, compute)


def stored_bytes(matrices: int, rows: int, others: int, precision: str, compute: torch.dtype) -> int:
    """Bytes of so many weights; each row of a matrix has a bias, and in 8 bits a scale."""
    scales = rows * FLOAT_BYTES if PRECISIONS[precision].is_8_bit else 0
    return matrices * PRECISIONS[precision].stored.itemsize + scales + (rows + others) * compute.itemsize


def vace_weight_bytes(config: ModelConfig, precision: str, compute: torch.dtype) -> int:
    """VACE's weights: a layer for every second one of the transformer, as Wan2.1-VACE-1.3B has."""
    dim, hidden, count = config.dim, config.ffn_dim, config.num_layers // 2
    matrices = count * (9 * dim**2 + 2 * dim * hidden) + dim**2
    rows = count * (10 * dim + hidden) + dim
    others = count * 12 * dim + dim * (CONTEXT_CHANNELS * PATCH**2 + 1)  # norms, modulation; the embedding
    return stored_bytes(matrices, rows, others, precision, compute)


def control_bytes(preset: Preset, setting: Setting, compute: torch.dtype) -> tuple[int, int, int]:
    """Context of a full window, text of VACE's layers, and what these add to the working set of a pass."""
    config, cells = preset.model, prod(latent_size(setting.width, setting.height))
    token, count = config.dim * compute.itemsize, preset.num_sets * config.num_layers // 2
    tokens = (setting.frames + 1) * cells // PATCH**2
    levels = (1 + len({*preset.sigmas.steps, *preset.sigmas.first_steps})) * count * 8 * token
    context = setting.frames * cells * CONTEXT_CHANNELS * FLOAT_BYTES
    places = tokens * (config.head_dim * FLOAT_BYTES + torch.int64.itemsize)
    working = CONTROL_COPIES * tokens * token + places + levels + context
    return context, count * 2 * config.text_tokens * token, working


def transformer_bytes(preset: Preset, setting: Setting, compute: torch.dtype) -> tuple[int, int, int]:
    """KV cache of a full window with its clean latents, text cache, and the working set of a pass.

    The largest pass computes all of a window again, in parts of at most MAX_TOKENS: the switch to a prompt
    when it has just become full.
    """
    config, window, cells = preset.model, setting.window, prod(latent_size(setting.width, setting.height))
    tokens, token = setting.frames * cells // PATCH**2, config.dim * compute.itemsize
    latents = setting.frames * cells * config.latent_channels * FLOAT_BYTES
    kept = config.dim + config.num_heads * FLOAT_BYTES if window.has_small_cache else token
    sink = window.sink_latent_frames * cells // PATCH**2 if window.endless else 0  # its keys at position 0
    cache = config.num_layers * (2 * tokens * kept + sink * token) + latents
    text = preset.num_sets * config.num_layers * 2 * config.text_tokens * token
    block = window.block_latent_frames * cells // PATCH**2
    part = max(ceil(some / ceil(some / MAX_TOKENS)) for some in (block, tokens))
    hidden = HIDDEN_COPIES_FP8 if PRECISIONS[setting.precision].has_8_bit_products else HIDDEN_COPIES
    values = max(KEY_COPIES * config.dim, TOKEN_COPIES * config.dim + hidden * config.ffn_dim)
    waiting = (part < tokens) + 2 * window.has_small_cache  # x of the other parts; K and V, dequantised
    places = tokens * (config.head_dim * FLOAT_BYTES + torch.int64.itemsize)  # rotations, indices
    is_dequantised = PRECISIONS[setting.precision].stored != compute
    steps = {*preset.sigmas.steps, *preset.sigmas.first_steps}
    levels = preset.num_sets * (1 + len(steps))  # of noise, each with its modulation; one matrix, dequantised
    once = (levels * config.num_layers * 8 + is_dequantised * config.ffn_dim) * token
    working = part * values * compute.itemsize + waiting * tokens * token + places + latents + once
    return cache, text, working


def fitting(
    preset: Preset, wanted: Setting, budget: int, device: torch.device
) -> Iterator[tuple[Setting, Needs]]:
    """Settings that need at most `budget` bytes, those nearest to what was wanted first."""
    for setting in smaller(wanted):
        if (needs := estimate(preset, setting, device)).total <= budget:
            yield setting, needs


def smaller(wanted: Setting) -> Iterator[Setting]:
    """The wanted setting, then ever smaller ones: decoder, precision, window, size."""
    size, window, is_portrait = (wanted.width, wanted.height), wanted.window, wanted.height > wanted.width
    sizes = [other[::-1] if is_portrait else other for other in SMALLER_SIZES if prod(other) < prod(size)]
    least = window.sink_latent_frames + window.block_latent_frames
    windows = [replace(window, window_latent_frames=n) for n in SMALLER_WINDOWS if least <= n < wanted.frames]
    precisions = [] if PRECISIONS[wanted.precision].is_8_bit else ["fp8"]
    decoders = DECODERS[DECODERS.index(wanted.decoder) :]
    all_of_them = [size, *sizes], [window, *windows], [wanted.precision, *precisions], decoders
    for (width, height), shorter, precision, decoder in product(*all_of_them):
        yield replace(
            wanted, width=width, height=height, precision=precision, decoder=decoder, window=shorter
        )
