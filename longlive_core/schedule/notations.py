"""Timed prompts as other tools and people write them: read where the meaning is plain, else recognised."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise

OTHER_NOTATION = (
    "this looks like a list of timed prompts in another notation; write 0:00 a red circle, one cue a line "
    "(where it is one prompt, write 0 => before it)"
)

_NUMBER = r"(?:[0-9]+(?::[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)"
_END = (
    r"(?:[0-9]+(?::[0-9]+)+(?:\.[0-9]+)?|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s?s)"  # of a range: seconds, surely
)
# - 0:05 x, 1. 5s x, **0:05** x, [0:05] x, 0-5s: x, 5s -> x, 0:05 - x, 5s | x, 5 s x
_LISTED = re.compile(
    rf"(?P<mark>(?:[-*+\u2022]|[0-9]+[.)])\s+)?(?P<open>\*\*|[\[(])?"
    rf"(?P<time>{_NUMBER}(?:\s?(?:s|secs?|seconds?|ms))?)"
    rf"(?P<range>\s*(?:[-\u2013\u2014]|to)\s*{_END})?(?P<close>:?(?:\*\*|[\])]))?"
    r"(?P<after>\s*(?:=>?|-+>|\u2192|\u21d2)\s*|\s+(?:[-\u2013\u2014]+|\|)\s+|:\s*|\s+|\Z)(?P<words>.*)",
    re.DOTALL,
)
_QUOTE = "[\"'`\u2018\u2019\u201c\u201d]"
_ZERO = r"0+(?:[.:]0+)*(?![0-9.:]*[0-9])"
_NAME = (
    r"(?:frames?|f|time|t|at|from|start|seconds?|secs?|s|shot|scene|clip|part|cue|keyframe|key|segment|step)"
)
# How other notations begin: {'cues': [, ["x", "y"], {0: "x"}, "0": "x", | time | x |, cues: - time: 0,
# <cue time="0">, Frame 0: x, Shot 1 (0-5s): x, 0ms x, 0m0s x, 0,x, 0-5: x. A prompt may well begin with a
# number, but hardly with a zero.
_OTHER = re.compile(
    rf"[{{\[]\s*(?:{_QUOTE}|[\[(]?\s*[0-9.]+\s*(?:,|:(?!:)))|{_QUOTE}[0-9.:]+\s?s?{_QUOTE}\s*[:=,]|\|[^|]+\|"
    rf"|(?:(?:[A-Za-z_]+:|<[A-Za-z_]+|\[+[A-Za-z_]+\]+)\s+)?(?:"
    rf"(?:[-*+\u2022]\s*)?{_QUOTE}?{_NAME}{_QUOTE}?\s*[:=]\s*{_QUOTE}?{_ZERO}"
    rf"|(?:{_NAME}[\s#]*(?:[0-9]+[^0-9A-Za-z]{{1,3}})?)?{_ZERO}"
    r"(?:(?:\s?ms|f|frames?|m|min)(?![0-9A-Za-z])|[hm][0-9]|s?\s*(?:[:;|)\]>]|,(?![0-9])|-\s*[0-9])))"
    r"|0+(?::0+)+(?![0-9])",  # in full-width characters, else it is a time
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"(?P<lead>[^0-9A-Za-z]{0,4}(?:[A-Za-z]+[^0-9A-Za-z]{0,3})?)"
    r"(?P<number>[0-9]{1,9}(?::[0-9]{1,9}){0,3}(?:\.[0-9]{1,9})?)\s?(?:s|ms|f|%)?(?![0-9A-Za-z])"
)
_TAIL = re.compile(
    r".*?(?P<lead>(?:@|[(\[:|,-]|\b(?:at|from))\s{0,3})"
    r"(?P<number>[0-9]{1,9}(?::[0-9]{1,9}){0,3}(?:\.[0-9]{1,9})?)\s?(?:s|secs?|seconds?)?[)\]]?\s*",
    re.IGNORECASE,
)
_BARE_RANGE = re.compile(rf"[0-9.]+\s*[-\u2013\u2014]\s*(?!{_END}(?![0-9A-Za-z]))[0-9]")


def is_bare_range(text: str) -> bool:
    """Whether a line begins as `0 - 5 x` does: a range of an unknown unit."""
    return _BARE_RANGE.match(text) is not None


def listed(text: str) -> tuple[str, int, bool] | None:
    """A line such as `- 0:05 x` or `0-5s: x` -> its time, where its words begin, whether it is surely timed.

    None for every other line, those of our own grammar among them.
    """
    found = _LISTED.match(text)
    if not found or bool(found["open"]) != bool(found["close"]):
        return None
    time, after = "".join(found["time"].split()), found["after"].strip()
    is_marked = bool(found["mark"] or found["open"] or found["range"]) or time != found["time"]
    if not is_marked and after in ("", "=>", ":"):
        return None
    return time, found.start("words"), bool(found["range"]) or after == "=>"


def is_other_notation(prompt: str, lines: Sequence[str]) -> bool:
    """Whether what has no time that is read is a list of timed prompts all the same.

    It is if it begins as one does, if all its lines (or all but a title) begin alike with rising numbers, or
    if all end alike with rising ones from 0. Full-width characters count as the others.
    """
    prompt, lines = _plain(prompt), [_plain(line) for line in lines]
    values, ends = _numbers(_HEAD.match, lines), _numbers(_TAIL.fullmatch, lines)
    is_timed_behind = _are_rising(ends) and ends[0] == 0
    is_timed = _are_rising(values) or _are_rising(_numbers(_HEAD.match, lines[1:]))
    return _OTHER.match(prompt) is not None or is_timed or is_timed_behind


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _numbers(find: Callable[[str], re.Match | None], lines: Sequence[str]) -> list[float]:
    """The number of each line, as seconds; none at all unless every line has one in the same place."""
    found = [find(line) for line in lines]
    if not all(found) or len({one["lead"] for one in found}) > 1:
        return []
    parts = (one["number"].split(":") for one in found)
    return [reduce(lambda value, part: value * 60 + float(part), numbers, 0.0) for numbers in parts]


def _are_rising(values: Sequence[float]) -> bool:
    return len(values) > 1 and all(value < later for value, later in pairwise(values))
