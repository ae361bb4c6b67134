"""SIGTERM and SIGHUP (docker stop, Slurm, a closed terminal) end a command as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first of these signals; nohup and handlers of others stay in effect."""
    is_main = threading.current_thread() is threading.main_thread()  # others may set no handlers
    ours = [number for number in ENDING if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt_once)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def interrupt_once(*_: object) -> NoReturn:
    """A closed terminal sends more than one signal: the others must not interrupt the finishing."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
