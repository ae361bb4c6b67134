"""One timed prompt: what it may hold, how it is written, and the error that says what is wrong with it."""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from numbers import Real
from typing import Any

MAX_SECONDS = 24 * 60 * 60
MAX_CUES = 100_000
MAX_BLEND_SECONDS = 60.0
DEFAULT_BLEND_SECONDS = 2.25  # three blocks
AUTO = "auto"  # how "no policy" is spelled
TIME_SPELLINGS = "write a time as 0, 5s, 2.5s, 0:05, 1:02.5 or 1:02:03"

_QUOTED_CHARACTERS = 40
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Policy(str, Enum):
    """How the video goes from the prompt before to that of a cue."""

    RECACHE = "recache"  # the window is recomputed under the new prompt, the sink kept
    REFRESH = "refresh"  # the same, and the sink recomputed too
    KEEP = "keep"  # nothing is recomputed
    CUT = "cut"  # the history is dropped: a new scene
    BLEND = "blend"  # the embedding moves over some seconds, and the window is recomputed on the way


SWITCH_POLICIES = tuple(policy for policy in Policy if policy is not Policy.BLEND)  # done at one block
POLICY_NAMES = (*(policy.value for policy in Policy), AUTO)


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

    `policy` is a Policy or its name; None (or "auto") names none, and the window's own policy is used.
    `blend_seconds`, above 0 and up to 60, goes with Policy.BLEND alone: 2.25 where it is not given.
    `extra` holds the fields of a timeline JSON that are not ours: they survive it and do not count in `==`.
    Raises ScheduleError.
    """

    seconds: float
    prompt: str
    policy: Policy | None = None
    blend_seconds: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "seconds", checked_seconds(self.seconds))
        object.__setattr__(self, "prompt", _checked_prompt(self.prompt))
        object.__setattr__(self, "policy", _checked_policy(self.policy))
        object.__setattr__(self, "blend_seconds", _checked_blend(self.blend_seconds, self.policy))


def checked_seconds(seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise ScheduleError(f"the time {quoted(seconds)} is not a number of seconds; {TIME_SPELLINGS}")
    if not 0 <= seconds <= MAX_SECONDS:
        raise ScheduleError(
            f"the time {quoted(seconds)} is not possible; times are from 0 to {MAX_SECONDS} seconds (24 h)"
        )
    return float(seconds) + 0.0  # -0.0 becomes 0.0


def _checked_prompt(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise ScheduleError(f"the prompt {quoted(prompt)} is not text; write it in quotes")
    prompt = " ".join(prompt.split())
    if not prompt:
        raise ScheduleError("the prompt is empty; write what the video should show, or remove the cue")
    if _LONE_SURROGATE.search(prompt):
        raise ScheduleError("the prompt holds half a character (a lone UTF-16 surrogate); type it anew")
    return prompt


def _checked_policy(policy: Any) -> Policy | None:
    if policy is None or policy == AUTO:
        return None
    try:
        return Policy(policy)
    except ValueError:
        raise ScheduleError(f"{quoted(policy)} is not a policy; use {', '.join(POLICY_NAMES)}") from None


def _checked_blend(seconds: Any, policy: Policy | None) -> float | None:
    if policy is not Policy.BLEND:
        if seconds is None:
            return None
        named = AUTO if policy is None else policy.value
        raise ScheduleError(
            f"a blend of {quoted(seconds)} seconds came with {named}; only blend takes seconds"
        )
    if seconds is None:
        return DEFAULT_BLEND_SECONDS
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise ScheduleError(f"the blend {quoted(seconds)} is not a number of seconds; give it as 3.0")
    if not 0 < seconds <= MAX_BLEND_SECONDS:
        raise ScheduleError(
            f"a blend of {quoted(seconds)} seconds is not possible; a blend takes more than 0 and at most "
            f"{MAX_BLEND_SECONDS:g} seconds"
        )
    return float(seconds)


def quoted(value: Any) -> str:
    """A value as messages show it, cut short."""
    if not isinstance(value, str):
        return reprlib.repr(value)
    return f'"{value}"' if len(value) <= _QUOTED_CHARACTERS else f'"{value[:_QUOTED_CHARACTERS]}..."'


def spelled(seconds: float) -> str:
    """Seconds without an exponent and without loss: 0s, 2.5s, 0.0000001s."""
    digits = format(Decimal(repr(float(seconds))), "f")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + "s"


def rounded(seconds: float) -> str:
    return spelled(round(seconds, 2))


def named(index: int, cue: Cue) -> str:
    return f"cue {index + 1} at {spelled(cue.seconds)}"


def check_number_of_cues(num_cues: int) -> None:
    if not num_cues:
        raise ScheduleError("the schedule has no cues; give it at least one, at 0")
    if num_cues > MAX_CUES:
        raise ScheduleError(
            f"the schedule has {num_cues} cues; at most {MAX_CUES} are allowed, split the video"
        )
