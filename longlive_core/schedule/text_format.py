"""Schedule text, one cue a line <-> cues. docs/schedule.md documents the grammar."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .cue import AUTO, Cue, ScheduleError, check_order, checked_always, read_time, spelled
from .notations import OTHER_NOTATION, is_bare_range, is_other_notation, listed
from .prefix import kinds_of, read_prefix, written_kinds

MAX_CHARACTERS = 8_000_000

_ALWAYS = re.compile("always:", re.IGNORECASE)
_CUE_LINE = re.compile(r"(?P<time>\S*?)(?P<arrow>\s*=>|\s+|\Z)(?P<words>.*)", re.DOTALL)
# How a first line shows that it has a time: 0, 5s, 0:5, 5sec, but not the 3 of "3 cats".
_TIME_LIKE = re.compile(r"0+(\.0+)?|[-+]?\.?[0-9][0-9.,]*(s|secs?|seconds?)[:,]?|[-+]?[0-9]+:[0-9.,:]*s?")
_COLOUR = re.compile(r"#(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{6}(?![0-9A-Za-z])")


class _Line(NamedTuple):
    """A line with something on it: its number and the column its text begins at, from 1."""

    number: int
    column: int
    text: str

    @property
    def is_continuation(self) -> bool:
        return self.text[0].isspace()


def checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise ScheduleError(f"a schedule is text, and {type(text).__name__} came; decode it first")
    if len(text) > MAX_CHARACTERS:
        raise ScheduleError(f"the schedule has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    if "\0" in text:
        raise ScheduleError("the schedule holds NUL characters, as UTF-16 text does; save it as UTF-8")
    return text.removeprefix("\ufeff")


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers; only LF, CRLF and CR end a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line and not line.isspace()]


def read_text(text: str) -> tuple[str, list[Cue]]:
    """What is in every prompt, and cues in order; a first line without a time makes all one prompt."""
    always, lines = _always_first(_content_lines(text))
    return always, _read_cues(lines)


def _always_first(lines: Sequence[_Line]) -> tuple[str, Sequence[_Line]]:
    """The words of a first line `always: ...` with those that continue it, and the other lines."""
    first, *others = lines
    prefix = _ALWAYS.match(first.text)
    if prefix is None:
        return "", lines
    num_more = next((i for i, line in enumerate(others) if not line.is_continuation), len(others))
    words = " ".join([first.text[prefix.end() :], *(line.text for line in others[:num_more])])
    try:
        if not others[num_more:]:
            raise ScheduleError(
                "no prompt follows what is in every prompt; write one on a line of its own, not indented "
                "(where this is the prompt, write 0 => before it)"
            )
        return checked_always(words), others[num_more:]
    except ScheduleError as error:
        raise error.at(first.number, first.column) from None


def _read_cues(lines: Sequence[_Line]) -> list[Cue]:
    if not _begins_with_time(lines[0]):
        return [Cue(0.0, _plain_prompt(lines))]
    groups: list[list[_Line]] = []  # each cue's line with those that continue it
    for line in lines:
        if line.is_continuation:
            groups[-1].append(line)
        else:
            groups.append([line])
    cues = [_read_cue(*group) for group in groups]
    try:
        check_order(cues)
    except ScheduleError as error:
        first = groups[error.cue - 1][0]
        raise error.at(first.number, first.column) from None
    return cues


def _content_lines(text: str) -> list[_Line]:
    """Lines less blanks and comments, and less the indent of the first: a whole schedule may be indented."""
    lines = [(number, line) for number, line in numbered_lines(text) if not _is_comment(line)]
    if not lines:
        raise ScheduleError("the schedule is empty; write a prompt, or cues such as: 0 => a red circle", 1, 1)
    first = lines[0][1]
    indent = first[: len(first) - len(first.lstrip())]
    return [
        _Line(number, 1 + len(indent) * line.startswith(indent), line.removeprefix(indent))
        for number, line in lines
    ]


def _is_comment(line: str) -> bool:
    """Whether it begins with #; an indented line may also go on with a colour such as #001f3f."""
    text = line.lstrip()
    return text.startswith("#") and not (line[0].isspace() and _COLOUR.match(text))


def _parts(text: str) -> tuple[str, int, bool]:
    """A line -> its time, where its words begin, whether what comes first is surely a time."""
    parts = _CUE_LINE.match(text)
    return listed(text) or (parts["time"], parts.start("words"), parts["arrow"].endswith("=>"))


def _begins_with_time(line: _Line) -> bool:
    time, _, is_sure = _parts(line.text)
    return is_sure or _TIME_LIKE.fullmatch(time) is not None


def _plain_prompt(lines: Sequence[_Line]) -> str:
    for line in lines:
        if not line.is_continuation and _begins_with_time(line):
            raise ScheduleError(
                "this line begins with a time and the first one does not; begin the first line with 0 => "
                "(or, where no time is meant, indent this line)",
                line.number,
                line.column,
            )
    prompt = " ".join(line.text for line in lines)
    if is_other_notation(prompt, [line.text for line in lines if not line.is_continuation]):
        raise ScheduleError(OTHER_NOTATION, lines[0].number, lines[0].column)
    return prompt


def _read_cue(first: _Line, *more: _Line) -> Cue:
    (time, start, _), column = _parts(first.text), first.column
    try:
        if is_bare_range(first.text):
            raise ScheduleError(OTHER_NOTATION)
        seconds = read_time(time)
        column += start
        words = " ".join([first.text[start:], *(line.text for line in more)]).lstrip()
        prefix, prompt = read_prefix(words)
        return Cue(seconds, prompt, **prefix._asdict())
    except ScheduleError as error:
        raise error.at(first.number, column) from None


def written_always(always: str) -> str:
    """The line of schedule text for what is in every prompt, if there is something."""
    return f"always: {always}\n" if always else ""


def written_cue(cue: Cue) -> str:
    """A cue as a line of schedule text."""
    kinds = written_kinds(cue) or ([AUTO] if kinds_of(cue.prompt) else [])
    return f"{spelled(cue.seconds)} => {', '.join(kinds)}{': ' * bool(kinds)}{cue.prompt}\n"
