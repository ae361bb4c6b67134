"""Checkpoints of LongLive and its relatives -> a CausalWan that is ready to run.

Read -> rename -> merge LoRAs -> cast, portion by portion into a model built on meta: no second copy of the
weights, and no tensor left where it was when the file is bad.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import LONGLIVE_1_3B, RELATIVES, ModelConfig, Preset
from ..geometry import PATCH
from ..model.attention import Attend, sdpa
from ..model.causal_wan import CausalWan
from .families import WAN_TEXT_TO_VIDEO, Shapes, family
from .files import TensorFile, open_tensors
from .fit import misfits
from .lora import Lora, LoraChoice, open_lora
from .names import our_name
from .quantize import (
    FP8,
    MARKERS,
    SCALES,
    SMALL_TYPES,
    from_8_bits,
    layer_linears,
    to_8_bits,
    use_fp8_products,
)

SECTIONS = ("generator", "generator_ema", "model")
EMA_SECTIONS = ("generator_ema", "generator", "model")
HEAD_DIM = 128
PORTION_BYTES = 256 * 2**20
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": FP8,  # storage only
    "fp8-fast": FP8,  # products too, where the GPU has them
    "int8": torch.int8,
}
Progress = Callable[[int, int], None]  # bytes done, bytes in all


class LoadedTransformer(NamedTuple):
    """A transformer, what it is run with, and what the user should hear about its files."""

    transformer: CausalWan
    preset: Preset
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's file under our names: `names` ours -> the file's, `scales` ours -> the file's."""

    file: TensorFile
    config: ModelConfig
    names: dict[str, str]
    scales: dict[str, str]

    def shapes(self) -> Shapes:
        """Shape of every weight as the model holds it: the patch convolution is a matrix."""
        shapes = {ours: self.file.shapes[theirs] for ours, theirs in self.names.items()}
        return {name: _as_matrix(name, shape) for name, shape in shapes.items()}


def load_transformer(
    path: Path,
    loras: Sequence[LoraChoice] = (),
    precision: str = "bf16",
    device: torch.device | str = "cpu",
    attend: Attend = sdpa,
    preset: str | None = None,
    num_heads: int | None = None,
    on_progress: Progress | None = None,
) -> LoadedTransformer:
    """Load a checkpoint in any known layout, with LoRAs merged.

    `precision`: fp32, bf16, fp16, or fp8, fp8-fast, int8 (the layers' matrices in 8 bits; `settle` decides on
    their arithmetic). `preset`: a name in RELATIVES, None to tell it from the file. `num_heads`: None for
    heads of 128. Raises ValueError in one sentence for everything that is wrong with the files.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    chosen = _chosen_preset(preset, Path(path))
    checkpoint = open_checkpoint(path, EMA_SECTIONS if chosen.has_ema else SECTIONS, num_heads)
    chosen = replace(
        _preset_of_file(checkpoint.file) or chosen if preset is None else chosen, model=checkpoint.config
    )
    opened = [open_lora(choice, checkpoint.shapes()) for choice in loras]
    with torch.device("meta"):
        transformer = CausalWan(checkpoint.config, attend).requires_grad_(False)
    check_shapes(checkpoint, transformer)
    fill(transformer, values(checkpoint, opened, transformer, precision, torch.device(device), on_progress))
    notes = [lora.report() for lora in opened]
    if chosen.needs_lora and not opened:
        notes.append(NO_LORA)
    return LoadedTransformer(transformer.eval(), chosen, tuple(notes))


NO_LORA = (
    "no LoRA was given: longlive_base without LongLive's own LoRA is only the short-clip stage and drifts in "
    "long videos; add lora.pt, unless it is already merged into this file"
)


def open_checkpoint(
    path: Path, sections: tuple[str, ...] = SECTIONS, num_heads: int | None = None
) -> Checkpoint:
    """Look into a transformer's file; ValueError says what the file is when it is none."""
    file = open_tensors(path, sections)
    if (looks := family(file.shapes)) != WAN_TEXT_TO_VIDEO:
        raise ValueError(
            f"{path}: this is {looks}; expected a Wan 2.1 1.3B transformer (LongLive or a relative)"
        )
    names, scales = {}, {}
    for theirs in file.shapes:
        if theirs.endswith(MARKERS):
            continue
        suffix = next((s for s in SCALES if theirs.endswith(s)), None)
        if suffix:
            scales[our_name(theirs.removesuffix(suffix) + ".weight")] = theirs
        else:
            names[our_name(theirs)] = theirs
    heads = num_heads or file.metadata.get("num_heads")
    shapes = {ours: _as_matrix(ours, file.shapes[theirs]) for ours, theirs in names.items()}
    return Checkpoint(file, config_of(shapes, path, heads), names, scales)


