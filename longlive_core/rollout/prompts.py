"""Schedule text, timeline JSON or the reference's JSONL -> PromptSchedule -> which cue each block runs under.

Times are seconds of video as the user wrote them; `resolve` snaps them to blocks. Knows nothing of text
embeddings, tensors or what a policy does to the cache.
"""

import json
import re
import reprlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from itertools import pairwise
from math import inf
from numbers import Integral, Real
from typing import Any, NamedTuple

from .. import geometry

MAX_SECONDS = 24 * 60 * 60
MAX_CUES = 100_000
MAX_CHARACTERS = 8_000_000
REFERENCE_BLOCK_LATENT_FRAMES = 3  # the blocks that the reference's switch frames are written for

_QUOTED_CHARACTERS = 40
_TIME_SPELLINGS = "write a time as 0, 5s, 2.5s, 0:05, 1:02.5 or 1:02:03"


class Policy(str, Enum):
    """What happens to the past when a cue takes effect."""

    RECACHE = "recache"  # the window is recomputed under the new prompt, the sink kept
    REFRESH = "refresh"  # the same, and the sink recomputed too
    KEEP = "keep"  # nothing is recomputed
    CUT = "cut"  # the history is dropped: a new scene


class ScheduleError(ValueError):
    """A schedule that cannot be used. `line`, `column`, `cue` count from 1; None where they mean nothing."""

    def __init__(
        self, message: str, line: int | None = None, column: int | None = None, cue: int | None = None
    ):
        super().__init__(message if line is None else f"line {line}, column {column}: {message}")
        self.message, self.line, self.column, self.cue = message, line, column, cue

    def at(self, line: int, column: int) -> "ScheduleError":
        """The same error, with its place in the text."""
        return ScheduleError(self.message, line, column, self.cue)


@dataclass(frozen=True)
class Cue:
    """One prompt and when it begins. Whitespace inside the prompt is collapsed to single spaces.

    `extra` holds the fields of a timeline JSON that are not ours: they survive it and do not count in `==`.
    """

    seconds: float
    prompt: str
    policy: Policy = Policy.RECACHE
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "seconds", _checked_seconds(self.seconds))
        object.__setattr__(self, "prompt", _checked_prompt(self.prompt))
        object.__setattr__(self, "policy", _checked_policy(self.policy))


@dataclass(frozen=True)
class Segment:
    """A stretch of blocks under one cue: the block it begins at, and when that is in the video."""

    block: int
    seconds: float
    cue: Cue


@dataclass(frozen=True)
class Timeline:
    """A schedule snapped to blocks; segments are in order, the first begins at block 0."""

    segments: tuple[Segment, ...]
    warnings: tuple[str, ...] = ()

    def segment_at(self, block: int) -> Segment:
        """The segment that block `block` belongs to."""
        assert block >= 0, block
        return self.segments[bisect_right(self.segments, block, key=lambda segment: segment.block) - 1]

    def opens(self, block: int) -> Segment | None:
        """The segment that begins at block `block`, if one does."""
        segment = self.segment_at(block)
        return segment if segment.block == block else None

    def report(self) -> tuple[str, ...]:
        """One line a segment: when its cue was written for and when it takes effect."""
        return tuple(
            f"{_spelled(segment.cue.seconds)} {_quoted(segment.cue.prompt)} takes effect at "
            f"{_rounded(segment.seconds)} (block {segment.block})"
            for segment in self.segments
        )


