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
from .files import ALIGNMENT, save_safetensors
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
    weights = _weights(opened, PRECISIONS[precision].stored)
    layout = {_theirs(name): like for name, like in weights.items()}
    if precision == "fp8":
        small = [name.removesuffix("weight") for name, like in layout.items() if like.dtype == FP8]
        layout |= {f"{stem}scale_weight": torch.empty((), device="meta") for stem in small}
        layout["scaled_fp8"] = MARK
    save_safetensors(out, layout, _tensors(opened, weights, on_progress), _metadata(opened))
    return opened.notes()


def _weights(opened: OpenedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Our names -> on meta, how each weight is stored; in the order of the file."""
    weights, small = opened.transformer.state_dict(), stored_small(opened.transformer)
    stored = {name: weight.to(dtype if name in small else torch.float32) for name, weight in weights.items()}
    for name in (name for name in stored if name.endswith(PATCHES)):  # a convolution there
        stored[name] = stored[name].unflatten(1, (-1, 1, PATCH, PATCH))
    return dict(sorted(stored.items(), key=lambda weight: weight[1].nbytes % ALIGNMENT != 0))


def _theirs(name: str) -> str:
    """ComfyUI's name; it does not know those of a second set of weights."""
    plain = name.removeprefix(MEMORY)
    return (MEMORY if plain != name else "") + foreign_name(plain, "wan")


def _tensors(
    opened: OpenedModel, weights: dict[str, Tensor], on_progress: Progress | None
) -> Iterator[Tensor]:
    """The weights, one after the other; those in fp8 have their scales at the end."""
    scales = []
    for done, (name, like) in enumerate(weights.items(), start=1):
        tensor, scale = prepared(opened, name, like.dtype)
        if scale is not None:
            if (scale != scale[0]).any():  # of a file with a scale a row
                tensor, scale = to_8_bits(dequantised(tensor, scale), like.dtype)
            scales.append(scale[0])
        yield tensor
        if on_progress:
            on_progress(done, len(weights))
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
