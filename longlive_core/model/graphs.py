"""Passes recorded once as CUDA graphs and replayed: one launch in place of some thousand.

Once the window is full, a block's passes differ only in what their inputs hold: the ring has a few places to
write to, there are five noise levels, and all addresses stay. So each pair of them is recorded when it comes
for the second time. Whatever comes once only (the growing window, a recache) runs as it is.
"""

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reasons import reason_of
from .cache import KVCache, LayerText, TextCache
from .causal_wan import CausalWan, TimeCache

logger = logging.getLogger("longlive")

Replay = Callable[[], None]
Record = Callable[[Callable[[], Any]], tuple[Replay, Any]]  # run -> (replay it, what it returns each time)
MAX_RECORDINGS = 64


class CudaRecorder:
    """Records on that card; all graphs share one pool of memory, since they never run at once.

    torch by itself records every graph of a process on the card that was current at the first of them.
    """

    def __init__(self, device: torch.device):
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Any]) -> tuple[Replay, Any]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the decoder allocates memory in a thread of its own meanwhile
        with (
            torch.cuda.device(self._stream.device),
            torch.cuda.graph(graph, self._pool, self._stream, "thread_local"),
        ):
            out = run()
        return graph.replay, out


class Inputs:
    """Where the recordings of one shape read what changes from pass to pass; its addresses never change."""

    def __init__(self, latents: Tensor, rotations: Tensor, text: TextCache):
        layers = [LayerText(t.keys.clone(), t.values.clone(), t.mask) for t in text.layers]
        self.latents, self.rotations, self.text = latents.clone(), rotations.clone(), TextCache(layers)
        self._text_now = text

    def fill(self, latents: Tensor, rotations: Tensor, text: TextCache) -> None:
        """Put a pass's inputs in place; the prompt's K and V only when they are others."""
        self.latents.copy_(latents)
        self.rotations.copy_(rotations)
        if text is not self._text_now:
            for here, new in zip(self.text.layers, text.layers, strict=True):
                here.keys.copy_(new.keys)
                here.values.copy_(new.values)
            self._text_now = text


class GraphedModel:
    """A CausalWan that replays what it can; it stands in for the model in a rollout.

    Recordings belong to the cache and the weights they were made with, and are dropped when others come.
    """

    def __init__(self, model: CausalWan, record: Record | None):
        self._model, self._record = model, record
        self._forget()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(
        self, latents: Tensor, time: TimeCache, rotations: Tensor, cache: KVCache, text: TextCache
    ) -> Tensor:
        """As CausalWan.forward."""
        return self._run(self._model, latents, time, rotations, cache, text).clone()

    def remember(
        self, latents: Tensor, time: TimeCache, rotations: Tensor, cache: KVCache, text: TextCache
    ) -> None:
        """As CausalWan.remember."""
        self._run(self._model.remember, latents, time, rotations, cache, text)

    @property
    def num_recordings(self) -> int:
        return len(self._recordings)

    def _forget(self, cache: KVCache | None = None, weights: Sequence[int] = ()) -> None:
        self._cache, self._weights = cache, weights
        self._inputs: dict[torch.Size, Inputs] = {}
        self._recordings: dict[Hashable, tuple[Replay, Any]] = {}
        self._seen: dict[Hashable, TimeCache] = {}  # holds the noise levels, so that their ids stay theirs

    def _run(
        self,
        run: Callable[..., Any],
        latents: Tensor,
        time: TimeCache,
        rotations: Tensor,
        cache: KVCache,
        text: TextCache,
    ) -> Any:
        weights = [layer.ffn[0].weight.data_ptr() for layer in self._model.layers]
        if cache is not self._cache or weights != self._weights:  # a host may have moved them meanwhile
            self._forget(cache, weights)
        key = (run == self._model.remember, id(time), latents.shape, *cache.places)
        if not self._may_replay(key, cache):
            self._seen[key] = time
            return run(latents, time, rotations, cache, text)
        if latents.shape not in self._inputs:
            self._inputs[latents.shape] = Inputs(latents, rotations, text)
        inputs = self._inputs[latents.shape]
        inputs.fill(latents, rotations, text)
        if key not in self._recordings:
            again = functools.partial(run, inputs.latents, time, inputs.rotations, cache, inputs.text)
            if not self._try_record(key, again):
                return again()
        replay, out = self._recordings[key]
        replay()
        return out

    def _may_replay(self, key: Hashable, cache: KVCache) -> bool:
        """Whether this pass is recorded, or should be now; all recordings see a full window."""
        has_room = self._record is not None and len(self._recordings) < MAX_RECORDINGS
        return cache.is_settled and (key in self._recordings or (has_room and key in self._seen))

    def _try_record(self, key: Hashable, run: Callable[[], Any]) -> bool:
        """Record a pass, which computes nothing yet; where that fails, nothing is recorded from now on."""
        try:
            self._recordings[key] = self._record(run)
        except RuntimeError as error:
            self._record = None
            logger.warning("no CUDA graphs here, every pass is launched step by step: %s", reason_of(error))
        return key in self._recordings
