"""Arithmetic in 8 bits: a token and a row of the weight share one scale each, so both factor out of the sum.

Each kernel takes x [..., in], weight [out, in] in 8 bits, its scale [out] and the bias [out], and gives
[..., out] in x's dtype. `plain` is what they mean in 32-bit arithmetic, `plain_unscaled` where tokens have no
scales.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = {FP8: torch.finfo(FP8).max, torch.int8: 127.0}
SMALLEST_SCALE = 1e-12
INT8_ROWS = 32  # CUDA's integer product takes no fewer than 17 rows
Multiply = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def shrink(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [..., K] -> (e4m3 or int8 [..., K], fp32 scale [..., 1]); rows are about small * scale."""
    peak = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scale = (peak / LARGEST[dtype]).clamp_min(SMALLEST_SCALE)
    small = rows / scale
    return (small if dtype.is_floating_point else small.round_()).to(dtype), scale


def as_it_is(x: Tensor) -> Tensor:
    """The same in e4m3, what lies beyond it brought to its edge."""
    return x.clamp(-LARGEST[FP8], LARGEST[FP8]).to(FP8)


def plain_unscaled(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As `plain`, tokens without scales."""
    out = F.linear(as_it_is(x).float(), weight.float())
    return torch.addcmul(bias.float(), out, scale).to(x.dtype)


def plain(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """What a kernel computes, without one: numbers of 8 bits multiplied as fp32."""
    small, token_scale = shrink(x, weight.dtype)
    out = F.linear(small.float(), weight.float()) * token_scale
    return torch.addcmul(bias.float(), out, scale).to(x.dtype)


def fp8_by_rows(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scales inside the kernel: Hopper and later, and CPUs; x in bf16 or fp32."""
    small, token_scale = shrink(x.flatten(0, -2), FP8)
    options = {"out_dtype": x.dtype, "use_fast_accum": x.is_cuda}
    if x.dtype == torch.bfloat16:  # the only bias that every kernel takes
        options["bias"] = bias
    out = torch._scaled_mm(small, weight.t(), token_scale, scale[None], **options)
    return (out if "bias" in options else out + bias).unflatten(0, x.shape[:-1])


def fp8_unscaled(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Tokens rounded as they are, the rows' scales applied after: Ada (8.9) and later, and CPUs.

    Between 2^-6 and 448 e4m3 is as exact as with a scale, and no token has to be read twice to find one.
    """
    one = torch.ones((), dtype=torch.float32, device=x.device)
    small = as_it_is(x.flatten(0, -2))
    out = torch._scaled_mm(small, weight.t(), one, one, out_dtype=x.dtype, use_fast_accum=x.is_cuda)
    return torch.addcmul(bias, out, scale).to(x.dtype).unflatten(0, x.shape[:-1])


def int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Exact integer sums, scaled after: Turing (7.5) and later, and CPUs."""
    small, token_scale = shrink(x.flatten(0, -2), torch.int8)
    rows = len(small)
    if rows < INT8_ROWS:
        small = F.pad(small, (0, 0, 0, INT8_ROWS - rows))
    out = torch._int_mm(small, weight.t())[:rows] * token_scale
    return torch.addcmul(bias, out, scale).to(x.dtype).unflatten(0, x.shape[:-1])
