"""Whether this machine multiplies in 8 bits, rightly, and faster than in 16; asked once, after loading.

Each kernel of model/linear8 is run at the true shapes of the layers and its numbers are checked before it is
timed. What fails or is slow is told in one sentence and never raised: 8-bit weights run without a kernel too.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiling import Compiled, new_size
from ..model import linear8
from ..model.causal_wan import CausalWan
from ..model.fastest import seconds_of
from ..model.linear8 import FP8, Multiply
from ..reasons import reason_of
from .quantize import multiply_with, pass_linears, to_8_bits

FP8_CAPABILITY = (8, 9)  # no card before GeForce RTX 40 and H100 multiplies fp8
TOKENS = {"cuda": 4680, "cpu": 32}  # a block at 832x480; on CPUs enough to compare, in seconds
TOLERANCE = 0.02  # relative rms against `plain`: bf16's rounding is 0.003, a wrong product is near 1


class Kernel(NamedTuple):
    """A way to multiply, the dtype of the weights it takes (None for the arithmetic's own), what it means."""

    multiply: Multiply
    weights: torch.dtype | None
    meaning: Multiply = linear8.plain


def wide(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """What 8 bits must beat; its scale is 1."""
    return F.linear(x, weight, bias)


WIDE = Kernel(wide, None)
KERNELS = {
    "fp8-fast": (
        Kernel(linear8.fp8_by_rows, FP8),
        Kernel(linear8.fp8_unscaled, FP8, linear8.plain_unscaled),
    ),
    "int8": (Kernel(linear8.int8, torch.int8),),
}


@dataclass(frozen=True)
class Machine:
    """What runs the layers: device, a name for people, CUDA capability (None off CUDA)."""

    device: torch.device
    name: str
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: torch.device) -> "Machine":
        """The one behind a device."""
        if device.type != "cuda":
            return cls(device, f"this {device.type.upper()}")
        return cls(device, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


@dataclass(frozen=True)
class Work:
    """One pass through one layer: its matrices (out, in) and how many of each; `dtype` of the rest."""

    shapes: tuple[tuple[tuple[int, int], int], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, transformer: CausalWan) -> "Work":
        """That of a transformer; all its layers are alike."""
        counts = Counter(tuple(linear.weight.shape) for linear in pass_linears(transformer).values())
        layers = len(transformer.layers)
        return cls(tuple((shape, n // layers) for shape, n in counts.items()), transformer.dtype)


class Arithmetic(NamedTuple):
    """The kernel to multiply with, None to widen the weights at their use; and why, in one sentence."""

    multiply: Multiply | None
    note: str


Seconds = Callable[[Callable[[], Tensor]], float]  # a call -> how long it takes


def settle_arithmetic(
    transformer: CausalWan, precision: str, device: torch.device, is_compiled: bool = False
) -> tuple[str, ...]:
    """Let a transformer stored in 8 bits multiply as is best on `device`; what the user should hear of it.

    `is_compiled` says that its layers will be: what stands around a product then costs next to nothing.
    """
    if precision not in KERNELS:
        return ()
    chosen = choose_here(precision, Work.of(transformer), device, is_compiled)
    multiply_with(transformer, chosen.multiply)
    return (chosen.note,)


@cache
def choose_here(precision: str, work: Work, device: torch.device, is_compiled: bool) -> Arithmetic:
    """The choice for a device of this machine, measured the first time."""
    return choose(precision, work, Machine.of(device), is_compiled=is_compiled)


@torch.inference_mode()
def choose(
    precision: str,
    work: Work,
    machine: Machine,
    kernels: Sequence[Kernel] | None = None,
    seconds: Seconds = seconds_of,
    is_compiled: bool = False,
) -> Arithmetic:
    """The fastest kernel that is right on this machine, if it beats the arithmetic without one.

    `precision` is a name in KERNELS, which are tried where none are given. Nothing is raised; where nothing
    can be compiled, nothing is.
    """
    if reason := lacks(precision, machine):
        return none_because(reason, precision, work)
    run = Compiled(products, dynamic=False) if is_compiled else products
    with new_size() if is_compiled else nullcontext():
        baseline = attempt(WIDE, work, machine, seconds, run)
        results = [attempt(kernel, work, machine, seconds, run) for kernel in kernels or KERNELS[precision]]
    if is_compiled and run.failure is not None:
        return choose(precision, work, machine, kernels, seconds)
    times = {result.multiply: result.seconds for result in results if isinstance(result, Trial)}
    if not times or not isinstance(baseline, Trial):
        reason = next(result for result in (*results, baseline) if isinstance(result, str))
        return none_because(f"{precision} does not run on {machine.name} ({reason})", precision, work)
    best = min(times, key=times.get)
    gain = baseline.seconds / times[best]
    if gain <= 1:
        slow = f"{precision} has {gain:.2g} times the speed of {named(work.dtype)} on {machine.name}"
        return none_because(slow, precision, work)
    note = f"{precision}: the layers' matrices run {gain:.2g} times as fast as in {named(work.dtype)}"
    return Arithmetic(best, note)


def lacks(precision: str, machine: Machine) -> str | None:
    """Why it is not even tried; None to try."""
    if precision != "fp8-fast" or machine.capability is None or machine.capability >= FP8_CAPABILITY:
        return None
    major, minor = machine.capability
    return (
        f"fp8-fast needs a card of compute capability 8.9 or more (RTX 40, H100) and {machine.name} "
        f"has {major}.{minor}, try int8"
    )


def none_because(reason: str, precision: str, work: Work) -> Arithmetic:
    """The next best: weights as they are stored; said with its cost."""
    dtype = named(work.dtype)
    note = (
        f"{reason}; so weights stay in 8 bits and are widened to {dtype} at their use: the memory of "
        f"{precision}, a little less than the speed of {dtype}"
    )
    return Arithmetic(None, note)


def named(dtype: torch.dtype) -> str:
    """A dtype as users write it."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


class Trial(NamedTuple):
    """A kernel that is right here, and its seconds for one layer."""

    multiply: Multiply
    seconds: float


Operands = tuple[Tensor, Tensor, Tensor]  # weight, its scale, bias


def products(multiply: Multiply, x: Tensor, matrices: Sequence[Operands]) -> Tensor:
    """x through one matrix after the other, a norm before each, to which its rounding can be joined."""
    for matrix in matrices:
        x = multiply(F.rms_norm(x, x.shape[-1:]), *matrix)
    return x


def attempt(
    kernel: Kernel, work: Work, machine: Machine, seconds: Seconds, run: Callable[..., Tensor] = products
) -> Trial | str:
    """Check a kernel on every matrix of a layer and time it on all; the reason if it does not work."""
    matrices: list[Operands] = []
    try:
        for shape, count in work.shapes:
            x, *matrix = operands(kernel, shape, work.dtype, machine.device)
            if kernel is not WIDE and (error := wrong_by(kernel, (x, *matrix))) > TOLERANCE:
                return f"{kernel.multiply.__name__} is off by {error:.0%} of its result"
            matrices += [tuple(matrix)] * count
        x, *_ = operands(kernel, work.shapes[0][0], work.dtype, machine.device)
        return Trial(kernel.multiply, seconds(lambda multiply=kernel.multiply: run(multiply, x, matrices)))
    except Exception as error:  # no kernel, an old torch, no memory, no compiler: nothing in common
        return reason_of(error)


def operands(
    kernel: Kernel, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random x [1, L, in], weight, scale and bias of a linear (out, in), as the kernel takes them."""
    random = torch.Generator(device).manual_seed(0)
    tokens = TOKENS.get(device.type, TOKENS["cuda"])
    x, weight, bias = (
        torch.randn(size, generator=random, device=device)
        for size in ((1, tokens, shape[1]), shape, (shape[0],))
    )
    scale = torch.ones_like(bias)
    if kernel.weights:
        weight, scale = to_8_bits(weight, kernel.weights)
    else:
        weight = weight.to(dtype)
    return x.to(dtype), weight, scale, bias.to(dtype)


def wrong_by(kernel: Kernel, arguments: tuple[Tensor, ...]) -> float:
    """Relative rms of a kernel's numbers against what it should compute; infinite if they are not finite."""
    right = kernel.meaning(*arguments).float()
    error = (kernel.multiply(*arguments).float() - right).norm() / right.norm()
    return float(error) if torch.isfinite(error) else float("inf")
