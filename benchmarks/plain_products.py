"""Products of 8-bit matrices and attention in int8, in 32-bit arithmetic.

Products are what a kernel computes, but for the order of its sums. Attention follows the documentation of
comfy-kitchen's kernel, which has no version for CPUs: it is a model of that kernel, not its twin.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive_core.fast.products import FP8, LARGEST, quantise
from longlive_core.model.attention import Attend
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.layers import Linear, Product
from longlive_core.weights.quantize import pass_linears


def plain(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Tokens in the weight's 8 bits, each with a scale of its own."""
    small, token_scale = quantise(x, weight.dtype)
    out = F.linear(small.float(), weight.float()) * token_scale
    return torch.addcmul(bias.float(), out, scale).to(x.dtype)


def plain_unscaled(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """What `fp8_linear` computes: tokens rounded to e4m3 without a scale."""
    out = F.linear(x.clamp(-LARGEST[FP8], LARGEST[FP8]).to(FP8).float(), weight.float())
    return torch.addcmul(bias.float(), out, scale).to(x.dtype)


def multiply_by(product: Product, model: CausalWan) -> None:
    """Compute every pass over a quantised model with `product`; matrices without a scale stay as they are."""
    for linear in pass_linears(model).values():
        if linear.scale is not None:
            linear.forward = partial(multiplied, product, linear)


def multiplied(product: Product, linear: Linear, x: Tensor) -> Tensor:
    """x [..., in] through a linear layer -> [..., out]."""
    return product(x, linear.weight, linear.scale, linear.bias)


STEPS = 255  # of a softmax
QUERIES, KEYS = 4, 32  # that share a scale
HEAD_DIMS = (64, 128, 256)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q [B, L, N, D] on k, v [B, M, N, D] in int8: q and k rotated, v with a scale a channel."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    width = next(width for width in HEAD_DIMS if q.shape[-1] <= width)
    turn, scale = hadamard(width), q.shape[-1] ** -0.5
    q, k = (F.pad(t.float(), (0, width - t.shape[-1])) @ turn for t in (q, k))
    scores = rounded(q, QUERIES) @ rounded(k, KEYS).mT * scale
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    values, channel_scale = quantise(v.float().mT, torch.int8)
    out = (weights * STEPS).round() / STEPS @ (values * channel_scale).mT / weights.sum(dim=-1, keepdim=True)
    return out.to(v.dtype).transpose(1, 2)


def rounded(rows: Tensor, count: int) -> Tensor:
    """Rows [..., L, D] in int8 and back; `count` neighbours share a scale."""
    length, width = rows.shape[-2:]
    groups = F.pad(rows, (0, 0, 0, -length % count)).unflatten(-2, (-1, count)).flatten(-2)
    small, scale = quantise(groups, torch.int8)
    return (small * scale).unflatten(-1, (count, width)).flatten(-3, -2)[..., :length, :]


def hadamard(width: int) -> Tensor:
    """The orthogonal matrix [width, width] of equal magnitudes; `width` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix * width**-0.5


def attend_by(attend: Attend, model: CausalWan) -> None:
    """Compute the self-attention of every layer with `attend`."""
    for layer in model.layers:
        layer.self_attn.attend = attend