@dataclass(frozen=True)
class PromptSchedule:
    """Cues in order of time, the first at 0; its policy is never used."""

    cues: tuple[Cue, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "cues", tuple(self.cues))
        _check_number_of_cues(len(self.cues))
        _check_order(self.cues)

    @classmethod
    def parse(cls, text: str, switch_frames: Sequence[int] = ()) -> "PromptSchedule":
        """Schedule text, timeline JSON or JSONL, told apart by how they begin (`{"` or `[{` is JSON).

        Schedule text has one cue a line, `TIME [=>] [POLICY:] PROMPT`. Indented lines continue the cue above,
        blank lines and lines that begin with # are skipped. A first line without a time makes the whole text
        one prompt. `switch_frames` belongs to JSONL alone.
        """
        text = _checked_text(text)
        if _is_jsonl(text):
            return cls.from_jsonl(text, switch_frames)
        if len(switch_frames):
            raise ScheduleError(
                "switch frames go with JSONL prompts only, and this schedule has times of its own; "
                "leave the switch frames out"
            )
        return cls.from_json(text) if _JSON_START.match(text) else cls.from_text(text)

    @classmethod
    def from_text(cls, text: str) -> "PromptSchedule":
        """Schedule text, in the grammar that `parse` describes."""
        lines = _content_lines(_checked_text(text))
        if not _begins_with_time(lines[0].text):
            return cls.single(_plain_prompt(lines))
        parts = _grouped(lines)
        _check_number_of_cues(len(parts))
        cues = tuple(_read_cue(part) for part in parts)
        try:
            return cls(cues)
        except ScheduleError as error:
            first = parts[error.cue - 1][0]
            raise error.at(first.number, first.column) from None

    @classmethod
    def from_json(cls, text: str) -> "PromptSchedule":
        """Timeline JSON: `{"version": 1, "cues": [{"time": 5.0, "prompt": "...", "policy": "recache"}]}`.

        `time` is seconds or a time as in schedule text. Cues may come in any order.
        """
        document = _decoded(_checked_text(text))
        entries = _timeline_entries(document)
        _check_number_of_cues(len(entries))
        cues = [_cue_from_json(entry, number) for number, entry in enumerate(entries, 1)]
        return cls(tuple(sorted(cues, key=lambda cue: cue.seconds)), _without(document, "version", "cues"))

    @classmethod
    def from_jsonl(
        cls,
        text: str,
        switch_frames: Sequence[int] = (),
        *,
        line: int = 1,
        block_latent_frames: int = REFERENCE_BLOCK_LATENT_FRAMES,
    ) -> "PromptSchedule":
        """The reference's prompts, `{"prompts": [...]}` a line, and the latent frame of each switch.

        `line` counts the lines that are not blank. A switch takes effect at the first block that begins at
        its latent frame or later and that no earlier switch has taken (LongLive v1.0 switch_frame_indices).
        """
        number, source = _jsonl_line(_checked_text(text), line)
        prompts = _jsonl_prompts(_decoded(source, number))
        _check_switch_frames(switch_frames, len(prompts))
        times = [0.0, *_switch_seconds(switch_frames, block_latent_frames)]
        return cls(tuple(map(_numbered_cue, range(1, len(prompts) + 1), times, prompts)))

    @classmethod
    def single(cls, prompt: str) -> "PromptSchedule":
        """One prompt for the whole video; the text is taken as it is."""
        return cls((Cue(0.0, prompt),))

    def to_text(self) -> str:
        """Schedule text that parses to the same schedule (`extra` has no place in it)."""
        return "".join(f"{_spelled(cue.seconds)} => {cue.policy.value}: {cue.prompt}\n" for cue in self.cues)

    def to_json(self) -> str:
        """Timeline JSON that parses to the same schedule, with the fields that were not ours."""
        cues = [
            {"time": cue.seconds, "prompt": cue.prompt, "policy": cue.policy.value, **cue.extra}
            for cue in self.cues
        ]
        return json.dumps({"version": 1, "cues": cues, **self.extra}, ensure_ascii=False, indent=2)

    def resolve(self, block_latent_frames: int, total_seconds: float | None = None) -> Timeline:
        """Snap each cue to the first block that begins at its time or later; of two on one, the later wins.

        Raises ScheduleError if a cue is at or beyond `total_seconds`, the length of the video.
        """
        last_block = inf
        if total_seconds is not None:
            _check_before_end(self.cues, total_seconds)
            frames = geometry.frames_of_seconds(total_seconds)
            last_block = max(1, geometry.num_blocks(frames, block_latent_frames)) - 1
        winners: dict[int, int] = {}  # block -> index of its cue
        warnings = []
        for index, cue in enumerate(self.cues):
            block = geometry.block_at(cue.seconds, block_latent_frames)
            if block > last_block:
                begins = geometry.block_seconds(last_block, block_latent_frames)
                warnings.append(_too_late(index, cue, begins))
                continue
            if block in winners:
                warnings.append(_overtaken(self.cues, winners[block], index, block))
            winners[block] = index
        segments = (
            Segment(block, geometry.block_seconds(block, block_latent_frames), self.cues[index])
            for block, index in winners.items()
        )
        return Timeline(tuple(segments), tuple(warnings))


