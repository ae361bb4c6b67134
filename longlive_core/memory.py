"""How much memory a run needs, without running it: the very code on the meta device, its tensors counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .config import TINY_WAN, ModelConfig, Preset, WanAutoencoderConfig, WindowConfig
from .fast.compiled import EAGER as PLAIN
from .geometry import latent_size
from .model.cache import TextCache
from .model.causal_wan import CausalWan
from .rollout.scene import Scene
from .vae.autoencoder import WanAutoencoder
from .vae.streaming import StreamingDecoder
from .vae.tiled import TILE_PIXELS, num_tiles
from .vae.tiny import TinyAutoencoder
from .weights.quantize import PRECISIONS, compute_dtype, stored_small

META = torch.device("meta")
# As measured at 832x480 on an H200: what recordings and tuned kernels hold beside the passes, and the share
# of the full decoder's memory that a compiled one takes again (it holds its old past beside the new one).
RECORDED_BYTES = 2**29
COMPILED_SHARE = 1.4
SOME_LAYERS = 2, 3  # from the second on each adds the same to what a transformer takes
SMALLER_SIZES = (640, 368), (480, 272), (320, 192)
SMALLER_WINDOWS = 9, 6
GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """Bytes of one run, part by part. The text encoder is gone before the rollout begins.

    `weights` are the transformer's, `decoder` those of the decoder and `decoder_past` what it remembers;
    `working` is what the largest pass takes beside all these, and with it the decoding of the block before,
    which goes on meanwhile.
    """

    weights: int
    kv_cache: int
    text: int
    decoder: int
    decoder_past: int
    working: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def beside_weights(self) -> int:
        return self.total - self.weights - self.decoder

    def lines(self) -> list[str]:
        """A table, in GiB."""
        rows = {part.name.replace("_", " "): getattr(self, part.name) for part in fields(self)}
        return [f"{name:<13}{size / GIB:8.2f} GiB" for name, size in (rows | {"total": self.total}).items()]


@dataclass(frozen=True)
class Setting:
    """What a user may choose to make a run fit; `speed` is one of speed.SPEEDS, `window` has an end."""

    width: int
    height: int
    precision: str = "bf16"
    decoder: str = "wan"
    window: WindowConfig = field(default_factory=WindowConfig)
    speed: str = PLAIN

    def __str__(self) -> str:
        window = self.window.window_latent_frames
        speed = "" if self.speed == PLAIN else f", speed {self.speed}"
        return f"{self.width}x{self.height}, {self.precision}, {self.decoder} decoder, window {window}{speed}"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while it is on: those alive now, and the most there ever were.

    With `has_copies` a convolution also takes a copy of its input: on CPUs oneDNN reorders it.
    """

    def __init__(self, has_copies: bool = False):
        super().__init__()
        self.peak = 0
        self._has_copies = has_copies
        self._alive: dict[StorageWeakRef, int] = {}
        self._outside: set[StorageWeakRef] = set()  # whoever comes from outside does not count

    @property
    def now(self) -> int:
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        return sum(self._alive.values())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._outside.update(storages((args, kwargs)).keys() - self._alive.keys())
        out = function(*args, **(kwargs or {}))
        made = storages(out)
        self._alive |= {ref: made[ref] for ref in made.keys() - self._alive.keys() - self._outside}
        is_copied = self._has_copies and "conv" in function.overloadpacket.__name__
        self.peak = max(self.peak, self.now + (args[0].nbytes if is_copied else 0))
        return out


