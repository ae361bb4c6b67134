"""Timeline JSON, and the reference's JSONL with its switch frames -> the parts of a schedule."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

from .. import geometry
from .cue import MAX_SECONDS, Cue, ScheduleError, check_number_of_cues, quoted
from .text_format import numbered_lines, read_time

JSON_START = re.compile(r'\s*(\{\s*["}]|\[\s*[{\]])')


def decoded(text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ScheduleError(f"this is not valid JSON: {error.msg}", line, error.colno) from None
    except RecursionError:
        raise ScheduleError("this JSON is nested too deeply; a timeline is a list of cues") from None
    except ValueError as error:  # a number of thousands of digits
        raise ScheduleError(f"this JSON cannot be read: {error}") from None


def without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def timeline_entries(document: Any) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get("cues"), list):
        raise ScheduleError(
            f"a timeline is an object with a list of cues, and {quoted(document)} came; "
            'write {"version": 1, "cues": [{"time": 0, "prompt": "..."}]}'
        )
    version = document.get("version", 1)
    if version != 1:
        raise ScheduleError(f"timeline version {quoted(version)} is unknown; only 1 is read")
    return document["cues"]


def cue_from_json(entry: Any, number: int) -> Cue:
    if not isinstance(entry, dict) or not {"time", "prompt"} <= entry.keys():
        raise ScheduleError(
            f'cue {number} is {quoted(entry)}; write {{"time": 5.0, "prompt": "..."}}', cue=number
        )
    extra = without(entry, "time", "prompt", "policy", "blend")
    fields = (entry["prompt"], entry.get("policy"), entry.get("blend"), extra)
    return numbered_cue(number, entry["time"], *fields)


def cue_to_json(cue: Cue) -> dict[str, Any]:
    """The entry that reads back as this cue; no policy where it names none."""
    entry: dict[str, Any] = {"time": cue.seconds, "prompt": cue.prompt}
    if cue.policy is not None:
        entry["policy"] = cue.policy.value
    if cue.blend_seconds is not None:
        entry["blend"] = cue.blend_seconds
    return entry | dict(cue.extra)


def numbered_cue(number: int, time: Any, *fields: Any) -> Cue:
    """A cue of those fields; errors name its number, for text where a line tells nothing."""
    try:
        return Cue(read_time(time.strip()) if isinstance(time, str) else time, *fields)
    except ScheduleError as error:
        raise ScheduleError(f"cue {number}: {error.message}", cue=number) from None


def is_jsonl(text: str) -> bool:
    """Whether the first line is, by itself, an object with prompts."""
    if not JSON_START.match(text):
        return False
    try:
        first = decoded(numbered_lines(text)[0][1])
    except ScheduleError:
        return False
    return isinstance(first, dict) and "prompts" in first and "cues" not in first


def jsonl_line(text: str, line: int) -> tuple[int, str]:
    lines = numbered_lines(text)
    if not lines:
        raise ScheduleError('the prompts are empty; write {"prompts": ["...", "..."]} on a line')
    if not 1 <= line <= len(lines):
        raise ScheduleError(f"line {line} of prompts was asked for; choose 1 to {len(lines)}")
    return lines[line - 1]


def jsonl_prompts(fields: Any) -> list[Any]:
    if not isinstance(fields, dict) or not isinstance(fields.get("prompts"), list):
        raise ScheduleError(f'{quoted(fields)} came; write {{"prompts": ["...", "..."]}}')
    check_number_of_cues(len(fields["prompts"]))
    return fields["prompts"]


def check_switch_frames(switch_frames: Sequence[int], num_prompts: int) -> None:
    if len(switch_frames) != num_prompts - 1:
        raise ScheduleError(
            f"{num_prompts} prompts came with {len(switch_frames)} switch frames; "
            f"give exactly {num_prompts - 1}, one for each prompt after the first"
        )
    last = geometry.num_latent_frames(geometry.frames_of_seconds(MAX_SECONDS)) - 1
    for frame in switch_frames:
        if isinstance(frame, bool) or not isinstance(frame, Integral) or not 0 <= frame <= last:
            raise ScheduleError(f"{quoted(frame)} is not a switch frame; use latent frames from 0 to {last}")
    for before, frame in pairwise(switch_frames):
        if frame < before:
            raise ScheduleError(f"switch frame {frame} comes after {before}; put them in order")


def switch_seconds(switch_frames: Sequence[int], block_latent_frames: int) -> Iterator[float]:
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
