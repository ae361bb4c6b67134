"""What a block may look at: keys and values of the window (sink + ring) and of the current prompt.

Buffers are allocated once and written in place; all bookkeeping is Python ints. Attention does not care about
the order of keys and cached keys carry their own rotation, so the ring is never rolled. Slot of latent
frame f: f inside the sink, else sink + (f - sink) % (window - sink).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import ModelConfig, WindowConfig
from .linear8 import FP8, shrink
from .rope import rotate, shift

Slices = list[tuple[slice, slice]]  # (where in the buffer, which part of the tokens written)


@dataclass(frozen=True)
class Grid:
    """What a cache must know of the latents: batch, tokens a latent frame, and a tensor for dtype, device."""

    batch: int
    tokens: int
    like: Tensor


@dataclass
class LayerText:
    """Cross-attention K, V of one layer, each [B, L, N, D]; a mask [1, L] is added to the scores."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None


class TextCache:
    """Cross-attention K, V of the current prompt, computed once per prompt: one LayerText a layer."""

    def __init__(self, layers: list[LayerText]):
        self.layers = layers


class SmallBuffer:
    """Keys or values [B, window tokens, N, D] held in fp8, each head of a token with a scale of its own.

    Taken out by slices like a tensor, wide again in the dtype of `like`: 8 bits of storage, not of attention.
    """

    def __init__(self, like: Tensor, shape: tuple[int, ...]):
        self.dtype = like.dtype
        self.small = like.new_empty(shape, dtype=FP8)
        self.scale = like.new_empty((*shape[:-1], 1), dtype=torch.float32)

    def __setitem__(self, where: tuple[slice, ...], wide: Tensor) -> None:
        self.small[where], self.scale[where] = shrink(wide, FP8)

    def __getitem__(self, where: tuple[slice, ...]) -> Tensor:
        return self.small[where].to(self.dtype) * self.scale[where].to(self.dtype)


def parts_of(name: str, buffer: Tensor | SmallBuffer) -> dict[str, Tensor]:
    """The tensors of a buffer by name."""
    if isinstance(buffer, SmallBuffer):
        return {name: buffer.small, f"{name}_scale": buffer.scale}
    return {name: buffer}


@dataclass
class Opening:
    """Where the open latent frames are written, and how much may be seen: one for all layers of a cache.

    `sink_slices` are those of them that `homeward` turns to the sink's home.
    """

    slices: Slices = field(default_factory=list)
    visible_tokens: int = 0
    sink_slices: Slices = field(default_factory=list)
    homeward: Tensor | None = None


class LayerCache:
    """Self-attention K, V of one layer, [B, window tokens, N, D] each; the opening says where to write."""

    mask = None

    def __init__(self, opening: Opening, window: WindowConfig, like: Tensor, sizes: tuple[int, int]):
        """`like` [B, 0, N, D] has dtype and device; `sizes` are the tokens of the window and of its sink."""
        self._opening = opening
        batch, _, *head = like.shape
        make = SmallBuffer if window.has_small_cache else Tensor.new_empty
        self.keys, self.values = (make(like, (batch, sizes[0], *head)) for _ in range(2))
        self.sink_home = like.new_empty(batch, sizes[1], *head) if window.endless else None

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put rotated k and v [B, L, N, D] of the open frames in place; returns all that may be attended."""
        opening = self._opening
        for there, here in opening.slices:
            self.keys[:, there] = k[:, here]
            self.values[:, there] = v[:, here]
        if self.sink_home is not None:
            for there, here in opening.sink_slices:
                self.sink_home[:, there] = rotate(k[:, here], opening.homeward)
        return self.keys[:, : opening.visible_tokens], self.values[:, : opening.visible_tokens]

    def buffers(self) -> dict[str, Tensor]:
        """All that this layer holds, by name."""
        homes = {} if self.sink_home is None else {"sink_home": self.sink_home}
        return {**parts_of("keys", self.keys), **parts_of("values", self.values), **homes}

    def place_sink(self, rotation: Tensor, tokens: int) -> None:
        """Turn the sink's keys from their home at position 0 to where the rotation says."""
        self.keys[:, :tokens] = rotate(self.sink_home[:, :tokens], rotation)


