"""A cue: one prompt and its time; what it may hold, and the error of a schedule that cannot be used."""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from ..config import Policy

MAX_SECONDS = 24 * 60 * 60
MAX_CUES = 100_000
MAX_BLEND_SECONDS = 60.0
MAX_SEED = 2**64 - 1
DEFAULT_BLEND_SECONDS = 2.25  # three blocks
AUTO = "auto"  # how "no policy" is spelled
TIME_SPELLINGS = "write a time as 0, 5s, 2.5s, 0:05, 1:02.5 or 1:02:03"
SECONDS = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)s?"

_TIME = re.compile(rf"(?:[0-9]+:[0-5]?[0-9]|[0-9]+):[0-5][0-9](?:\.[0-9]+)?|{SECONDS}")  # 1:02:03 or 1:02.5
IMAGE_FILE = r"[^\x00- ,:\\\x7f][^\x00-\x1f,:\\\x7f]*\.[A-Za-z0-9]{2,5}"  # sea.png, folder/the sea.png

_SEED = re.compile("0*([0-9]{1,20})")
_IMAGE = re.compile(rf"(?!(?:.*/)?\.{{0,2}}/){IMAGE_FILE}")
_QUOTED_CHARACTERS = 40
_LONE = re.compile("[\ud800-\udfff]")


class ScheduleError(ValueError):
    """A schedule that cannot be used. `line`, `column`, `cue` count from 1; None where they do not apply."""

    def __init__(
        self, message: str, line: int | None = None, column: int | None = None, cue: int | None = None
    ):
        super().__init__(message if line is None else f"line {line}, column {column}: {message}")
        self.message, self.line, self.column, self.cue = message, line, column, cue

    def at(self, line: int, column: int) -> "ScheduleError":
        """The same error with its place in the text."""
        return ScheduleError(self.message, line, column, self.cue)


@dataclass(frozen=True)
class Cue:
    """One prompt and its time in seconds. Whitespace inside the prompt becomes single spaces.

    `policy` is a Policy or its name; None or "auto" leaves it to the run. `blend_seconds` (above 0, at most
    60, default 2.25) goes with Policy.BLEND alone. `seed` (0 to 2**64 - 1, or its digits) is for the noise
    from this cue on, until another cue has one. `image` names a file that a new scene begins with: its policy
    is Policy.CUT. `extra` holds unknown fields of a timeline JSON: they are written back and do not count in
    `==`. Raises ScheduleError.
    """

    seconds: float
    prompt: str
    policy: Policy | None = None
    blend_seconds: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    seed: int | None = None
    image: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "seconds", _checked_seconds(self.seconds))
        object.__setattr__(self, "prompt", checked_prompt(self.prompt))
        object.__setattr__(self, "image", None if self.image is None else checked_image(self.image))
        object.__setattr__(self, "policy", _checked_policy(self.policy, self.image))
        object.__setattr__(self, "blend_seconds", _checked_blend(self.blend_seconds, self.policy))
        object.__setattr__(self, "seed", checked_seed(self.seed))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _checked_seconds(seconds: Any) -> float:
    if not _is_number(seconds):
        raise ScheduleError(f"the time {quoted(seconds)} is not a number of seconds; {TIME_SPELLINGS}")
    if not 0 <= seconds <= MAX_SECONDS:
        raise ScheduleError(
            f"the time {quoted(seconds)} is not possible; times are from 0 to {MAX_SECONDS} seconds (24 h)"
        )
    return float(seconds) + 0.0  # -0.0 becomes 0.0


