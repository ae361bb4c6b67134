"""Schedule text, one cue a line -> cues. README documents the grammar."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .cues import POLICY_NAMES, TIME_SPELLINGS, Cue, ScheduleError, checked_seconds, quoted

MAX_CHARACTERS = 8_000_000

_CUE_LINE = re.compile(r"(?P<time>\S*?)(?P<arrow>\s*=>|\s+|\Z)(?P<words>.*)", re.DOTALL)
_POLICY_PREFIX = re.compile(rf"({'|'.join(POLICY_NAMES)}):", re.IGNORECASE | re.ASCII)
_TIME = re.compile(
    r"(?:[0-9]+:[0-5]?[0-9]|[0-9]+):[0-5][0-9](?:\.[0-9]+)?"  # 1:02:03 or 1:02.5
    r"|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)s?"
)
# How a first line says that it has a time: 0, 5s, 0:5, 5sec, but not the 3 of "3 cats".
_TIME_LIKE = re.compile(r"0+(\.0+)?|[-+]?\.?[0-9][0-9.,]*(s|secs?|seconds?)[:,]?|[-+]?[0-9]+:[0-9.,:]*s?")


class _Line(NamedTuple):
    """A line with something on it: its number and the column its text begins at, from 1."""

    number: int
    column: int
    text: str

    @property
    def is_continuation(self) -> bool:
        return self.text[0].isspace()


@contextmanager
def _located(line: int, column: int) -> Iterator[None]:
    """Give errors raised inside their place in the text."""
    try:
        yield
    except ScheduleError as error:
        raise error.at(line, column) from None


def checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise ScheduleError(f"a schedule is text, and {type(text).__name__} came; decode it first")
    if len(text) > MAX_CHARACTERS:
        raise ScheduleError(f"the schedule has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    return text.removeprefix("\ufeff")


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers; only LF, CRLF and CR end a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line and not line.isspace()]


def content_lines(text: str) -> list[_Line]:
    """Lines less blanks and comments, and less the indent of the first: a whole schedule may be indented."""
    lines = [(number, line) for number, line in numbered_lines(text) if not line.lstrip().startswith("#")]
    if not lines:
        raise ScheduleError("the schedule is empty; write a prompt, or cues such as: 0 => a red circle", 1, 1)
    first = lines[0][1]
    indent = first[: len(first) - len(first.lstrip())]
    return [
        _Line(number, 1 + len(indent) * line.startswith(indent), line.removeprefix(indent))
        for number, line in lines
    ]


def begins_with_time(line: str) -> bool:
    time, arrow = _CUE_LINE.match(line).group("time", "arrow")
    return arrow.endswith("=>") or _TIME_LIKE.fullmatch(time) is not None


def plain_prompt(lines: Sequence[_Line]) -> str:
    """The one prompt of a text without times; refuses a text that has some, only not at its beginning."""
    for line in lines:
        if not line.is_continuation and begins_with_time(line.text):
            raise ScheduleError(
                "this line begins with a time and the first one does not; begin the first line with 0 => "
                "(or, where no time is meant, indent this line)",
                line.number,
                line.column,
            )
    return " ".join(line.text for line in lines)


def grouped(lines: Sequence[_Line]) -> list[list[_Line]]:
    """Each cue's line with those that continue it."""
    groups: list[list[_Line]] = []
    for line in lines:
        if line.is_continuation:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def read_cue(lines: Sequence[_Line]) -> Cue:
    first, *rest = lines
    parts = _CUE_LINE.match(first.text)
    with _located(first.number, first.column):
        seconds = read_time(parts["time"])
    with _located(first.number, first.column + parts.start("words")):
        words = " ".join([parts["words"], *(line.text for line in rest)]).lstrip()
        prefix = _POLICY_PREFIX.match(words)
        if prefix is None:
            return Cue(seconds, words)
        return Cue(seconds, words[prefix.end() :], prefix[1].lower())


def read_time(text: str) -> float:
    """`5`, `5s`, `0:05` or `1:02:03` -> seconds."""
    if not _TIME.fullmatch(text):
        raise ScheduleError(_why_not_a_time(text))
    seconds = 0.0
    for part in text.removesuffix("s").split(":"):
        seconds = seconds * 60 + float(part)
    return checked_seconds(seconds)


def _why_not_a_time(text: str) -> str:
    if not text:
        return f"a time is missing; {TIME_SPELLINGS}"
    if text.startswith("-") and _TIME.fullmatch(text[1:]):
        return f"the time {quoted(text)} is negative; the video begins at 0"
    return (
        f"{quoted(text)} is not a time; {TIME_SPELLINGS}; indent a line that continues a prompt, and "
        "write 0 => before a first prompt that begins like a time"
    )
