"""Weights in 8 bits: a row of a matrix shares one scale. Storage only; arithmetic stays in 16 or 32 bits."""

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
SCALES = (".scale_weight", ".weight_scale")  # how ComfyUI names the scale of a weight, then and now
MARKERS = ("scaled_fp8", "comfy_quant", "scale_input", "input_scale")  # beside weights, but no weights


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [out, in] -> (e4m3 [out, in], fp32 scale [out]); weight is about fp8 * scale."""
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / FP8_MAX
    return (weight.float() / scale[:, None]).to(FP8), scale


def from_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """fp8 [out, in] and its scale, one number or one a row -> fp32."""
    return weight.float() * (scale.float().view(-1, 1) if scale.numel() > 1 else scale.float())
