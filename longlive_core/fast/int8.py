"""Products in int8 by comfy-kitchen, which comes with ComfyUI: NVIDIA GPUs from Turing on, AMD from RDNA3 on.

Gain: not measured on a GPU. They are used where a trial at load finds them faster than dequantised weights,
or where int8-fast asks for them. What they lose: docs/precision.md.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from .optional import Source, Trial, tried
from .products import quantise, stored_linear

PRODUCT = Source("comfy_kitchen", "int8_linear", "pip install comfy-kitchen")
TOKENS, CPU_TOKENS = 4680, 16  # of a trial: a block at 832x480; a CPU is never chosen, only shown


@torch.library.custom_op("longlive::int8_linear", mutates_args=())
def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return PRODUCT.load()(x, weight, scale.float(), bias, x.dtype)


@_int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x [..., in], quantised with a scale a token, times an int8 weight [out, in]; scale and bias [out].

    Raises ValueError where comfy-kitchen is missing. comfy-kitchen's own function breaks compiled graphs.
    """
    return _int8_linear(x, weight, scale, bias)


@cache
def int8_trial(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Trial:
    """Products in int8 against dequantised weights [out, in] of these shapes, once a process."""
    tokens, inputs = CPU_TOKENS if device.type == "cpu" else TOKENS, []
    with device:
        for rows, columns in shapes:
            small, scale = quantise(torch.randn(rows, columns, dtype=dtype), torch.int8)
            x, bias = torch.randn(tokens, columns, dtype=dtype), torch.zeros(rows, dtype=dtype)
            inputs.append((x, small, scale.flatten(), bias))

    def last(product: Callable[..., Tensor]) -> Tensor:
        return [product(*operands) for operands in inputs][-1]

    return tried(partial(last, int8_linear), partial(last, stored_linear), device)
