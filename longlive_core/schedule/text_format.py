"""Schedule text, one cue a line -> cues. README documents the grammar."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .cue import (
    AUTO,
    SWITCH_POLICIES,
    TIME_SPELLINGS,
    Cue,
    Policy,
    ScheduleError,
    checked_seconds,
    quoted,
    spelled,
)

MAX_CHARACTERS = 8_000_000

_CUE_LINE = re.compile(r"(?P<time>\S*?)(?P<arrow>\s*=>|\s+|\Z)(?P<words>.*)", re.DOTALL)
_SECONDS = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)s?"
# A policy, or a blend with what looks like its seconds: `blend the two: x` is a prompt, `blend 3x: x` a slip.
_POLICY_PREFIX = re.compile(
    rf"(?:(?P<policy>{'|'.join((*SWITCH_POLICIES, Policy.BLEND, AUTO))})"
    r"|blend\s+(?P<blend>[-+]?\.?[0-9][^\s:]*)):",
    re.IGNORECASE | re.ASCII,
)
_TIME = re.compile(
    r"(?:[0-9]+:[0-5]?[0-9]|[0-9]+):[0-5][0-9](?:\.[0-9]+)?"  # 1:02:03 or 1:02.5
    rf"|{_SECONDS}"
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
        return Cue(seconds, *read_words(words))


def read_words(words: str) -> tuple[str, str, float | None]:
    """What follows a time -> prompt, name of the policy ("auto" where there is none), seconds of a blend."""
    prefix = _POLICY_PREFIX.match(words)
    if prefix is None:
        return words, AUTO, None
    prompt = words[prefix.end() :]
    if prefix["blend"] is None:
        return prompt, prefix["policy"].lower(), None
    return prompt, Policy.BLEND.value, read_blend(prefix["blend"])


def written_cue(cue: Cue) -> str:
    """A cue as a line of schedule text."""
    policy = "" if cue.policy is None else cue.policy.value
    if cue.policy is Policy.BLEND:
        policy += f" {spelled(cue.blend_seconds)}"
    if not policy and _POLICY_PREFIX.match(cue.prompt):
        policy = AUTO
    return f"{spelled(cue.seconds)} => {policy}{': ' * bool(policy)}{cue.prompt}\n"


def read_blend(text: str) -> float:
    """`3`, `3s` or `2.5s` -> seconds."""
    if not re.fullmatch(_SECONDS, text):
        raise ScheduleError(
            f"{quoted(text)} is not how long a blend takes; write it as blend 3s: or blend 2.5s: (where it "
            "is meant as words of the prompt, write auto: before it)"
        )
    return float(text.removesuffix("s"))


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
