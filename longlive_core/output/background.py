"""Calls made in a background thread, in order, while the caller goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


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