def checked_prompt(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise ScheduleError(f"the prompt {quoted(prompt)} is not text; write it in quotes")
    prompt = " ".join(prompt.split())
    if not prompt:
        raise ScheduleError("the prompt is empty; write what the video should show, or remove the cue")
    if "\0" in prompt:
        raise ScheduleError("the prompt holds a NUL character; remove it")
    if _LONE.search(prompt):
        raise ScheduleError("the prompt holds a lone UTF-16 surrogate (half a character); type it again")
    return prompt


def checked_always(words: Any) -> str:
    """The words before every prompt, checked as a prompt is; they may be empty."""
    return "" if words is None or (isinstance(words, str) and not words.split()) else checked_prompt(words)


def whole(always: str, prompt: str) -> str:
    """A prompt as it is encoded."""
    return f"{always} {prompt}" if always else prompt


def _checked_policy(policy: Any, image: str | None) -> Policy | None:
    if policy is None or policy == AUTO:
        return Policy.CUT if image else None
    try:
        named = Policy(policy)
    except ValueError:
        raise ScheduleError(f"{quoted(policy)} is not a policy; use {', '.join((*Policy, AUTO))}") from None
    if image and named is not Policy.CUT:
        raise ScheduleError(
            f"the image {quoted(image)} came with {named.value}, and a new scene begins with an image; write "
            "cut, or no policy"
        )
    return named


def checked_image(image: Any) -> str:
    """The name of an image, which leads out of no folder; ScheduleError for any other."""
    if isinstance(image, str) and _IMAGE.fullmatch(image) and not _LONE.search(image):
        return image
    raise ScheduleError(
        f"the image {quoted(image)} is not possible; name a file of ComfyUI's input folder, or of the "
        "schedule's: sea.png or folder/sea.png, without .. and , : \\ in it"
    )


def _checked_blend(seconds: Any, policy: Policy | None) -> float | None:
    if policy is not Policy.BLEND:
        if seconds is None:
            return None
        name = AUTO if policy is None else policy.value
        raise ScheduleError(
            f"a blend of {quoted(seconds)} seconds came with {name}; only blend takes seconds"
        )
    if seconds is None:
        return DEFAULT_BLEND_SECONDS
    if not _is_number(seconds):
        raise ScheduleError(f"the blend {quoted(seconds)} is not a number of seconds; give it as 3.0")
    if not 0 < seconds <= MAX_BLEND_SECONDS:
        raise ScheduleError(
            f"a blend of {quoted(seconds)} seconds is not possible; a blend takes more than 0 and at most "
            f"{MAX_BLEND_SECONDS:g} seconds"
        )
    return float(seconds)


def checked_seed(seed: Any) -> int | None:
    digits = _SEED.fullmatch(seed) if isinstance(seed, str) else None
    number = int(digits[1]) if digits else seed
    if number is None:
        return None
    if not isinstance(number, Integral) or isinstance(number, bool) or not 0 <= number <= MAX_SEED:
        raise ScheduleError(
            f"the seed {quoted(seed)} is not possible; use a whole number from 0 to {MAX_SEED}"
        )
    return int(number)


def quoted(value: Any) -> str:
    """A value as messages show it, cut short."""
    if not isinstance(value, str):
        return reprlib.repr(value)
    return f'"{value}"' if len(value) <= _QUOTED_CHARACTERS else f'"{value[:_QUOTED_CHARACTERS]}..."'


def read_time(text: str) -> float:
    """`5`, `5s`, `0:05` or `1:02:03` -> seconds."""
    if not text:
        raise ScheduleError(f"a time is missing; {TIME_SPELLINGS}")
    if text.startswith("-") and _TIME.fullmatch(text[1:]):
        raise ScheduleError(f"the time {quoted(text)} is negative; the video begins at 0")
    if not _TIME.fullmatch(text):
        raise ScheduleError(
            f"{quoted(text)} is not a time; {TIME_SPELLINGS}; indent a line that continues a prompt, and "
            "write 0 => before a first prompt that begins like a time"
        )
    seconds = 0.0
    for part in text.removesuffix("s").split(":"):
        seconds = seconds * 60 + float(part)
    return _checked_seconds(seconds)


def spelled(seconds: float) -> str:
    """Seconds without an exponent and without loss: 0s, 2.5s, 0.0000001s."""
    digits = format(Decimal(repr(float(seconds))), "f")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + "s"


def shown(seconds: float) -> str:
    """Seconds to a tenth, as messages show them: 5s, 19.3s."""
    return spelled(round(seconds, 1))


def clock(seconds: float) -> str:
    """Seconds to a tenth, as people read them: 0:05, 1:02.5, 62:03."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}".removesuffix(".0")


def named(index: int, cue: Cue, spell: Callable[[float], str] = spelled) -> str:
    return f"cue {index + 1} at {spell(cue.seconds)}"


def check_num_cues(count: int) -> None:
    if not count:
        raise ScheduleError("the schedule has no cues; give it at least one, at 0")
    if count > MAX_CUES:
        raise ScheduleError(f"the schedule has {count} cues; at most {MAX_CUES} are allowed, split the video")


def check_cues(cues: Sequence[Cue]) -> None:
    check_num_cues(len(cues))
    check_order(cues)


def check_order(cues: Sequence[Cue]) -> None:
    """ScheduleError unless the first cue is at 0 and no later one goes back in time."""
    if cues[0].seconds != 0:
        raise ScheduleError(
            f"the first cue is at {spelled(cues[0].seconds)}, and the video needs a prompt from 0 on; begin "
            "with a cue at 0 (where the time is meant as words of a prompt, write 0 => before it)",
            cue=1,
        )
    for index, (before, cue) in enumerate(pairwise(cues)):
        if cue.seconds < before.seconds:
            raise ScheduleError(
                f"{named(index + 1, cue)} comes after {named(index, before)}, and cues must be in order of "
                "time; move it up or correct its time",
                cue=index + 2,
            )
