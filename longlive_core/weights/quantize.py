"""Precisions: how the layers' matrices are stored; in 8 bits with a scale a matrix (fp8) or a row (int8).

Where no kernel multiplies in 8 bits, or none is faster, weights are dequantised at their use (storage only).
"""

import json
from math import frexp
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..fast.int8 import int8_linear, int8_trial
from ..fast.products import FP8, LARGEST, SMALLEST_SCALE, fp8_linear, lacks_fp8_products, quantise
from ..model.causal_wan import CausalWan
from ..model.layers import Linear, Product
from .files import TensorFile, first_line
from .names import SCALE, our_name, printable, some


class Precision(NamedTuple):
    """How the layers' matrices are stored, and whether they are multiplied in 8 bits where a GPU can do it.

    With `is_measured` only where that is faster than dequantising them.
    """

    stored: torch.dtype
    has_8_bit_products: bool = False
    is_measured: bool = False

    @property
    def is_8_bit(self) -> bool:
        return self.stored.itemsize == 1


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
    "fp8": Precision(FP8),
    "fp8-fast": Precision(FP8, has_8_bit_products=True),
    "int8": Precision(torch.int8, has_8_bit_products=True, is_measured=True),
    "int8-fast": Precision(torch.int8, has_8_bit_products=True),
}
FORMATS = {  # of weights that ComfyUI quantised -> how they are stored; a scale comes with each
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8_tensorwise": torch.int8,
}
_NOTE, _NOTES = ".comfy_quant", "_quantization_metadata"  # ComfyUI's, a tensor for each weight or in metadata
_NO_LAYOUT = ("format", "full_precision_matrix_mult", "orig_dtype", "per_row")  # the rest changes the numbers
_REMEDY = "use a file in bf16 or fp8, or ComfyUI's own loader and LongLive: Use Model"
ONCE_A_PROMPT = ("cross_attn.k", "cross_attn.v")  # no time to gain there


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """dtype of activations and all other weights: bf16 with 8 bits, fp32 on CPUs that only emulate bf16."""
    if precision == "fp32":
        return torch.float32
    if device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return torch.float32
    return torch.float16 if precision == "fp16" else torch.bfloat16


def precision_of(num_bytes: float, dtype: torch.dtype | None = None) -> str:
    """Name of the precision that stores this dtype, else of the one nearest to so many bytes a weight."""
    stored = {name: precision.stored for name, precision in PRECISIONS.items()}
    return min(stored, key=lambda name: (stored[name] != dtype, abs(stored[name].itemsize - num_bytes)))


