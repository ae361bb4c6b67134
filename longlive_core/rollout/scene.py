"""The past of a rollout since its last cut: KV cache, newest clean latents, and the model that uses both."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import WindowConfig
from ..geometry import tokens_per_frame
from ..model.cache import Grid, KVCache, TextCache
from ..model.causal_wan import CausalWan, Clean, Modulations
from .noise import TIMESTEP_SCALE


@dataclass(frozen=True)
class RolloutState:
    """The exact state after a block: `end` latent frames since the scene began; the sink's position.

    With `has_made` False all of the scene was given: its next block is the first that is made.
    `tensors`, on the CPU: `embeds` [1 or B, text tokens, text dim] of the prompt in effect, the newest clean
    latents `recent` [B, C, T, H, W], with control their `contexts` [B or 1, 96, T, H, W], and `layers.N.keys`
    and the like, written by a KVCache.
    """

    window: WindowConfig
    end: int
    sink_position: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    has_made: bool = True


class Scene:
    """Opens latent frames, asks the model for their flow, and leaves their K and V in the cache."""

    def __init__(self, model: CausalWan, like: Tensor, window: WindowConfig, capacity: int):
        """`like`: latents of one block [B, C, T, H, W]; `capacity`: latent frames for full attention."""
        self.model = model
        batch, _, _, self.height, self.width = like.shape
        buffer = torch.empty(0, device=model.device, dtype=model.dtype)
        grid = Grid(batch, tokens_per_frame(self.height, self.width), buffer)
        self.cache = KVCache(model.config, window, grid, capacity)
        self._modulations: dict[float, Modulations] = {}
        self.recent: deque[Tensor] = deque(maxlen=self.cache.frames)  # clean latent frames [B, C, H, W]
        self.contexts: deque[Tensor] = deque(maxlen=self.cache.frames)  # of control, [B or 1, 96, H, W] each
        self._context: tuple[Tensor, ...] = ()  # of the open frames, where there is control
        self.end, self.has_made = 0, False

    def clear(self) -> None:
        """A new scene: nothing to attend to, positions begin at 0."""
        self.cache.clear()
        self.recent.clear()
        self.contexts.clear()
        self.end, self.has_made = 0, False

    def open(self, first: int, count: int, refresh_sink: bool = False) -> None:
        """Turn to latent frames first .. first + count - 1: their slots and their rotations."""
        self.cache.open(first, count, refresh_sink)
        positions = torch.arange(first, first + count, device=self.model.device)
        self.rotations = self.model.rotations(positions, self.height, self.width)
        if self.contexts:
            self._context = (newest(self.contexts, count),)

    def flow(self, latents: Tensor, sigma: float, text: TextCache, num_clean: int = 0) -> Tensor:
        """The model's flow for the open frames at noise level `sigma`; the first `num_clean` are at 0."""
        clean = Clean(num_clean, self._modulations_at(0.0)) if num_clean else None
        time = self._modulations_at(sigma)
        return self.model(latents, time, self.rotations, self.cache, text, clean, *self._context)

    def fill_cache(self, latents: Tensor, text: TextCache) -> None:
        """Leave the K and V of clean latents in the open frames' slots."""
        time = self._modulations_at(0.0)
        self.model.fill_cache(latents, time, self.rotations, self.cache, text, *self._context)

    def control(self, context: Tensor) -> None:
        """The next frames are made, and computed again, under this context [B or 1, 96, T, H, W]."""
        self.contexts.extend(context.to(self.model.device).unbind(2))

    def append(self, latents: Tensor) -> None:
        """The open frames are finished: these are their clean latents [B, C, T, H, W]."""
        self.recent.extend(latents.unbind(2))
        self.end += latents.shape[2]

    def newest(self, count: int) -> Tensor:
        """The newest `count` clean latent frames [B, C, count, H, W]."""
        return newest(self.recent, count)

    def state(self, embeds: Tensor) -> RolloutState:
        """All that the next block depends on, copied to the CPU; `embeds` is the prompt in effect."""
        kept = {"recent": self.recent, "contexts": self.contexts}
        kept = {name: newest(frames, len(frames)) for name, frames in kept.items() if frames}
        tensors = {"embeds": embeds, **kept, **self.cache.written()}
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        return RolloutState(self.cache.window, self.end, self.cache.sink_position, copies, self.has_made)

    @property
    def num_bytes(self) -> int:
        """What the KV cache takes, of which a state is a copy."""
        return sum(tensor.nbytes for tensor in self.cache.written().values())

    def restore(self, state: RolloutState) -> None:
        """Become the scene that left this state."""
        self.end, self.has_made = state.end, state.has_made
        for name, frames in (("recent", self.recent), ("contexts", self.contexts)):
            if name in state.tensors:
                frames.extend(state.tensors[name].to(self.model.device).unbind(2))
        self.cache.restore(state.end, state.sink_position, state.tensors)

    def _modulations_at(self, sigma: float) -> Modulations:
        if sigma not in self._modulations:
            self._modulations[sigma] = self.model.modulations(torch.tensor([TIMESTEP_SCALE * sigma]))
        return self._modulations[sigma]


def newest(frames: deque[Tensor], count: int) -> Tensor:
    """The last `count` of frames [B, C, H, W], as [B, C, count, H, W]."""
    return torch.stack(list(frames)[-count:], dim=2)
