"""When a run stops early: Ctrl-C, SIGTERM and SIGHUP let it save its iteration; or torchrun is gone."""

import os
import signal
import threading
from types import TracebackType
from typing import Any

from longlive_core.cli.signals import ENDING
from longlive_core.cli.stderr import STDERR

from .parallel import rank_and_size

ELASTIC = "TORCHELASTIC_RUN_ID"  # what torchrun gives its processes


class Launcher:
    """Who started this process. torchrun's processes outlive a `kill -9` of it, and would go on."""

    def __init__(self):
        self._process = os.getppid()

    @property
    def is_gone(self) -> bool:
        """Whether it was torchrun, and ended: somebody may have started the same run again."""
        return ELASTIC in os.environ and os.getppid() != self._process


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