def storages(tree: Any) -> dict[StorageWeakRef, int]:
    """What holds the numbers of every tensor in a tree of arguments, and its bytes."""
    found = (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return {StorageWeakRef(storage): storage.nbytes() for storage in found}


def estimate(preset: Preset, setting: Setting, device: torch.device) -> Needs:
    """What a rollout holds once its window is full, and the most that any pass over it takes beside that.

    `device` decides in what the arithmetic runs. A tiled decoder keeps the pasts of its tiles on the CPU.
    """
    compute = compute_dtype(setting.precision, device)
    size = (setting.width, setting.height)
    weights = weight_bytes(preset.model, setting.precision, compute)
    cache, text, passing = transformer_bytes(preset.model, setting.window, size, compute)
    block = setting.window.block_latent_frames
    is_cpu = device.type == "cpu"
    decoder, past, decoding = decoder_bytes(preset, setting.decoder, block, size, compute, is_cpu)
    if device.type == "cuda" and setting.speed != PLAIN:
        passing += RECORDED_BYTES
    is_full = setting.decoder == "wan" and not preset.autoencoder
    return Needs(weights, cache, text, decoder, past, passing + decoding)


def bounded(window: WindowConfig, num_blocks: int) -> WindowConfig:
    """The window itself; full attention as the window of all latent frames that it comes to."""
    if window.window_latent_frames is not None:
        return window
    frames = num_blocks * window.block_latent_frames
    return replace(window, sink_latent_frames=0, window_latent_frames=frames)


@lru_cache
def weight_bytes(config: ModelConfig, precision: str, compute: torch.dtype) -> int:
    """Bytes of the weights as they are stored: the layers' matrices small, the others to compute with."""
    with META:
        model = CausalWan(config)
    small, total = stored_small(model), 0
    for name, tensor in model.state_dict().items():
        total += tensor.numel() * (PRECISIONS[precision].stored if name in small else compute).itemsize
        if name in small and PRECISIONS[precision].is_8_bit:
            total += tensor.shape[0] * torch.float32.itemsize
    return total


@lru_cache
def transformer_bytes(
    config: ModelConfig, window: WindowConfig, size: tuple[int, int], compute: torch.dtype
) -> tuple[int, ...]:
    """KV cache with a full window, text cache, and the most that a pass over them takes.

    Few of the layers are run, and what one of them adds is counted for all the others.
    """
    counts = sorted({min(config.num_layers, some) for some in SOME_LAYERS})
    counted = [layers_bytes(replace(config, num_layers=num), window, size, compute) for num in counts]
    left = config.num_layers - counts[-1]
    return tuple(last + left * (last - before) for before, last in zip(counted[0], counted[-1], strict=True))


@torch.inference_mode()
def layers_bytes(
    config: ModelConfig, window: WindowConfig, size: tuple[int, int], compute: torch.dtype
) -> tuple[int, int, int]:
    """What `transformer_bytes` tells, of a model that is run with all of its layers."""
    with META:
        model = CausalWan(config).to(compute).requires_grad_(False)
        with LiveBytes() as held:
            text = model.encode_text(torch.empty(1, config.text_tokens, config.text_dim, dtype=compute))
            text_bytes = held.now
            scene = full_window(model, window, size)
        with LiveBytes() as passes:
            run_passes(scene, text, window)
    return held.now - text_bytes, text_bytes, passes.peak


def full_window(model: CausalWan, window: WindowConfig, size: tuple[int, int]) -> Scene:
    """A scene whose ring is full."""
    channels, cells = model.config.latent_channels, latent_size(*size)
    like = torch.empty(1, channels, window.block_latent_frames, *cells)
    scene = Scene(model, like, window, window.block_latent_frames)
    scene.append(torch.empty(1, channels, scene.cache.frames, *cells))
    return scene


def run_passes(scene: Scene, text: TextCache, window: WindowConfig) -> None:
    """One denoising step of a block, and a recache of all that is not the sink."""
    block, count = window.block_latent_frames, scene.cache.frames - scene.cache.sink
    scene.open(scene.end, block)
    scene.flow(scene.newest(block).float(), 1.0, text)
    scene.open(scene.end - count, count)
    scene.fill_cache(scene.newest(count), text)


def build_decoder(preset: Preset, name: str) -> nn.Module:
    """The decoder of that name, with no numbers in it; a preset's own comes first."""
    if preset.autoencoder:
        return TinyAutoencoder(preset.autoencoder)
    return TinyAutoencoder(TINY_WAN) if name == "tiny" else WanAutoencoder(WanAutoencoderConfig())


@lru_cache
@torch.inference_mode()
def decoder_bytes(
    preset: Preset, name: str, block: int, size: tuple[int, int], compute: torch.dtype, is_cpu: bool = False
) -> tuple[int, int, int]:
    """The decoder's weights, its past, and what it takes beside these for a block in mid-video.

    A tiled one on a card holds the past of one tile there, on a CPU those of all.
    """
    is_tiled = name == "tiled"
    num_pasts = num_tiles(*latent_size(*size)) if is_tiled and is_cpu else 1
    if is_tiled:
        size = (min(size[0], TILE_PIXELS), min(size[1], TILE_PIXELS))
    with META:
        decoder = build_decoder(preset, name).to(compute)
        weights = sum(tensor.nbytes for tensor in decoder.state_dict().values())
        stream = StreamingDecoder(decoder)
        with LiveBytes(is_cpu) as live:
            for _ in range(2):
                stream.push(torch.empty(1, preset.model.latent_channels, block, *latent_size(*size)))
        past = live.now
    return weights, num_pasts * past, live.peak - past


def fitting(
    preset: Preset, wanted: Setting, budget: int, device: torch.device
) -> Iterator[tuple[Setting, Needs]]:
    """Settings that need at most `budget` bytes, those nearest to what was wanted first."""
    for setting in smaller(wanted):
        needs = estimate(preset, setting, device)
        if needs.total <= budget:
            yield setting, needs


def smaller(wanted: Setting) -> Iterator[Setting]:
    """The wanted setting, then ever smaller ones: speed, decoder, precision, window, size."""
    sizes = [(wanted.width, wanted.height)]
    sizes += [size for size in SMALLER_SIZES if prod(size) < prod(sizes[0])]
    if wanted.height > wanted.width:
        sizes[1:] = [(height, width) for width, height in sizes[1:]]
    frames = wanted.window.window_latent_frames
    least = wanted.window.sink_latent_frames + wanted.window.block_latent_frames
    windows = [frames] + [n for n in SMALLER_WINDOWS if least <= n < frames]
    precisions = [wanted.precision] + ([] if PRECISIONS[wanted.precision].is_8_bit else ["fp8"])
    decoders = {"wan": ("wan", "tiled", "tiny"), "tiled": ("tiled", "tiny"), "tiny": ("tiny",)}[
        wanted.decoder
    ]
    speeds = [wanted.speed] + ([PLAIN] if wanted.speed != PLAIN else [])
    for size, window, precision, decoder, speed in product(sizes, windows, precisions, decoders, speeds):
        shorter = replace(wanted.window, window_latent_frames=window)
        yield Setting(*size, precision, decoder, shorter, speed)
