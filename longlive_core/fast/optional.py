"""Kernels of optional packages: imported when they are asked for, and tried against torch on the device.

A trial costs a second at most when a model is loaded (not measured on a GPU), and is kept for the process.
"""

import importlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROUNDS = 5
GAIN = 1.05  # less is not worth another result, and the choice must not change from one process to the next


class Source(NamedTuple):
    """A function of a package, and what to do where it is missing."""

    module: str
    function: str
    remedy: str

    def load(self) -> Callable[..., Any]:
        """The function. Raises ValueError with the remedy where it cannot be imported."""
        try:
            return getattr(importlib.import_module(self.module), self.function)
        except Exception as error:  # packages for another torch or GPU fail in ways of their own
            raise ValueError(
                f"{self.module}.{self.function} cannot be imported ({error}); {self.remedy}"
            ) from error


class Trial(NamedTuple):
    """How many times as fast as the usual function another one is, and the relative rms of the difference."""

    speed: float
    loss: float

    @property
    def is_faster(self) -> bool:
        return self.speed >= GAIN


@torch.no_grad()
def tried(ours: Callable[[], Tensor], usual: Callable[[], Tensor], device: torch.device) -> Trial:
    """Compare two functions of the same inputs, all on `device`. Raises what `ours` raises."""
    right = usual().float()
    loss = float((ours().float() - right).norm() / right.norm())
    best, best_usual = math.inf, math.inf
    for _ in range(ROUNDS):
        best, best_usual = min(best, seconds(ours, device)), min(best_usual, seconds(usual, device))
    return Trial(best_usual / best, loss)


def seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """Time of one call, until the device has finished it."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start
