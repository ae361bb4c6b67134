"""What the command prints: nothing that could steer a terminal, and no failure where it cannot be shown."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO
from unicodedata import category

from tqdm import tqdm

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, directions of text, halves of characters, line ends
HARMLESS = "\u200c\u200d\u200e\u200f"  # joiners and marks, which Persian, emoji and Hebrew need


def is_harmless(character: str) -> bool:
    return character in HARMLESS or category(character) not in STEERING


def printable(text: str, kept: str = "") -> str:
    """Text with what could steer a terminal as \\x1b, \\n or \\u202e; not the characters in `kept`."""
    return "".join(
        one if one in kept or is_harmless(one) else one.encode("unicode_escape").decode() for one in text
    )


def show(line: str, file: Any = None) -> None:
    """Print one line, whatever is in it."""
    print(printable(line), file=file)


def as_json(value: Any, source: object) -> str:
    """JSON to read, in all scripts; what could steer a terminal is escaped as JSON does it.

    Raises ValueError, which names the source, for values nested too deeply.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False)
    except RecursionError as error:
        raise ValueError(f"{source} holds what is nested too deeply to be printed") from error
    return "".join(one if one == "\n" or is_harmless(one) else json.dumps(one)[1:-1] for one in text)


class Shown:
    """A stream that shows printable text, and the line ends and carriage returns of whole lines."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text, "\n\r\t")) if self._stream else 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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


@contextmanager
def loading_bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of weights; what it gives takes how many are done, and how many there are."""
    with tqdm(unit=" weights", desc=doing, delay=0.5, file=STDERR) as bar:

        def show_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show_progress
