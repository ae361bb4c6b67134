"""Work that goes on beside the caller's, in order: results made ahead of their use, writing done behind it.

Knows torch for its modes and streams, and neither models nor files.
"""

import contextvars
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from threading import Event
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

T = TypeVar("T")
CPU = torch.device("cpu")
_END: Any = object()


def ahead(
    items: Generator[T], depth: int = 1, device: torch.device = CPU, stop: Event | None = None
) -> Generator[T]:
    """Yield the items of a generator that runs in a worker thread, at most `depth` items ahead of the caller.

    The first item comes alone: the worker goes on when the caller is done with it, and does not slow it down.
    What the generator raises comes out here, after all items before it. `stop` is set once nothing more is
    wanted: a generator that looks at it ends the sooner. The worker is joined before this one ends, is closed
    or raises. Context variables and torch's modes in the worker are those of the caller, without gradients.
    On a CUDA device the worker has a stream of its own. An item's tensors must be finished when the generator
    yields it; work it has queued behind them is waited for at the end of the items. Whoever lets go of an
    item's tensors early must `record_stream` them. Depth 0 is no worker.
    """
    if not depth:
        yield from items
        return
    worker, stop = _Worker(items, device), stop or Event()
    with ThreadPoolExecutor(1, "longlive-ahead") as pool, ExitStack() as stack:
        stack.callback(pool.submit, worker.run, items.close)
        stack.callback(stop.set)
        make = partial(pool.submit, worker.run, worker.make)
        if (item := make().result()) is not _END:
            yield item
        due = deque(make() for _ in range(depth))
        stack.callback(lambda: [future.cancel() for future in due])
        while (item := due.popleft().result()) is not _END:
            due.append(make())
            yield item
        worker.join()


class _Worker(Generic[T]):
    """What the worker thread does, in the caller's context."""

    def __init__(self, items: Iterator[T], device: torch.device):
        self._items, self._device = items, device
        self._context = contextvars.copy_context()
        self._is_inference = torch.is_inference_mode_enabled()
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = worker_stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def run(self, work: Callable[[], Any]) -> Any:
        """Do it in the caller's context and modes, on the worker's stream."""
        with torch.inference_mode(self._is_inference), torch.no_grad(), torch.cuda.stream(self._stream):
            return self._context.run(work)

    def make(self) -> T:
        """The next item, or _END."""
        return next(self._items, _END)

    def join(self) -> None:
        """Let the caller's stream wait for all that the worker's was given."""
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


@lru_cache
def worker_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs: memory that torch keeps for a stream serves no other."""
    return torch.cuda.Stream(device)


class Writer(Protocol):
    """What a BackgroundWriter needs of a VideoWriter."""

    path: Path
    num_frames: int

    def append(self, frames: np.ndarray) -> None: ...

    def close(self) -> None: ...


class BackgroundWriter:
    """A writer whose `append` returns at once: the frames are written by a worker thread, in order.

    At most `depth` appends wait; a further one waits for room. What the writer raised is raised once, by the
    next append or by close, and nothing more is written after it. `num_frames` are those already written.
    """

    def __init__(self, writer: Writer, depth: int = 2):
        self._writer, self._depth = writer, depth
        self._pool = ThreadPoolExecutor(1, "longlive-writer")
        self._due: deque[Future[None]] = deque()
        self._has_failed = False

    @property
    def path(self) -> Path:
        return self._writer.path

    @property
    def num_frames(self) -> int:
        return self._writer.num_frames

    def append(self, frames: np.ndarray) -> None:
        """Frames uint8 [F, H, W, 3]; the array must not change afterwards."""
        self._settle(self._depth - 1)
        self._due.append(self._pool.submit(self._write, frames))

    def close(self) -> None:
        """Write all that waits and close the writer; idempotent."""
        try:
            self._settle(0)
        finally:
            self._pool.shutdown()
            self._writer.close()

    def _write(self, frames: np.ndarray) -> None:
        if self._has_failed:
            return
        try:
            self._writer.append(frames)
        except BaseException:
            self._has_failed = True
            raise

    def _settle(self, most: int) -> None:
        """Raise what is to be raised, and wait until at most that many appends wait."""
        while len(self._due) > most or (self._due and self._due[0].done()):
            self._due.popleft().result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
