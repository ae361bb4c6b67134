"""Matrices in 8 bits: how rows are quantised and dequantised, and the product that multiplies in fp8.

Gain of `fp8_linear` at 832x480 on one H200, layers compiled: 45.5 -> 50.6 frames/s, 1.11 times
(benchmarks/README.md); what it loses: docs/precision.md. Storage alone halves the weights and gains no speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = {FP8: torch.finfo(FP8).max, torch.int8: 127.0}
SMALLEST_SCALE = 1e-12
FP8_CAPABILITY = (8, 9)  # no GPU before GeForce RTX 40 and H100 multiplies fp8
CPU_ROWS = 512  # of a matrix, dequantised at once: few enough to stay in the CPU's cache


def quantise(rows: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """Rows [..., K] -> (e4m3 or int8 [..., K], fp32 scale [..., 1]); rows are about quantised * scale."""
    peak = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scale = (peak / LARGEST[dtype]).clamp_min(SMALLEST_SCALE)
    scaled = rows / scale
    return (scaled if dtype.is_floating_point else scaled.round_()).to(dtype), scale


def upcast(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers in `dtype`.

    torch converts fp8 on a CPU one number at a time, several times slower than it multiplies. The bits of
    e4m3 fit into a half float, whose exponent counts from 15 instead of 7; the two codes of NaN become 480.
    """
    if stored.dtype != FP8 or stored.device.type != "cpu":
        return stored.to(dtype)
    bits = stored.view(torch.int8).to(torch.int16)
    halves = ((bits & -0x8000) | ((bits & 0x7F) << 7)).view(torch.float16)
    return halves.to(dtype) * 2**8


def stored_linear(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x [..., in] times a weight [out, in] of another dtype and its scale [1] or [out], in x's dtype.

    The bias goes into the sums: with scales that are powers of two the result is, bit for bit, that of
    F.linear with the dequantised weight, which ComfyUI computes.
    """
    if bias is not None and scale is not None:
        bias = (bias / scale).to(x.dtype)
    if x.device.type == "cpu":
        parts = [slice(start, start + CPU_ROWS) for start in range(0, len(weight), CPU_ROWS)]
        biases = [None if bias is None else bias[part] for part in parts]
        products = (F.linear(x, upcast(weight[p], x.dtype), b) for p, b in zip(parts, biases, strict=True))
        y = torch.cat([*products], dim=-1)
    else:
        y = F.linear(x, weight.to(x.dtype), bias)
    if scale is None:
        return y
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (y * scale).to(x.dtype)
    return y.mul_(scale)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x [..., in] rounded to e4m3 times an e4m3 weight [out, in]; scale and bias [out] follow in x's dtype.

    Tokens get no scale: between 2^-6 and 448 e4m3 is as exact without one, and no token is read twice to find
    it; what lies beyond 448 becomes 448.
    """
    one = torch.ones((), dtype=torch.float32, device=x.device)
    rows = x.flatten(0, -2).clamp(-LARGEST[FP8], LARGEST[FP8]).to(FP8)
    # No public product takes fp8 before torch 2.10.
    y = torch._scaled_mm(rows, weight.t(), one, one, out_dtype=x.dtype, use_fast_accum=x.is_cuda)
    return torch.addcmul(bias, y, scale).to(x.dtype).unflatten(0, x.shape[:-1])


def lacks_fp8_products(device: torch.device) -> str | None:
    """Why `device` cannot multiply in fp8, in a few words; None where it can."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"this {device.type.upper()} has no fp8 products"
    if (capability := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        name, found = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        return f"{name} has compute capability {found}, and fp8 products need 8.9 (RTX 40, H100)"
    return None
