"""Footage that a video is made from: read and encoded block by block, while the video is made."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .geometry import (
    FRAME_RATE,
    SPACE_STRIDE,
    TIME_STRIDE,
    block_first_frame,
    num_frames,
    num_latent_frames,
)
from .vae.streaming import RGB, Encoder, StreamingEncoder

NO_ENCODER = "this decoder cannot encode frames; use the Wan 2.1 VAE, or give latents"
DEFAULT_STRENGTH = 0.35  # measured on Mini: changes everything, and most of the places stay


@dataclass(frozen=True)
class Source:
    """Footage to transform: at `strength` 1, of (0, 1], it counts for nothing, at .25 most of it is kept.

    `frames` [F, H, W, 3] in [0, 1] at 16 a second, or pieces of such frames that are read while the video is
    made, with their number in all in `length` if it is known; or `latents` [1, C, T, h, w] instead. To take
    a run back, pieces are read from the first once more: they come from an iterable, not from an iterator.
    """

    frames: Tensor | Iterable[Tensor] | None = field(default=None, repr=False)
    strength: float = DEFAULT_STRENGTH
    latents: Tensor | None = field(default=None, repr=False)
    length: int | None = None

    def __post_init__(self):
        if not 0 < self.strength <= 1:
            raise ValueError(
                f"a strength of {self.strength} is not possible; choose more than 0 and at most 1"
            )
        if (self.frames is None) == (self.latents is None):
            raise ValueError("a source has either frames or latents; give one of them")

    @property
    def num_frames(self) -> int | None:
        """Pixel frames of the footage; None while nobody knows."""
        if self.latents is not None:
            return num_frames(self.latents.shape[2])
        return len(self.frames) if isinstance(self.frames, Tensor) else self.length


@dataclass(frozen=True)
class ReadAgain:
    """Pieces of footage that can be read more than once: `read` begins with the first."""

    read: Callable[[], Iterator[Tensor]]

    def __iter__(self) -> Iterator[Tensor]:
        return self.read()


class FrameReader:
    """Frames of a source in order, with little more of them in memory than are asked for."""

    def __init__(self, frames: Tensor | Iterable[Tensor], size: tuple[int, int]):
        """`size` (height, width) is what all frames must have."""
        self._pieces: Iterator[Tensor] = iter([frames] if isinstance(frames, Tensor) else frames)
        self._size, self._next, self._later = size, 0, None

    def take(self, first: int, end: int) -> Tensor | None:
        """Frames [end - first, H, W, 3] by their index; the first and the last are held where there are none.

        None after the last. Raises ValueError for frames of another size.
        """
        got = []
        while self._next < end and (piece := self._piece()) is not None:
            skipped = min(len(piece), max(0, first - self._next))
            piece, later = piece[skipped:].tensor_split([end - self._next - skipped])
            self._next += skipped + len(piece)
            self._later = later if len(later) else None
            got.append(piece)
        if not sum(map(len, got)):
            return None
        frames = torch.cat(got)
        before, after = (
            frames[i].expand(n, -1, -1, -1) for i, n in ((0, max(0, -first)), (-1, end - self._next))
        )
        return torch.cat((before, frames, after))

    def _piece(self) -> Tensor | None:
        """The next frames, None where the source is over."""
        piece, self._later = self._later, None
        if piece is None and (piece := next(self._pieces, None)) is not None:
            self._check(piece)
        return None if piece is None else piece[..., :RGB]

    def _check(self, piece: Tensor) -> None:
        height, width = self._size
        if piece.ndim != 4 or piece.shape[3] < RGB or piece.shape[1:3] != self._size:
            raise ValueError(
                f"frames of shape {list(piece.shape)} do not fit a video of {width}x{height}; "
                f"give them as [frames, {height}, {width}, 3]"
            )

    @property
    def num_taken(self) -> int:
        """Frames read so far and not only looked at: all of them, after the last."""
        return self._next


class BlockByBlock:
    """Reads and encodes what footage has for block after block; what is read is kept for a second try."""

    def __init__(self, like: Tensor, begins: int, scene_block: int):
        """`like` [B, C, T, h, w] is a block. Frame 0 of the footage is pixel frame `begins` of all made.

        The encoder begins there, or at `scene_block` where the scene began later.
        """
        self._like, self._begins, self._block = like, begins, like.shape[2]
        self._next = self._origin = max(scene_block, (num_latent_frames(begins + 1) - 1) // self._block)
        self._held: tuple[int, Any] | None = None

    def _encoded_at(self, block: int, opens_scene: bool) -> Any:
        """What a block has; those before the first one that is asked for are encoded too."""
        while self._next < block:
            self._encoded_next(self._next, False)
        return self._encoded_next(block, opens_scene)

    def _encoded_next(self, block: int, opens_scene: bool) -> Any:
        opens_scene = opens_scene or block == self._origin
        if self._held is None or self._held[0] != block:
            first, end = (block_first_frame(at, self._block) - self._begins for at in (block, block + 1))
            self._held = block, self._read(first + (TIME_STRIDE - 1 if opens_scene and block else 0), end)
        encoded = self._encode(self._held[1], opens_scene)
        self._held, self._next = None, block + 1
        return encoded

    def _read(self, first: int, end: int) -> Any:
        """What there is from frame `first` to before `end`."""
        raise NotImplementedError

    def _encode(self, read: Any, opens_scene: bool) -> Any:
        raise NotImplementedError

    def _placed(self, frames: Tensor) -> Tensor:
        """Frames [F, H, W, C] -> [1, F, C, H, W], where they are encoded."""
        return frames.to(self._like.device, torch.float32).permute(0, 3, 1, 2)[None]


class SourceStream(BlockByBlock):
    """The latents of a source, for block after block: called with each block in order.

    Raises ValueError where there are frames and no encoder.
    """

    def __init__(
        self,
        source: Source,
        encoder: Encoder | None,
        like: Tensor,
        begins: int,
        scene_block: int,
        on_note: Callable[[str], None],
    ):
        super().__init__(like, begins, scene_block)
        self._on_note, self._is_over, self._latents = on_note, False, source.latents
        if self._latents is None:
            if encoder is None:
                raise ValueError(NO_ENCODER)
            height, width = (SPACE_STRIDE * side for side in like.shape[3:])
            self._reader = FrameReader(source.frames, (height, width))
            self._encoder = StreamingEncoder(encoder)
        else:
            check_latents(self._latents, like)

    def __call__(self, block: int, opens_scene: bool) -> Tensor | None:
        """Clean latents [B, C, T, h, w] of the source; None where it is over, with a note the first time.

        At a cut the encoder begins again: with one frame, which the decoder holds for four.
        """
        is_given = self._latents is not None
        latents = self._of_latents(block) if is_given else self._encoded_at(block, opens_scene)
        if latents is None and not self._is_over:
            if not self._seconds():
                raise ValueError("the source has no frames; choose other footage, or start it earlier")
            self._is_over = True
            self._on_note(f"the source ends after {self._seconds():.1f} s; the video goes on without it")
        return latents

    def _seconds(self) -> float:
        is_latents = self._latents is not None
        return (num_frames(self._latents.shape[2]) if is_latents else self._reader.num_taken) / FRAME_RATE

    def _of_latents(self, block: int) -> Tensor | None:
        first = (block - self._origin) * self._block
        latents = self._latents[:, :, first : first + self._block]
        held = latents[:, :, -1:].expand(-1, -1, self._block - latents.shape[2], -1, -1)
        return torch.cat((latents, held), dim=2) if latents.shape[2] else None

    def _read(self, first: int, end: int) -> Tensor | None:
        return self._reader.take(first, end)

    def _encode(self, read: Tensor | None, opens_scene: bool) -> Tensor | None:
        return None if read is None else self._encoder.push(self._placed(read), opens_scene)


def check_latents(latents: Tensor, like: Tensor) -> None:
    """Raise ValueError unless latents have the shape of a block `like` [B, C, T, h, w], but for T."""
    had, right = ([*shape[:2], *shape[3:]] for shape in (latents.shape, like.shape))
    if latents.ndim != 5 or had != right or not latents.shape[2]:
        raise ValueError(
            f"source latents of shape {list(latents.shape)} do not fit a video with blocks of "
            f"{list(like.shape)}; encode frames of its size with its VAE"
        )