class KVCache:
    """Sink and in-place ring for all layers of one rollout.

    `open` says which latent frames the next passes write, each layer's `write` puts them there, over and
    over during the denoising steps; `end` is the number of latent frames the cache has been opened up to,
    `sink_position` the RoPE position of the first sink frame.
    """

    def __init__(self, config: ModelConfig, window: WindowConfig, grid: Grid, capacity: int):
        """`capacity`: latent frames to hold when the window is full attention, else ignored."""
        self.window = window
        self.frames = window.window_latent_frames or capacity
        self.sink = window.sink_latent_frames if window.window_latent_frames else 0
        self._tokens, self._head_dim = grid.tokens, config.head_dim
        self.device = grid.like.device
        self.opening = Opening()  # not of our own, so that whoever drops a cache drops its memory at once
        like = grid.like.new_empty(grid.batch, 0, config.num_heads, config.head_dim)
        sizes = (self.frames * grid.tokens, self.sink * grid.tokens)
        self.layers = [LayerCache(self.opening, window, like, sizes) for _ in range(config.num_layers)]
        self.clear()

    def clear(self) -> None:
        """Forget everything: the next frame is position 0 of a new scene. Buffers stay."""
        self.end = self.sink_position = 0
        opening = self.opening
        opening.slices, opening.visible_tokens, opening.sink_slices, opening.homeward = [], 0, [], None

    def written(self) -> dict[str, Tensor]:
        """What was written so far [B, tokens, N, D], by layer and name; not copied."""
        tokens = min(self.frames, self.end) * self._tokens
        named = (
            (f"layers.{index}.{name}", buffer)
            for index, layer in enumerate(self.layers)
            for name, buffer in layer.buffers().items()
        )
        return {name: buffer[:, :tokens] for name, buffer in named}

    def restore(self, end: int, sink_position: int, written: Mapping[str, Tensor]) -> None:
        """Be as the cache was that had `written` this, opened up to latent frame `end`."""
        self.end, self.sink_position = end, sink_position
        for name, buffer in self.written().items():
            buffer.copy_(written[name])

    def open(self, first: int, count: int, refresh_sink: bool = False) -> None:
        """The next passes write latent frames first .. first + count - 1 and see the window that ends there.

        With `refresh_sink` the first frames of the pass become the sink (reference: global_sink false).
        """
        self.end = first + count
        if self.end > self.frames and self.window.window_latent_frames is None:
            raise ValueError(
                f"full attention was given room for {self.frames} latent frames, {self.end} needed"
            )
        slots = [self.slot(frame) for frame in range(first, self.end)]
        if refresh_sink:
            slots[: self.sink] = range(self.sink)
        self.opening.slices = self._slices(slots)
        self.opening.visible_tokens = min(self.frames, self.end) * self._tokens
        if self.window.endless:
            self._open_sink(slots)

    @property
    def is_settled(self) -> bool:
        """Whether the window is full and the sink made: from here on passes differ in their numbers only."""
        opening = self.opening
        return opening.visible_tokens == self.frames * self._tokens and not opening.sink_slices

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Where in the buffers the open latent frames are written: first and last token of each part."""
        return tuple((there.start, there.stop) for there, _ in self.opening.slices)

    def slot(self, frame: int) -> int:
        """Which slot of the buffer latent frame `frame` lives in."""
        return frame if frame < self.sink else self.sink + (frame - self.sink) % (self.frames - self.sink)

    def _slices(self, slots: list[int]) -> Slices:
        """Neighbouring slots written by neighbouring frames become one slice."""
        runs: list[list[int]] = []  # [first slot, first index, length]
        for index, slot in enumerate(slots):
            if runs and slot == runs[-1][0] + runs[-1][2]:
                runs[-1][2] += 1
            else:
                runs.append([slot, index, 1])
        tokens = self._tokens
        return [
            (slice(slot * tokens, (slot + n) * tokens), slice(index * tokens, (index + n) * tokens))
            for slot, index, n in runs
        ]

    def _open_sink(self, slots: list[int]) -> None:
        """Endless positions: the sink stands right before the oldest latent frame the window may hold."""
        written = [slot for slot in slots if slot < self.sink]
        self.opening.sink_slices = self._slices(written)
        position = max(0, self.end - self.frames)
        if written:
            self.opening.homeward = shift(-position, self._head_dim, self.device)
        elif position != self.sink_position:
            turn = shift(position, self._head_dim, self.device)
            for layer in self.layers:
                layer.place_sink(turn, self.sink * self._tokens)
        self.sink_position = position
