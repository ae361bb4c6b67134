"""What a block may attend to: keys and values of the window (sink + ring) and of the current prompt.

Buffers are allocated once and written in place, through an index of tokens; all bookkeeping is Python ints.
Attention does not depend on the order of keys and cached keys carry their own rotation, so the ring is never
rolled. Slot of latent frame f: f inside the sink, else sink + (f - sink) % (window - sink).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig, WindowConfig
from ..fast.products import FP8, quantise
from .rope import rotate, shift


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


class Buffer:
    """Keys or values [B, window tokens, N, D], as they were computed."""

    def __init__(self, like: Tensor, shape: tuple[int, ...]):
        self.data = like.new_empty(shape)

    def write(self, tokens: Tensor, x: Tensor) -> None:
        """Put x [B, L, N, D] at the token indices [L]."""
        self.data.index_copy_(1, tokens, x)

    def first(self, count: int) -> Tensor:
        """The first `count` tokens [B, count, N, D]."""
        return self.data[:, :count]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return {name: self.data}


class QuantisedBuffer:
    """The same in fp8, each head of a token with a scale of its own: 8 bits of storage, not of attention."""

    def __init__(self, like: Tensor, shape: tuple[int, ...]):
        self._dtype = like.dtype
        self.data = like.new_empty(shape, dtype=FP8)
        self.scale = like.new_empty((*shape[:-1], 1), dtype=torch.float32)

    def write(self, tokens: Tensor, x: Tensor) -> None:
        """Quantise x [B, L, N, D] and put it at the token indices [L]."""
        small, scale = quantise(x)
        self.data.view(torch.uint8).index_copy_(1, tokens, small.view(torch.uint8))  # fp8 has no index_copy_
        self.scale.index_copy_(1, tokens, scale)

    def first(self, count: int) -> Tensor:
        """The first `count` tokens [B, count, N, D], dequantised."""
        return self.data[:, :count].to(self._dtype).mul_(self.scale[:, :count].to(self._dtype))

    def tensors(self, name: str) -> dict[str, Tensor]:
        return {name: self.data, f"{name}_scale": self.scale}


class Opening:
    """Where the open latent frames are written, and how much may be seen: one for all layers of a cache."""

    def __init__(self):
        self.tokens: Tensor | None = None  # indices [L] into the buffers
        self.visible_tokens = 0


class LayerCache:
    """Self-attention K, V of one layer, [B, window tokens, N, D] each; the opening says where to write."""

    mask = None

    def __init__(self, opening: Opening, window: WindowConfig, like: Tensor, sizes: tuple[int, int]):
        """`like` [B, 0, N, D] has dtype and device; `sizes` are the tokens of the window and of its sink."""
        self._opening = opening
        batch, _, *head = like.shape
        make = QuantisedBuffer if window.has_small_cache else Buffer
        self.keys, self.values = (make(like, (batch, sizes[0], *head)) for _ in range(2))
        self.sink_home = like.new_empty(batch, sizes[1], *head) if window.endless else None

    @property
    def tokens(self) -> Tensor:
        """Where the open latent frames belong: token indices [L]."""
        return self._opening.tokens

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put rotated k and v [B, L, N, D] of the open frames in place; returns all that may be attended."""
        self.put(self.tokens, k, v)
        return self.seen()

    def put(self, tokens: Tensor, k: Tensor, v: Tensor) -> None:
        """Put rotated k and v [B, L, N, D] at the token indices [L]."""
        self.keys.write(tokens, k)
        self.values.write(tokens, v)

    def seen(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all that may be attended."""
        visible = self._opening.visible_tokens
        return self.keys.first(visible), self.values.first(visible)

    def tensors(self) -> dict[str, Tensor]:
        """All that this layer holds, by name."""
        homes = {} if self.sink_home is None else {"sink_home": self.sink_home}
        return {**self.keys.tensors("keys"), **self.values.tensors("values"), **homes}

    def take_home(self, rotation: Tensor) -> None:
        """Keep the sink's keys as they are at position 0, where the rotation brings them."""
        self.sink_home.copy_(rotate(self.keys.first(self.sink_home.shape[1]), rotation))

    def place_sink(self, tokens: Tensor, rotation: Tensor) -> None:
        """Rotate the sink's keys from position 0 to where they are now."""
        self.keys.write(tokens, rotate(self.sink_home, rotation))


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
        self.opening = Opening()  # not the cache itself, so that its memory is free once it is dropped
        like = grid.like.new_empty(grid.batch, 0, config.num_heads, config.head_dim)
        sizes = (self.frames * grid.tokens, self.sink * grid.tokens)
        self.layers = [LayerCache(self.opening, window, like, sizes) for _ in range(config.num_layers)]
        self.clear()

    def clear(self) -> None:
        """Forget everything: the next frame is position 0 of a new scene. Buffers stay."""
        self.end = self.sink_position = 0
        self._is_sink_at_home = True  # `sink_home` holds the newest keys of the sink
        self.opening.tokens, self.opening.visible_tokens = None, 0

    def written(self) -> dict[str, Tensor]:
        """What was written so far [B, tokens, N, D], by layer and name; not copied."""
        self._bring_sink_home()
        tokens = min(self.frames, self.end) * self._tokens
        return {
            f"layers.{index}.{name}": tensor[:, :tokens]
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.tensors().items()
        }

    def restore(self, end: int, sink_position: int, written: Mapping[str, Tensor]) -> None:
        """Become the cache that had `written` this, opened up to latent frame `end`."""
        self.end, self.sink_position = end, sink_position
        for name, tensor in self.written().items():
            tensor.copy_(written[name])

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
        self.opening.tokens = self._indices(slots)
        self.opening.visible_tokens = min(self.frames, self.end) * self._tokens
        if self.window.endless:
            span = self.window.positions_latent_frames or self.frames
            position = first if refresh_sink else max(0, self.end - span)
            self._open_sink(position, is_written=min(slots) < self.sink)

    def slot(self, frame: int) -> int:
        """Which slot of the buffer latent frame `frame` lives in."""
        return frame if frame < self.sink else self.sink + (frame - self.sink) % (self.frames - self.sink)

    def _indices(self, slots: list[int]) -> Tensor:
        """Token indices of these slots [L], made on the device: nothing waits for a transfer."""
        tokens = self._tokens
        return torch.cat([torch.arange(s * tokens, (s + 1) * tokens, device=self.device) for s in slots])

    def _open_sink(self, position: int, is_written: bool) -> None:
        """Endless positions: the sink's distance to the newest latent frame stays what it was trained at."""
        if is_written:
            self._is_sink_at_home = False
        elif self.sink and position != self.sink_position:
            self._bring_sink_home()
            tokens = self._indices(list(range(self.sink)))
            for layer in self.layers:
                layer.place_sink(tokens, shift(position, self._head_dim, self.device))
        self.sink_position = position

    def _bring_sink_home(self) -> None:
        """Once the sink was written: keep its keys rotated back to position 0, to be placed from there."""
        if not self._is_sink_at_home:
            for layer in self.layers:
                layer.take_home(shift(-self.sink_position, self._head_dim, self.device))
        self._is_sink_at_home = True