def to_8_bits(weight: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """Weight [out, in] -> (e4m3 or int8 [out, in], fp32 scale [out]); weight is about small * scale.

    In int8 each row has a scale. In e4m3, which is as exact at any size, all rows have the same power of two:
    the one kind of scale that ComfyUI reads, and that makes small * scale exact in every dtype.
    """
    if dtype != FP8:
        small, scale = quantise(weight, dtype)
        return small, scale.flatten()
    _, exponent = frexp(max(float(weight.abs().max()) / LARGEST[FP8], SMALLEST_SCALE))
    scale = 2.0**exponent
    return (weight / scale).to(FP8), torch.full((len(weight),), scale, device=weight.device)


def dequantised(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A weight and its scale, one number, one a row or None -> fp32."""
    full = weight.float()
    return full if scale is None else full * scale.float().reshape(-1, *[1] * (full.ndim - 1))


def check_quantised(file: TensorFile, weights: dict[str, Tensor]) -> None:
    """ValueError unless formats and scales of `weights`, the file's under our names, are such as are read."""
    integers = [name for name, tensor in weights.items() if tensor.dtype == torch.int8]
    kinds = dict.fromkeys(integers, "int8 of an unnamed format") | _formats(file)
    strange = [n for n, kind in kinds.items() if n in weights and FORMATS.get(kind) != weights[n].dtype]
    if strange:
        raise ValueError(
            f"{file.path}: {len(strange)} weights are stored as {kinds[strange[0]]} ({some(strange)}); "
            f"only {', '.join(FORMATS)} can be read; {_REMEDY}"
        )
    scales = {name + SCALE: None for name in integers}
    scales |= {name: tensor for name, tensor in weights.items() if name.endswith(SCALE)}
    odd = [n for n, scale in scales.items() if not _is_scale(scale, weights.get(n.removesuffix(SCALE)))]
    if odd:
        raise ValueError(
            f"{file.path}: {len(odd)} scales are not one number for a weight or one for each of its rows "
            f"({some(odd)}); {_REMEDY}"
        )


def _is_scale(scale: Tensor | None, weight: Tensor | None) -> bool:
    if scale is None or weight is None:
        return False
    return scale.numel() == 1 or scale.shape[:1] == weight.shape[:1] == (scale.numel(),)


def _formats(file: TensorFile) -> dict[str, str]:
    """Our names of the weights that ComfyUI quantised -> format, with all else that changes the numbers."""
    layers = decoded(file.metadata.get(_NOTES, "")).get("layers")
    notes = dict(layers) if isinstance(layers, dict) else {}
    for name in (name for name in file.tensors if name.endswith(_NOTE)):
        text = bytes(file.tensors[name].flatten().to(torch.uint8).tolist())
        notes[name.removesuffix(_NOTE)] = decoded(text)
    return {our_name(f"{module}.weight"): _format(note) for module, note in notes.items()}


def decoded(note: str | bytes) -> dict[str, Any]:
    """The object that JSON in a file holds; empty for anything else."""
    try:
        content = json.loads(note)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _format(note: Any) -> str:
    note = note if isinstance(note, dict) else {}
    more = [name for name, value in note.items() if value and name not in _NO_LAYOUT]
    return printable(str(note.get("format", "an unnamed format"))) + (f" with {some(more)}" if more else "")


def layer_linears(transformer: CausalWan) -> dict[str, Linear]:
    """The layers' linears by name, of every set of weights: their matrices make up nearly all of a model."""
    modules = transformer.named_modules()
    return {name: m for name, m in modules if isinstance(m, Linear) and "layers" in name.split(".")}


def pass_linears(transformer: CausalWan) -> dict[str, Linear]:
    """Those of them that every pass multiplies with."""
    linears = layer_linears(transformer).items()
    return {name: linear for name, linear in linears if not name.endswith(ONCE_A_PROMPT)}


def stored_small(transformer: CausalWan) -> set[str]:
    """Names of the weights that a precision is about: the matrices of the layers' linears."""
    return {f"{name}.weight" for name in layer_linears(transformer)}


def quantize(transformer: CausalWan, dtype: torch.dtype) -> None:
    """Store the layers' matrices of a ready transformer in `dtype`, FP8 or int8, in place."""
    for linear in layer_linears(transformer).values():
        small, linear.scale = to_8_bits(linear.weight.data, dtype)
        linear.weight = nn.Parameter(small, requires_grad=False)


def use_products(transformer: CausalWan, precision: str, device: torch.device) -> tuple[str, ...]:
    """Multiply 8-bit weights as they are where `precision` asks for it and `device` can; returns a note."""
    chosen = PRECISIONS[precision]
    if not chosen.has_8_bit_products or (chosen.is_measured and device.type == "cpu"):
        return ()
    linears = pass_linears(transformer)
    if chosen.stored == FP8:
        product, note = fp8_linear, "fp8-fast: the layers' matrices are multiplied in fp8"
        if reason := lacks_fp8_products(device):
            product, note = None, f"{reason}; the weights are stored in fp8 and dequantised at their use"
    else:
        first = (linear for name, linear in linears.items() if name.startswith("layers.0."))
        shapes = tuple(tuple(linear.weight.shape) for linear in first)
        product, note = int8_product(shapes, transformer.dtype, device, chosen.is_measured)
    for linear in linears.values():
        linear.product = product
    return (note,)


def int8_product(
    shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device, is_measured: bool
) -> tuple[Product | None, str]:
    """The product of int8 weights of these shapes: where it runs and, if `is_measured`, is faster; a note."""
    try:
        found = int8_trial(shapes, dtype, device)
    except Exception as error:  # a kernel fails in ways of its own
        return None, f"{first_line(error)}; the weights are stored in int8 and dequantised at their use"
    measured = f"{found.speed:.2f} times as fast as dequantised here, {found.loss:.1%} rms from them"
    if is_measured and not found.is_faster:
        return None, f"int8: the weights are dequantised at their use; as int8 products {measured}"
    return int8_linear, f"the layers' matrices are multiplied in int8 by comfy-kitchen, {measured}"
