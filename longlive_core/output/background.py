"""Work that goes on beside the caller's, in order: results made ahead of their use, writing done behind it.

Knows torch for its modes and streams, and neither models nor files.
"""

import contextvars
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from threading import Event
from typing import Any, Generic, TypeVar

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


class BackgroundQueue:
    """Runs calls one after the other in a worker thread; at most `depth` of them are pending.

    What a call raises is raised once: by the next `put`, by `flush` or by `close`. Later calls are dropped.
    """

    def __init__(self, depth: int = 2):
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, "longlive-writer")
        self._pending: deque[Future[None]] = deque()
        self._has_failed = False
        self._error: BaseException | None = None

    def put(self, call: Callable[[], None]) -> None:
        """Queue a call; waits while `depth` calls are pending."""
        self._wait(self._depth - 1)
        self._pending.append(self._pool.submit(self._run, call))

    def flush(self) -> None:
        """Wait for all pending calls."""
        self._wait(0)

    def close(self) -> None:
        """Wait for all pending calls and end the thread; idempotent."""
        try:
            self.flush()
        finally:
            self._pool.shutdown()

    def _run(self, call: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            call()
        except BaseException as error:
            self._has_failed, self._error = True, error

    def _wait(self, most: int) -> None:
        while len(self._pending) > most:
            self._pending[0].result()  # removed only afterwards: Ctrl-C may interrupt the waiting
            self._pending.popleft()
        error, self._error = self._error, None
        if error:
            raise error
