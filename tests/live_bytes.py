"""Counts the bytes of live tensors on any device, meta included: the memory plan is tested against it."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while it is on: those alive now, and the most there ever were.

    With `has_copies` a convolution also takes a copy of its input: on CPUs oneDNN reorders it.
    """

    def __init__(self, has_copies: bool = False):
        super().__init__()
        self.peak = 0
        self._sum = 0  # of all in _alive: some may be gone since it was last looked through
        self._has_copies = has_copies
        self._alive: dict[StorageWeakRef, int] = {}
        self._outside: set[StorageWeakRef] = set()  # tensors made before do not count

    @property
    def now(self) -> int:
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self._sum = sum(self._alive.values())
        return self._sum

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._outside.update(storages((args, kwargs)).keys() - self._alive.keys())
        out = function(*args, **(kwargs or {}))
        made = storages(out)
        new = {ref: made[ref] for ref in made.keys() - self._alive.keys() - self._outside}
        self._alive |= new
        self._sum += sum(new.values())
        is_copied = self._has_copies and "conv" in function.overloadpacket.__name__
        copied = args[0].nbytes if is_copied else 0
        if self._sum + copied > self.peak:
            self.peak = max(self.peak, self.now + copied)
        return out


def storages(tree: Any) -> dict[StorageWeakRef, int]:
    """The storage of every tensor in a tree of arguments, and its bytes."""
    found = (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return {StorageWeakRef(storage): storage.nbytes() for storage in found}
