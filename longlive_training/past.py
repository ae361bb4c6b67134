"""A rollout's own past as constants, for a pass that is trained on it."""

from dataclasses import dataclass

from torch import Tensor

from longlive_core.model.cache import KVCache, LayerCache
from longlive_core.rollout.rollout import Hook


class OwnPast:
    """The cached past of a rollout as constants, with room for a block that carries gradients."""

    mask = None

    def __init__(self, cache: LayerCache):
        self._cache = cache

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All that may be attended, with the block's own K and V in their places."""
        (keys, values), places = self._cache.seen(), self._cache.tokens
        return keys.index_copy(1, places, k), values.index_copy(1, places, v)


@dataclass
class Past:
    """Stands in for the KV cache in a pass that is trained."""

    layers: list[OwnPast]

    @classmethod
    def of(cls, cache: KVCache) -> "Past":
        """What the open frames of a cache may attend to."""
        return cls([OwnPast(layer) for layer in cache.layers])


class Trajectory(Hook):
    """Keeps the clean estimates of a block's denoising steps."""

    def __init__(self):
        self.cleans: list[Tensor] = []

    def on_step(self, block: int, step: int, flow: Tensor, clean: Tensor) -> None:
        self.cleans.append(clean)
