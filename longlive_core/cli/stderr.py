"""What is told beside the result. Where it cannot be shown it is dropped: the work goes on."""

import sys
from contextlib import suppress
from typing import Any


class Stderr:
    """sys.stderr as it is now; when it is closed, or nobody reads it any more, what is written is lost."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR = Stderr()