def config_of(shapes: Shapes, source: object, num_heads: int | str | None = None) -> ModelConfig:
    """Sizes of a transformer, read from the shapes of its weights under our names, the patches a matrix.

    `num_heads`: None for heads of 128. Raises ValueError, which names the `source`, for shapes of no model.
    """

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name, ())
        if len(shape) <= axis:
            raise ValueError(f"{source} lacks {name}, so its sizes cannot be told; it is incomplete")
        return shape[axis]

    dim = size("patch_embedding.weight", 0)
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    try:
        return ModelConfig(
            dim=dim,
            ffn_dim=size("layers.0.ffn.0.weight", 0),
            num_heads=int(num_heads or max(1, dim // HEAD_DIM)),
            num_layers=len(layers),
            latent_channels=size("patch_embedding.weight", 1) // PATCH**2,
            text_dim=size("text_embedding.0.weight", 1),
            freq_dim=size("time_embedding.0.weight", 1),
        )
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{source} is no transformer that can be run: {error}") from error


def _chosen_preset(name: str | None, path: Path) -> Preset:
    """The preset of that name, or the one that the file's name speaks of."""
    if name is not None:
        if name not in RELATIVES:
            raise ValueError(f"unknown model family {name!r}; choose one of {', '.join(RELATIVES)}")
        return RELATIVES[name]
    spelled = path.name.lower().replace("_", "-")
    return next((p for p in RELATIVES.values() if p.family in spelled), LONGLIVE_1_3B)


def _preset_of_file(file: TensorFile) -> Preset | None:
    """The preset that the file's metadata ask for: ours by name, or ComfyUI's mark of a frame-wise model."""
    if file.metadata.get("preset") in RELATIVES:
        return RELATIVES[file.metadata["preset"]]
    try:
        transformer = json.loads(file.metadata.get("config", "{}")).get("transformer", {})
    except (json.JSONDecodeError, AttributeError):
        return None
    return RELATIVES["causal-forcing-framewise"] if transformer.get("causal_ar") else None


def check_shapes(checkpoint: Checkpoint, transformer: CausalWan) -> None:
    """One ValueError that lists everything missing, unexpected or misshapen."""
    expected = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    file, found = checkpoint.file, checkpoint.shapes()
    no_numbers = [name for name in found if file.dtypes[checkpoint.names[name]] is None]
    if wrong := misfits(expected, found, no_numbers):
        raise ValueError(
            f"{file.path} is not the whole of one transformer: {wrong}; choose the complete Wan 2.1 1.3B file"
        )


def values(
    checkpoint: Checkpoint,
    loras: Sequence[Lora],
    transformer: CausalWan,
    precision: str,
    device: torch.device,
    on_progress: Progress | None,
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(our name, tensor, its scale if it is in 8 bits) of every weight, ready to use.

    Weights that stay as they are in the file stay mapped; but one mapped tensor keeps the whole file's pages,
    so where most are made anew the others are copied.
    """
    small, compute = stored_small(transformer), compute_dtype(precision, device)
    file_dtypes = {checkpoint.file.dtypes[checkpoint.names[name]] for name in small}
    is_mapped = not loras and file_dtypes == {PRECISIONS[precision]}
    done, total = 0, sum(_num_bytes(checkpoint, name) for name in checkpoint.names)
    for names in portions(checkpoint):
        theirs = [found[n] for n in names for found in (checkpoint.names, checkpoint.scales) if n in found]
        tensors = checkpoint.file.read(theirs)
        changes = [(lora, lora.read(names)) for lora in loras]
        for name in names:
            scale = tensors.get(checkpoint.scales.get(name, ""))
            for part in (tensors[checkpoint.names[name]], scale):
                if part is not None:
                    check_finite(name, part, checkpoint.file.path)
            tensor, scale = merged(name, tensors[checkpoint.names[name]], scale, changes)
            dtype = PRECISIONS[precision] if name in small else compute
            tensor, scale = stored(tensor, scale, dtype)
            if not is_mapped and tensor.data_ptr() == tensors[checkpoint.names[name]].data_ptr():
                tensor = tensor.clone()
            yield name, tensor.to(device), None if scale is None else scale.to(device)
            done += _num_bytes(checkpoint, name)
        if on_progress:
            on_progress(done, total)


def portions(checkpoint: Checkpoint) -> Iterator[list[str]]:
    """Our names in groups of about PORTION_BYTES: what is held beside the model while it loads."""
    group, size = [], 0
    for name in checkpoint.names:
        group.append(name)
        size += _num_bytes(checkpoint, name)
        if size >= PORTION_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def merged(
    name: str, tensor: Tensor, scale: Tensor | None, changes: Sequence[tuple[Lora, dict[str, Tensor]]]
) -> tuple[Tensor, Tensor | None]:
    """One weight of the file with every LoRA that changes it; an unchanged fp8 weight keeps its scale."""
    wanted = [(lora, tensors) for lora, tensors in changes if name in lora.patches]
    if scale is not None and wanted:
        tensor, scale = from_8_bits(tensor, scale), None
    if name == "patch_embedding.weight":
        tensor = tensor.flatten(1)
    for lora, tensors in wanted:
        tensor = tensor.float() + lora.change(name, tensors).view(tensor.shape)
        check_finite(name, tensor, lora.choice.path)
    return tensor, scale


def check_finite(name: str, tensor: Tensor, path: Path) -> None:
    """ValueError unless all numbers of a weight are finite, as `path` gives or changes it."""
    if not torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all():
        raise ValueError(f"{path} is damaged: {name} is not finite; download it again")


def stored(tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A weight as it stays in memory; 8 bits come with a scale a row."""
    if scale is not None and tensor.dtype == dtype:
        return tensor, scale.float().flatten().expand(len(tensor)).contiguous()
    tensor = tensor if scale is None else from_8_bits(tensor, scale)
    if dtype not in SMALL_TYPES:
        return tensor.to(dtype), None
    return to_8_bits(tensor.float() if tensor.itemsize == 1 else tensor, dtype)


def stored_small(transformer: CausalWan) -> set[str]:
    """The matrices that make up nearly all of a model: the layers' linears."""
    return {f"{name}.weight" for name in layer_linears(transformer)}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """In what the arithmetic runs: bf16 beside 8 bits; fp32 on CPUs that only emulate shorter numbers."""
    if precision == "fp32":
        return torch.float32
    if device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return torch.float32
    return torch.float16 if precision == "fp16" else torch.bfloat16


def settle(transformer: CausalWan, precision: str, device: torch.device) -> tuple[str, ...]:
    """Ready a transformer, wherever it was loaded, to run on `device`; its layers' matrices stay as stored.

    Returns notes for the user.
    """
    dtype, small = compute_dtype(precision, device), stored_small(transformer)
    for name, weight in transformer.named_parameters():
        if name not in small:
            weight.data = weight.data.to(dtype)
    return (use_fp8_products(transformer, device),) if precision == "fp8-fast" else ()


def fill(transformer: CausalWan, tensors: Iterator[tuple[str, Tensor, Tensor | None]]) -> None:
    """Give a model on meta its weights, without copying them."""
    state = {}
    for name, tensor, scale in tensors:
        state[name] = tensor
        if scale is not None:
            transformer.get_submodule(name.removesuffix(".weight")).scale = scale
    transformer.load_state_dict(state, strict=True, assign=True)


def _num_bytes(checkpoint: Checkpoint, name: str) -> int:
    theirs = checkpoint.names[name]
    dtype = checkpoint.file.dtypes[theirs] or torch.uint8
    return torch.Size(checkpoint.file.shapes[theirs]).numel() * dtype.itemsize


def _as_matrix(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name == "patch_embedding.weight" and len(shape) == 5:
        return (shape[0], torch.Size(shape[1:]).numel())
    return shape
