"""Checkpoints of LongLive and its relatives -> a CausalWan that is ready to run.

Open -> rename -> merge LoRAs -> cast -> assign, one weight after the other into a model on meta: there is no
second copy of the weights, and a bad file changes no model.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import LONGLIVE_1_3B, RELATIVES, ModelConfig, Preset
from ..fast.products import FP8
from ..geometry import PATCH
from ..model.attention import Attend, sdpa
from ..model.causal_wan import CausalWan
from ..model.two_sets import transformer_of
from .files import TensorFile, open_tensors
from .lora import Lora, LoraChoice, open_lora
from .names import (
    MEMORY,
    SCALE,
    WAN_TEXT_TO_VIDEO,
    Shapes,
    bare_name,
    family,
    from_wan,
    misfits,
    printable,
    shapes_in,
)
from .quantize import (
    PRECISIONS,
    check_quantised,
    compute_dtype,
    decoded,
    dequantised,
    stored_small,
    to_8_bits,
    use_products,
)

TRAINED = ("generator", "generator_ema", "ema")  # sections of trainers; prefixes where a file was flattened
SECTIONS = (*TRAINED, "model", "state_dict")
EMA_SECTIONS = ("generator_ema", "ema", "generator", "model", "state_dict")
HEAD_DIM = 128
HEAD_BYTES, SECOND_SET = 1 << 24, re.compile(rb"memory[._]patch_embedding")  # of a file; in SGF+'s names
NO_LORA = (
    "no LoRA was given: longlive_base without LongLive's own LoRA is only the short-clip stage and drifts in "
    "long videos; add lora.pt, unless it is already merged into this file"
)
MERGED = "loras"  # in metadata: LoRAs that are merged into a file, and their strengths
Progress = Callable[[int, int], None]  # weights done, weights in all


class OpenedModel(NamedTuple):
    """What files say of a transformer, before anything of it is in memory: it is on meta, they are mapped."""

    transformer: CausalWan
    preset: Preset
    file: TensorFile
    loras: list[Lora]

    def notes(self) -> tuple[str, ...]:
        """How much of each LoRA is used, and a LoRA that is missing or is in the file already."""
        merged = decoded(self.file.metadata.get(MERGED, ""))
        again = [lora.choice.path.name for lora in self.loras if lora.choice.path.name in merged]
        of_both = "; both sets of weights are changed alike" if self.preset.has_two_sets else ""
        return (
            *(lora.report() + of_both for lora in self.loras),
            *(f"{name} is merged into {self.file.path.name} already; leave it out" for name in again),
            *((NO_LORA,) if self.preset.needs_lora and not self.loras and not merged else ()),
        )


class LoadedTransformer(NamedTuple):
    """A transformer, its preset, and notes on its files for the user."""

    transformer: CausalWan
    preset: Preset
    notes: tuple[str, ...]


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

    `precision`: a name in PRECISIONS; `settle` decides how products of 8 bits run. `preset`: a name in
    RELATIVES, None to read it from the file. `num_heads`: None for heads of 128. Raises ValueError in one
    sentence for everything that is wrong with the files.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    opened = open_model(path, loras, preset, num_heads, attend)
    fill(opened, precision, torch.device(device), on_progress)
    return LoadedTransformer(opened.transformer.eval(), opened.preset, opened.notes())


def open_model(
    path: Path,
    loras: Sequence[LoraChoice] = (),
    preset: str | None = None,
    num_heads: int | None = None,
    attend: Attend = sdpa,
) -> OpenedModel:
    """Open a checkpoint and its LoRAs and check that they fit; arguments and errors of `load_transformer`."""
    if preset is not None and preset not in RELATIVES:
        raise ValueError(f"unknown model family {preset!r}; choose one of {', '.join(RELATIVES)}")
    chosen, file = opened_as(RELATIVES[preset], path) if preset else recognised(path)
    check_sets(chosen, file)
    config = config_of(file.shapes, path, num_heads or file.metadata.get("num_heads"))
    with torch.device("meta"):
        transformer = transformer_of(chosen.has_two_sets)(config, attend).requires_grad_(False)
    shapes = shapes_in(transformer.state_dict())
    no_numbers = [n for n, t in file.tensors.items() if not (t.is_floating_point() or t.dtype == torch.int8)]
    if wrong := misfits(shapes, file.shapes, no_numbers):
        raise ValueError(f"{file.path}: incomplete or wrong checkpoint: {wrong}; use a Wan 2.1 1.3B file")
    one_set = {name: shape for name, shape in shapes.items() if not name.startswith(MEMORY)}
    opened = [open_lora(choice, one_set) for choice in loras]
    return OpenedModel(transformer, replace(chosen, model=config), file, opened)


def open_checkpoint(path: Path, sections: tuple[str, ...]) -> TensorFile:
    """Open a transformer's file under our names and shapes; ValueError says what it is if it is none."""
    file = open_tensors(path, sections)
    parts = (
        {n: t for n, t in file.tensors.items() if n.startswith(f"{s}.")} for s in sections if s in TRAINED
    )
    file = replace(file, tensors=next(filter(None, parts), file.tensors))
    if len(set(map(bare_name, file.tensors))) < len(file.tensors):
        raise ValueError(f"{path} has the same weights under several prefixes; choose a file of one model")
    if (looks := family(file.shapes)) != WAN_TEXT_TO_VIDEO:
        raise ValueError(f"{path} is {looks}; expected a Wan 2.1 1.3B transformer (LongLive or a relative)")
    check_quantised(file, weights := from_wan(file.tensors))
    return replace(file, tensors=weights)


