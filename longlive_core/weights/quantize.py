"""The layers' matrices in 8 bits: a row of a matrix shares one scale.

Where no kernel multiplies in 8 bits, weights are widened for the moment of their use (storage only).
"""

import torch
from torch import Tensor, nn

from ..fast.products import FP8, lacks_fp8_products, quantise
from ..model.causal_wan import CausalWan
from ..model.layers import Linear

SCALES = (".scale_weight", ".weight_scale")  # how ComfyUI names the scale of a weight, then and now
MARKERS = ("scaled_fp8", "comfy_quant", "scale_input", "input_scale")  # beside weights, but no weights
SMALL_TYPES = (FP8, torch.int8)
ONCE_A_PROMPT = ("cross_attn.k", "cross_attn.v")  # no time to gain there


def to_8_bits(weight: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """Weight [out, in] -> (e4m3 or int8 [out, in], fp32 scale [out]); weight is about small * scale."""
    small, scale = quantise(weight, dtype)
    return small, scale.flatten()


def from_8_bits(weight: Tensor, scale: Tensor) -> Tensor:
    """8 bits [out, in] and their scale, one number or one a row -> fp32."""
    return weight.float() * (scale.float().view(-1, 1) if scale.numel() > 1 else scale.float())


def layer_linears(transformer: CausalWan) -> dict[str, Linear]:
    """The matrices that make up nearly all of a model: the layers' linears, by name."""
    modules = transformer.layers.named_modules(prefix="layers")
    return {name: module for name, module in modules if isinstance(module, Linear)}


def pass_linears(transformer: CausalWan) -> dict[str, Linear]:
    """Those of them that every pass multiplies with."""
    linears = layer_linears(transformer).items()
    return {name: linear for name, linear in linears if not name.endswith(ONCE_A_PROMPT)}


def quantize(transformer: CausalWan, dtype: torch.dtype) -> None:
    """Store the layers' matrices of a ready transformer in `dtype`, FP8 or int8, in place."""
    for linear in layer_linears(transformer).values():
        small, linear.scale = to_8_bits(linear.weight.data, dtype)
        linear.weight = nn.Parameter(small, requires_grad=False)


def use_fp8_products(transformer: CausalWan, device: torch.device) -> str:
    """Multiply fp8 weights as they are where `device` can; a sentence says whether it does."""
    reason = lacks_fp8_products(device)
    for linear in pass_linears(transformer).values():
        linear.has_fp8_product = reason is None
    if reason is None:
        return "fp8-fast: the layers' matrices are multiplied in fp8"
    return f"{reason}; the weights are stored in fp8 and dequantised at their use"
