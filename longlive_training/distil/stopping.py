"""Ctrl-C, SIGTERM and SIGHUP let a run finish its iteration and save it."""

import signal
import threading
from types import TracebackType
from typing import Any

from longlive_core.cli.signals import ENDING
from longlive_core.cli.stderr import STDERR

from .parallel import rank_and_size


class Stop:
    """Within it the first of these signals sets `is_asked`, the second one does what it did before.

    Only in a process alone: several would stop at different iterations, and torchrun ends them together.
    """

    def __init__(self):
        self.is_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        is_main = threading.current_thread() is threading.main_thread()  # others may set no handlers
        if is_main and rank_and_size()[1] == 1:
            for number in (signal.SIGINT, *ENDING):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup; handlers not of Python
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, *_: object) -> None:
        self._restore()
        self.is_asked = True
        print("\nstopping once this iteration is saved; the same again stops at once", file=STDERR)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
