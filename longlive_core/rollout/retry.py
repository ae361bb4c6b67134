"""What runs out of memory is tried once more, after everything unused was freed.

Both tries compute the same, bit for bit: smaller parts would be other products. What is tried must leave
nothing behind that a second try does not write again.
"""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
GIB = 2**30
NO_MEMORY = (  # in RuntimeErrors: of CPUs, drivers, CUDA's libraries
    *("out of memory", "allocate memory", "not enough memory", "alloc_failed"),
    "storage size calculation overflowed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, in any of its forms, that memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)


def free_unused(device: torch.device) -> None:
    """Give back what no tensor needs: to the device, and to whatever else allocates on it."""
    gc.collect()
    getattr(getattr(torch, device.type, None), "empty_cache", lambda: None)()


def free_for_us(device: torch.device) -> str:
    """How much of a GPU is not held by other programs, as a part of a sentence; empty elsewhere."""
    if device.type != "cuda":
        return ""
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return f"; {free / GIB:.2f} GiB of the GPU were free for this run, weights included"


class SecondTry:
    """Calls what belongs to a block, a second time if memory does not suffice at first."""

    def __init__(self, device: torch.device, on_note: Callable[[str], None]):
        self._device, self._on_note = device, on_note

    def __call__(self, block: int, work: Callable[..., T], *inputs: Any) -> T:
        """What `work` returns. torch.OutOfMemoryError, which says how much was free, if it fails twice.

        The first error is gone before anything is freed: its traceback would keep the tensors alive.
        """
        for note in (f"block {block}: out of memory; freed what was unused, and trying once more", None):
            try:
                return work(*inputs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            free_unused(self._device)
            if note:
                self._on_note(note)
        raise torch.OutOfMemoryError(f"block {block}: out of memory, twice{free_for_us(self._device)}")
