"""A checkpoint and its LoRAs -> one small safetensors file in ComfyUI's layout, which loads by being mapped.

What is loaded from it is, bit for bit, what checkpoint and LoRAs give at the same precision.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..fast.products import FP8
from ..geometry import PATCH
from .checkpoints import MERGED, OpenedModel, Progress, open_model, prepared
from .files import ALIGNMENT, Layout, save_safetensors
from .lora import LoraChoice
from .names import MEMORY, foreign_name
from .quantize import PRECISIONS, decoded, dequantised, stored_small, to_8_bits

CONVERTED = ("bf16", "fp8")  # precisions that ComfyUI stores like us
MARK = torch.zeros(2, dtype=FP8)  # tells ComfyUI of scales; of two numbers: to multiply in bf16, as we do
PATCHES = "patch_embedding.weight"


def convert(
    path: Path,
    loras: Sequence[LoraChoice],
    precision: str,
    out: Path,
    preset: str | None = None,
    on_progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write the file `out`; returns notes on the files that were read. Other arguments: `load_transformer`.

    The layers' matrices are stored in `precision`, of CONVERTED, all else in fp32. An existing file is never
    replaced. Raises ValueError for what is wrong with files or names, OSError if the disk is full.
    """
    if precision not in CONVERTED:
        raise ValueError(f"a file cannot be converted to {precision}; choose {' or '.join(CONVERTED)}")
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} would be safetensors; choose a name that ends in .safetensors")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name, or delete it")
    opened = open_model(path, loras, preset)
    stored = _stored(opened, precision)
    save_safetensors(out, _layout(opened, stored), _tensors(opened, stored, on_progress), _metadata(opened))
    return opened.notes()


def _stored(opened: OpenedModel, precision: str) -> dict[str, torch.dtype]:
    """The dtype of each weight, in the order of the file."""
    weights, small = opened.transformer.state_dict(), stored_small(opened.transformer)
    dtypes = {name: PRECISIONS[precision].stored if name in small else torch.float32 for name in weights}
    sizes = {name: weights[name].numel() * dtype.itemsize for name, dtype in dtypes.items()}
    return {name: dtypes[name] for name in sorted(dtypes, key=lambda name: sizes[name] % ALIGNMENT != 0)}


def _layout(opened: OpenedModel, stored: dict[str, torch.dtype]) -> Layout:
    """ComfyUI's names, and shapes, with the scales of matrices in fp8 last."""
    weights, channels = opened.transformer.state_dict(), opened.preset.model.latent_channels
    layout = {_theirs(name): (dtype, weights[name].shape) for name, dtype in stored.items()}
    for name in (name for name in layout if name.endswith(PATCHES)):
        layout[name] = layout[name][0], (opened.preset.model.dim, channels, 1, PATCH, PATCH)
    small = [name.removesuffix("weight") for name, (dtype, _) in layout.items() if dtype == FP8]
    scales = {f"{stem}scale_weight": (torch.float32, ()) for stem in small}
    return layout | scales | ({"scaled_fp8": (FP8, MARK.shape)} if small else {})


def _theirs(name: str) -> str:
    """ComfyUI's name; it does not know those of a second set of weights."""
    plain = name.removeprefix(MEMORY)
    return (MEMORY if plain != name else "") + foreign_name(plain, "wan")


def _tensors(
    opened: OpenedModel, stored: dict[str, torch.dtype], on_progress: Progress | None
) -> Iterator[Tensor]:
    """All tensors of the layout, one after the other."""
    scales = []
    for done, (name, dtype) in enumerate(stored.items(), start=1):
        tensor, scale = prepared(name, opened.file, opened.loras, dtype)
        if scale is not None and (scale != scale[0]).any():  # of a file with a scale a row
            tensor, scale = to_8_bits(dequantised(tensor, scale), dtype)
        yield tensor
        scales += [] if scale is None else [scale[:1]]
        if on_progress:
            on_progress(done, len(stored))
    yield from (*scales, MARK) if scales else ()


def _metadata(opened: OpenedModel) -> dict[str, str]:
    """What tells us, and of a frame-wise model ComfyUI, which model it is."""
    preset, merged = opened.preset, {lora.choice.path.name: lora.choice.strength for lora in opened.loras}
    merged = decoded(opened.file.metadata.get(MERGED, "")) | merged
    is_framewise = preset.window.block_latent_frames == 1
    return {
        "preset": preset.name,
        "window": json.dumps(asdict(preset.window)),
        "num_heads": str(preset.model.num_heads),
        **({MERGED: json.dumps(merged)} if merged else {}),
        **({"config": json.dumps({"transformer": {"causal_ar": True}})} if is_framewise else {}),
    }