# Values: what a cue may hold, and how it is shown


def _checked_seconds(seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise ScheduleError(f"the time {_quoted(seconds)} is not a number of seconds; {_TIME_SPELLINGS}")
    if not 0 <= seconds <= MAX_SECONDS:
        raise ScheduleError(
            f"the time {_quoted(seconds)} is not possible; times are from 0 to {MAX_SECONDS} seconds (24 h)"
        )
    return float(seconds) + 0.0  # -0.0 becomes 0.0


def _checked_prompt(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise ScheduleError(f"the prompt {_quoted(prompt)} is not text; write it in quotes")
    prompt = " ".join(prompt.split())
    if not prompt:
        raise ScheduleError("the prompt is empty; write what the video should show, or remove the cue")
    if _LONE_SURROGATE.search(prompt):
        raise ScheduleError("the prompt holds half a character (a lone UTF-16 surrogate); type it anew")
    return prompt


def _checked_policy(policy: Any) -> Policy:
    try:
        return Policy(policy)
    except ValueError:
        raise ScheduleError(f"{_quoted(policy)} is not a policy; use {', '.join(_POLICY_NAMES)}") from None


def _quoted(value: Any) -> str:
    """A value as messages show it, cut short."""
    if not isinstance(value, str):
        return reprlib.repr(value)
    return f'"{value}"' if len(value) <= _QUOTED_CHARACTERS else f'"{value[:_QUOTED_CHARACTERS]}..."'


def _spelled(seconds: float) -> str:
    """Seconds without an exponent and without loss: 0s, 2.5s, 0.0000001s."""
    digits = format(Decimal(repr(float(seconds))), "f")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + "s"


def _rounded(seconds: float) -> str:
    return _spelled(round(seconds, 2))


def _named(index: int, cue: Cue) -> str:
    return f"cue {index + 1} at {_spelled(cue.seconds)}"


# Schedules: what the cues must be to each other and to the video


def _check_number_of_cues(num_cues: int) -> None:
    if not num_cues:
        raise ScheduleError("the schedule has no cues; give it at least one, at 0")
    if num_cues > MAX_CUES:
        raise ScheduleError(
            f"the schedule has {num_cues} cues; at most {MAX_CUES} are allowed, split the video"
        )


def _check_order(cues: Sequence[Cue]) -> None:
    if cues[0].seconds != 0:
        at = _spelled(cues[0].seconds)
        raise ScheduleError(
            f"the first cue is at {at}, and the video needs a prompt from 0 on; begin with a cue at 0 "
            "(where the time is meant as words of a prompt, write 0 => before it)",
            cue=1,
        )
    for index, (before, cue) in enumerate(pairwise(cues)):
        if cue.seconds < before.seconds:
            raise ScheduleError(
                f"{_named(index + 1, cue)} comes after {_named(index, before)}, and cues must be in order of "
                "time; move it up or correct its time",
                cue=index + 2,
            )


def _check_before_end(cues: Sequence[Cue], total_seconds: float) -> None:
    for index, cue in enumerate(cues):
        if not cue.seconds < total_seconds:
            where = "at" if cue.seconds == total_seconds else "after"
            raise ScheduleError(
                f"{_named(index, cue)} begins {where} the video's end at {_spelled(total_seconds)}; "
                "raise seconds or remove it",
                cue=index + 1,
            )


def _too_late(index: int, cue: Cue, last_begins: float) -> str:
    return (
        f"{_named(index, cue)} is never seen: the video's last block begins at {_rounded(last_begins)}; "
        "move it there or earlier, or raise seconds"
    )


def _overtaken(cues: Sequence[Cue], loser: int, winner: int, block: int) -> str:
    return (
        f"{_named(loser, cues[loser])} is never seen: {_named(winner, cues[winner])} takes effect at the "
        f"same block ({block}); put them further apart"
    )


# Schedule text

_POLICY_NAMES = tuple(policy.value for policy in Policy)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CUE_LINE = re.compile(r"(?P<time>\S*?)(?P<arrow>\s*=>|\s+|\Z)(?P<words>.*)", re.DOTALL)
_POLICY_PREFIX = re.compile(rf"({'|'.join(_POLICY_NAMES)}):", re.IGNORECASE | re.ASCII)
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


def _checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise ScheduleError(f"a schedule is text, and {type(text).__name__} came; decode it first")
    if len(text) > MAX_CHARACTERS:
        raise ScheduleError(f"the schedule has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    return text.removeprefix("\ufeff")


def _numbered(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers; only LF, CRLF and CR end a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line and not line.isspace()]


def _content_lines(text: str) -> list[_Line]:
    """Lines less blanks and comments, and less the indent of the first: a whole schedule may be indented."""
    lines = [(number, line) for number, line in _numbered(text) if not line.lstrip().startswith("#")]
    if not lines:
        raise ScheduleError("the schedule is empty; write a prompt, or cues such as: 0 => a red circle")
    first = lines[0][1]
    indent = first[: len(first) - len(first.lstrip())]
    return [
        _Line(number, 1 + len(indent) * line.startswith(indent), line.removeprefix(indent))
        for number, line in lines
    ]


def _begins_with_time(line: str) -> bool:
    time, arrow = _CUE_LINE.match(line).group("time", "arrow")
    return arrow.endswith("=>") or _TIME_LIKE.fullmatch(time) is not None


def _plain_prompt(lines: Sequence[_Line]) -> str:
    """The one prompt of a text without times; refuses a text that has some, only not at its beginning."""
    for line in lines:
        if not line.is_continuation and _begins_with_time(line.text):
            raise ScheduleError(
                "this line begins with a time and the first one does not; begin the first line with 0 => "
                "(or, where no time is meant, indent this line)",
                line.number,
                line.column,
            )
    return " ".join(line.text for line in lines)


def _grouped(lines: Sequence[_Line]) -> list[list[_Line]]:
    """Each cue's line with those that continue it."""
    groups: list[list[_Line]] = []
    for line in lines:
        if line.is_continuation:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def _read_cue(lines: Sequence[_Line]) -> Cue:
    first, *rest = lines
    parts = _CUE_LINE.match(first.text)
    with _located(first.number, first.column):
        seconds = _read_time(parts["time"])
    with _located(first.number, first.column + parts.start("words")):
        words = " ".join([parts["words"], *(line.text for line in rest)]).lstrip()
        prefix = _POLICY_PREFIX.match(words)
        if prefix is None:
            return Cue(seconds, words)
        return Cue(seconds, words[prefix.end() :], prefix[1].lower())


def _read_time(text: str) -> float:
    """`5`, `5s`, `0:05` or `1:02:03` -> seconds."""
    if not _TIME.fullmatch(text):
        raise ScheduleError(_why_not_a_time(text))
    seconds = 0.0
    for part in text.removesuffix("s").split(":"):
        seconds = seconds * 60 + float(part)
    return _checked_seconds(seconds)


def _why_not_a_time(text: str) -> str:
    if not text:
        return f"a time is missing; {_TIME_SPELLINGS}"
    if text.startswith("-") and _TIME.fullmatch(text[1:]):
        return f"the time {_quoted(text)} is negative; the video begins at 0"
    return (
        f"{_quoted(text)} is not a time; {_TIME_SPELLINGS}; indent a line that continues a prompt, and "
        "write 0 => before a first prompt that begins like a time"
    )


# Timeline JSON and the reference's JSONL

_JSON_START = re.compile(r'\s*(\{\s*["}]|\[\s*[{\]])')


def _decoded(text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ScheduleError(f"this is not valid JSON: {error.msg}", line, error.colno) from None
    except RecursionError:
        raise ScheduleError("this JSON is nested too deeply; a timeline is a list of cues") from None
    except ValueError as error:  # a number of thousands of digits
        raise ScheduleError(f"this JSON cannot be read: {error}") from None


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _timeline_entries(document: Any) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get("cues"), list):
        raise ScheduleError(
            f"a timeline is an object with a list of cues, and {_quoted(document)} came; "
            'write {"version": 1, "cues": [{"time": 0, "prompt": "..."}]}'
        )
    version = document.get("version", 1)
    if version != 1:
        raise ScheduleError(f"timeline version {_quoted(version)} is unknown; only 1 is read")
    return document["cues"]


def _cue_from_json(entry: Any, number: int) -> Cue:
    if not isinstance(entry, dict) or not {"time", "prompt"} <= entry.keys():
        raise ScheduleError(
            f'cue {number} is {_quoted(entry)}; write {{"time": 5.0, "prompt": "..."}}', cue=number
        )
    policy = entry.get("policy", Policy.RECACHE)
    extra = _without(entry, "time", "prompt", "policy")
    return _numbered_cue(number, entry["time"], entry["prompt"], policy, extra)


def _numbered_cue(number: int, time: Any, *fields: Any) -> Cue:
    """A cue of those fields; errors name its number, for text where a line tells nothing."""
    try:
        return Cue(_read_time(time.strip()) if isinstance(time, str) else time, *fields)
    except ScheduleError as error:
        raise ScheduleError(f"cue {number}: {error.message}", cue=number) from None


def _is_jsonl(text: str) -> bool:
    """Whether the first line is, by itself, an object with prompts."""
    if not _JSON_START.match(text):
        return False
    try:
        first = _decoded(_numbered(text)[0][1])
    except ScheduleError:
        return False
    return isinstance(first, dict) and "prompts" in first and "cues" not in first


def _jsonl_line(text: str, line: int) -> tuple[int, str]:
    lines = _numbered(text)
    if not lines:
        raise ScheduleError('the prompts are empty; write {"prompts": ["...", "..."]} on a line')
    if not 1 <= line <= len(lines):
        raise ScheduleError(f"line {line} of prompts was asked for; choose 1 to {len(lines)}")
    return lines[line - 1]


def _jsonl_prompts(fields: Any) -> list[Any]:
    if not isinstance(fields, dict) or not isinstance(fields.get("prompts"), list):
        raise ScheduleError(f'{_quoted(fields)} came; write {{"prompts": ["...", "..."]}}')
    _check_number_of_cues(len(fields["prompts"]))
    return fields["prompts"]


def _check_switch_frames(switch_frames: Sequence[int], num_prompts: int) -> None:
    if len(switch_frames) != num_prompts - 1:
        raise ScheduleError(
            f"{num_prompts} prompts came with {len(switch_frames)} switch frames; "
            f"give exactly {num_prompts - 1}, one for each prompt after the first"
        )
    last = geometry.num_latent_frames(geometry.frames_of_seconds(MAX_SECONDS)) - 1
    for frame in switch_frames:
        if isinstance(frame, bool) or not isinstance(frame, Integral) or not 0 <= frame <= last:
            raise ScheduleError(f"{_quoted(frame)} is not a switch frame; use latent frames from 0 to {last}")
    for before, frame in pairwise(switch_frames):
        if frame < before:
            raise ScheduleError(f"switch frame {frame} comes after {before}; put them in order")


def _switch_seconds(switch_frames: Sequence[int], block_latent_frames: int) -> Iterator[float]:
    """Latent frames -> the times of cues that take effect at the blocks where the reference switches."""
    taken = -1
    for frame in switch_frames:
        seconds = geometry.block_seconds(frame, 1)
        block = geometry.block_at(seconds, block_latent_frames)
        if block <= taken:  # one switch a block: this one waits for the next
            block = taken + 1
            seconds = geometry.block_seconds(block, block_latent_frames)
        taken = block
        yield seconds
