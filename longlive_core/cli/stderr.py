"""Notes and progress bars: where stderr cannot show them they are dropped, and the render continues."""

import sys
from contextlib import suppress
from typing import Any


class Stderr:
    """sys.stderr at the time of each call; text is lost when it is closed or its reader has gone."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()

    def flush(self) -> None:
        """Nothing to do after `write`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR = Stderr()