def config_of(shapes: Shapes, source: object, num_heads: int | str | None = None) -> ModelConfig:
    """Read the sizes of a transformer from the shapes of its weights (our names and shapes).

    `num_heads`: None for heads of 128. Raises ValueError, which names the `source`, for shapes of no model.
    """
    try:
        dim, patch = shapes["patch_embedding.weight"]
        config = ModelConfig(
            dim=dim,
            ffn_dim=shapes["layers.0.ffn.0.weight"][0],
            num_heads=int(num_heads or max(1, dim // HEAD_DIM)),
            num_layers=len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
            latent_channels=patch // PATCH**2,
            text_dim=shapes["text_embedding.0.weight"][1],
            freq_dim=shapes["time_embedding.0.weight"][1],
        )
        if 0 in vars(config).values():
            raise ValueError("a size is 0")
        return config
    except KeyError as error:
        raise ValueError(f"{source} is incomplete: {error} is missing") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{source} is no transformer that can run: {error}") from error


def opened_as(preset: Preset, path: Path) -> tuple[Preset, TensorFile]:
    """A preset and the section of a file that it is about."""
    return preset, open_checkpoint(path, EMA_SECTIONS if preset.has_ema else SECTIONS)


def recognised(path: Path) -> tuple[Preset, TensorFile]:
    """The preset by a file's metadata, else its name and its number of sets of weights; and the open file."""
    named, file = opened_as(preset_of_name(Path(path)), path)
    preset, block = preset_of_metadata(file.metadata, path) or named, named.window.block_latent_frames
    if has_two_sets(file) and not preset.has_two_sets:
        pairs = (other for other in RELATIVES.values() if other.has_two_sets)
        preset = next(pair for pair in pairs if pair.window.block_latent_frames == block)
    return (preset, file) if preset.has_ema == named.has_ema else opened_as(preset, path)


def check_sets(preset: Preset, file: TensorFile) -> None:
    """ValueError unless a file has as many sets of weights as the model."""
    if has_two_sets(file) != preset.has_two_sets:
        found, needed = ("two sets", "one") if has_two_sets(file) else ("one set", "two")
        fitting = [other.name for other in RELATIVES.values() if other.has_two_sets == has_two_sets(file)]
        raise ValueError(
            f"{file.path} holds {found} of weights and {preset.name} has {needed}; choose another family: "
            f"{', '.join(fitting)}"
        )


def has_two_sets(file: TensorFile) -> bool:
    """Whether a file, under our names, has a second set of weights."""
    return any(name.startswith(MEMORY) for name in file.tensors)


def may_have_two_sets(path: Path) -> bool:
    """Whether the head of a file, where names are, speaks of a second set of weights; nothing is loaded."""
    with suppress(OSError), path.open("rb") as file:
        return bool(SECOND_SET.search(file.read(HEAD_BYTES)))
    return False


def preset_of_name(path: Path) -> Preset:
    """By how a file is called; `model.pt`, as SGF's are published, by its folders."""
    name = "/".join(path.parts[-4:]) if path.stem == "model" else path.name
    spelled = name.lower().replace("_", "-").replace("self-gradient-forcing", "sgf")
    return next((p for p in RELATIVES.values() if re.search(p.family, spelled)), LONGLIVE_1_3B)


def preset_of_metadata(metadata: dict[str, str], source: object) -> Preset | None:
    """The preset that a file's metadata name: ours by its name, or ComfyUI's mark of a frame-wise model.

    With its name, `window` has fields of its WindowConfig; ValueError, with `source`, if they are impossible.
    """
    transformer = decoded(metadata.get("config", "")).get("transformer")
    is_framewise = isinstance(transformer, dict) and transformer.get("causal_ar")
    marked = RELATIVES["causal-forcing-framewise"] if is_framewise else None
    named = RELATIVES.get(metadata.get("preset"))
    if named is None:
        return marked
    window = decoded(metadata.get("window", ""))
    try:
        if strange := [value for value in window.values() if not isinstance(value, (int, NoneType))]:
            raise ValueError(f"{strange[0]!r} is no number of latent frames")
        return replace(named, window=replace(named.window, **window))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: the window in its metadata is not possible: {printable(str(error))}"
        ) from error


def fill(opened: OpenedModel, precision: str, device: torch.device, on_progress: Progress | None) -> None:
    """Merge, cast and assign every weight of a model on meta.

    Weights that stay as they are in the file stay mapped; but one mapped tensor keeps the whole file mapped,
    so where most are cast the others are copied.
    """
    transformer, tensors = opened.transformer, opened.file.tensors
    small, compute = stored_small(transformer), compute_dtype(precision, device)
    stored = PRECISIONS[precision].stored
    stays_mapped = not opened.loras and {tensors[name].dtype for name in small} == {stored}
    state = dict(transformer.state_dict())
    for done, name in enumerate(state, start=1):
        tensor, scale = prepared(opened, name, stored if name in small else compute)
        is_mapped = tensor.data_ptr() == tensors[name].data_ptr()
        state[name] = tensor.to(device, copy=is_mapped and not stays_mapped)
        if scale is not None:
            transformer.get_submodule(name.removesuffix(".weight")).scale = scale.to(device)
        if on_progress:
            on_progress(done, len(state))
    transformer.load_state_dict(state, strict=True, assign=True)


def prepared(opened: OpenedModel, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A weight of a file, checked, with its LoRAs in fp32, then stored in `dtype`; a scale with 8 bits."""
    file, target = opened.file, name.removeprefix(MEMORY)
    tensor, scale = file.tensors[name], file.tensors.get(name + SCALE)
    check_finite(name, tensor, file.path)
    check_finite(name + SCALE, scale, file.path)
    for lora in (lora for lora in opened.loras if target in lora.patches):
        tensor, scale = lora.apply(target, dequantised(tensor, scale)), None
        check_finite(name, tensor, lora.choice.path)
    return cast(tensor, scale, dtype)


def check_finite(name: str, tensor: Tensor | None, path: Path) -> None:
    """ValueError unless all numbers of a weight, if any, are finite, as `path` gives or changes it."""
    if tensor is None:
        return
    if tensor.dtype == FP8:  # slow to convert on a CPU; in NaN alone all bits but the sign are set
        is_finite = (tensor.view(torch.uint8) & 0x7F).max() < 0x7F
    else:
        ends = torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor)  # NaN if any number is NaN
        is_finite = all(map(torch.isfinite, ends))
    if not is_finite:
        raise ValueError(f"{path} is damaged: {name} is not finite; download it again")


def cast(tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A weight in the dtype that it is stored in; 8 bits come with a scale for each row."""
    if scale is not None and tensor.dtype == dtype and dtype.itemsize == 1:
        return tensor, scale.float().flatten().expand(len(tensor)).clone()
    tensor = tensor if scale is None else dequantised(tensor, scale)
    if dtype.itemsize > 1:
        return tensor.to(dtype), None
    return to_8_bits(tensor.float() if tensor.itemsize == 1 else tensor, dtype)


def settle(transformer: CausalWan, precision: str, device: torch.device) -> tuple[str, ...]:
    """Ready a transformer, wherever it was loaded, to run on `device`; its layers' matrices stay as stored.

    Returns notes for the user.
    """
    dtype, small = compute_dtype(precision, device), stored_small(transformer)
    for name, weight in transformer.named_parameters():
        if name not in small:
            weight.data = weight.data.to(dtype)
    return use_products(transformer, precision, device)
