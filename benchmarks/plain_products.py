"""Products of 8-bit matrices in 32-bit arithmetic: what a kernel computes, but for the order of its sums."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive_core.fast.products import FP8, LARGEST, quantise
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.layers import Linear
from longlive_core.weights.quantize import pass_linears

Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x, weight, scale, bias -> x @ weight.T + bias


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
