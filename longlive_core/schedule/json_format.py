"""Timeline JSON <-> cues; the reference's JSONL with its switch frames -> cues."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

from ..geometry import block_at, block_seconds, frames_of_seconds, num_latent_frames
from .cue import MAX_SECONDS, Cue, ScheduleError, check_num_cues, checked_always, quoted, read_time
from .text_format import numbered_lines

LAST_FRAME = num_latent_frames(frames_of_seconds(MAX_SECONDS)) - 1
MAX_EXACT = 2**53 - 1  # of whole numbers in JSON: not every program keeps larger ones
JSON_START = re.compile(r'\s*(\{\s*["}]|\[\s*[{\]])')


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


def read_timeline(text: str) -> tuple[list[Cue], dict[str, Any], str]:
    """Timeline JSON -> its cues in order of time, its unknown fields, and what is in every prompt."""
    document = _decoded(text)
    if not isinstance(document, dict) or not isinstance(document.get("cues"), list):
        raise ScheduleError(
            f"a timeline is an object with a list of cues, and {quoted(document)} came; "
            'write {"version": 1, "cues": [{"time": 0, "prompt": "..."}]}'
        )
    version = document.get("version", 1)
    if version != 1:
        raise ScheduleError(f"timeline version {quoted(version)} is unknown; only 1 is read")
    check_num_cues(len(document["cues"]))
    cues = [_read_entry(entry, number) for number, entry in enumerate(document["cues"], 1)]
    extra = _without(document, "version", "always", "cues")
    return sorted(cues, key=lambda cue: cue.seconds), extra, checked_always(document.get("always"))


def _read_entry(entry: Any, number: int) -> Cue:
    if not isinstance(entry, dict) or not {"time", "prompt"} <= entry.keys():
        raise ScheduleError(
            f'cue {number} is {quoted(entry)}; write {{"time": 5.0, "prompt": "..."}}', cue=number
        )
    fields = (entry["prompt"], entry.get("policy"), entry.get("blend"))
    extra = _without(entry, "time", "prompt", "policy", "blend", "seed", "image")
    return _numbered_cue(number, entry["time"], *fields, extra, _seed_of(entry, number), entry.get("image"))


def _seed_of(entry: Mapping[str, Any], number: int) -> Any:
    """A seed as it is written; whole numbers may have a decimal point, as they have none in JavaScript."""
    seed = entry.get("seed")
    if not isinstance(seed, int | float) or isinstance(seed, bool):
        return seed
    if abs(seed) > MAX_EXACT:
        raise ScheduleError(
            f"cue {number}: the seed {quoted(seed)} is more than all programs keep; write it in quotes, as "
            f"every seed above {MAX_EXACT}",
            cue=number,
        )
    return int(seed) if float(seed).is_integer() else seed


def _numbered_cue(number: int, time: Any, *fields: Any) -> Cue:
    """A cue whose errors name its number, for text where a line says nothing."""
    try:
        return Cue(read_time(time.strip()) if isinstance(time, str) else time, *fields)
    except ScheduleError as error:
        raise ScheduleError(f"cue {number}: {error.message}", cue=number) from None


def written_timeline(cues: Sequence[Cue], extra: Mapping[str, Any], always: str) -> str:
    """Timeline JSON that reads back as these cues, unknown fields and words in every prompt."""
    entries = []
    for cue in cues:
        policy = {} if cue.policy is None else {"policy": cue.policy.value}
        blend = {} if cue.blend_seconds is None else {"blend": cue.blend_seconds}
        seed = {} if cue.seed is None else {"seed": cue.seed if cue.seed <= MAX_EXACT else str(cue.seed)}
        image = {} if cue.image is None else {"image": cue.image}
        own = {"time": cue.seconds, "prompt": cue.prompt, **policy, **blend, **seed, **image}
        entries.append({**own, **cue.extra})
    first = {"version": 1, "always": always} if always else {"version": 1}
    return json.dumps({**first, "cues": entries, **extra}, ensure_ascii=False, indent=2)


def is_jsonl(text: str) -> bool:
    """Whether the first line is, by itself, an object with prompts."""
    if not JSON_START.match(text):
        return False
    try:
        first = _decoded(numbered_lines(text)[0][1])
    except ScheduleError:
        return False
    return isinstance(first, dict) and "prompts" in first and "cues" not in first


def read_jsonl(text: str, switch_frames: Sequence[int], line: int, block_latent_frames: int) -> list[Cue]:
    """Line `line` of the reference's prompts, with the latent frame of each switch -> cues."""
    lines = numbered_lines(text)
    if not lines:
        raise ScheduleError('the prompts are empty; write {"prompts": ["...", "..."]} on a line')
    if not 1 <= line <= len(lines):
        raise ScheduleError(f"line {line} of prompts was asked for; choose 1 to {len(lines)}")
    number, source = lines[line - 1]
    fields = _decoded(source, number)
    if not isinstance(fields, dict) or not isinstance(fields.get("prompts"), list):
        raise ScheduleError(f'{quoted(fields)} came; write {{"prompts": ["...", "..."]}}')
    prompts = fields["prompts"]
    check_num_cues(len(prompts))
    _check_switch_frames(switch_frames, len(prompts))
    times = [0.0, *_switch_seconds(switch_frames, block_latent_frames)]
    return [_numbered_cue(index, *cue) for index, cue in enumerate(zip(times, prompts, strict=True), 1)]


def _check_switch_frames(switch_frames: Sequence[int], num_prompts: int) -> None:
    if len(switch_frames) != num_prompts - 1:
        raise ScheduleError(
            f"{num_prompts} prompts came with {len(switch_frames)} switch frames; "
            f"give exactly {num_prompts - 1}, one for each prompt after the first"
        )
    for before, frame in pairwise((0, *switch_frames)):
        if isinstance(frame, bool) or not isinstance(frame, Integral) or not 0 <= frame <= LAST_FRAME:
            raise ScheduleError(
                f"{quoted(frame)} is not a switch frame; use latent frames from 0 to {LAST_FRAME}"
            )
        if frame < before:
            raise ScheduleError(f"switch frame {frame} comes after {before}; put them in order")


def _switch_seconds(switch_frames: Sequence[int], block_latent_frames: int) -> Iterator[float]:
    """Latent frames -> the times of cues that take effect at the blocks where the reference switches."""
    taken = -1
    for frame in switch_frames:
        seconds = block_seconds(frame, 1)
        block = block_at(seconds, block_latent_frames)
        if block <= taken:  # one switch a block: this one waits for the next
            block = taken + 1
            seconds = block_seconds(block, block_latent_frames)
        taken = block
        yield seconds
