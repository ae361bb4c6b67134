"""torch.compile for the transformer's layers: all of them share one graph for each size of input.

Gain at 832x480 in bf16 on one H200: 38.8 -> 45.5 frames/s, 1.17 times, with CUDA graphs, since removed, which
were about 2 % of it (benchmarks/README.md).
"""

from collections.abc import Callable
from typing import Any

import torch

EAGER, COMPILED = SPEEDS = ("plain", "compiled")  # as users write them
REMOVED = {"graphs": "speed graphs was replaced by compiled, which runs now"}
MAX_GRAPHS = 64  # of one function; beyond torch's own 8 it would not compile any more
ON_CUDA = {"triton.multi_kernel": 1}  # rows of 1,536 are normalised in one read: 807 -> 780 us a layer


def known_speed(name: str) -> tuple[str, str | None]:
    """A name in SPEEDS, and a note where an old one was replaced. Raises ValueError for any other."""
    if name in REMOVED:
        return COMPILED, REMOVED[name]
    if name not in SPEEDS:
        raise ValueError(f"unknown speed {name!r}; choose one of {', '.join(SPEEDS)}")
    return name, None


class Compiled:
    """A function compiled for every size it meets; once the compiler has a `failure`, it runs eagerly."""

    def __init__(self, function: Callable[..., Any], device: torch.device):
        self.failure: Exception | None = None
        self._eager = function
        # its name in torch 2.6; later ones know it too
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_GRAPHS)
        options = ON_CUDA if device.type == "cuda" else None
        self._compiled = torch.compile(function, fullgraph=True, dynamic=False, options=options)

    def __call__(self, *arguments: Any) -> Any:
        if self.failure is None:
            try:
                return self._compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in ways of their own
                failure = RuntimeError(str(error) or type(error).__name__)  # its traceback holds arguments
            result = self._eager(*arguments)  # any other error comes again
            self.failure = failure
            return result
        return self._eager(*arguments)
