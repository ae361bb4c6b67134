"""Cues -> PromptSchedule -> which cue each block runs under.

Times are seconds of video as the user wrote them; `resolve` snaps them to blocks. Knows nothing of text
embeddings, tensors or what a policy does to the cache.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Any

from .. import geometry
from .cue import (
    SWITCH_POLICIES,
    Cue,
    Policy,
    ScheduleError,
    check_number_of_cues,
    named,
    quoted,
    rounded,
    spelled,
)
from .json_format import (
    JSON_START,
    check_switch_frames,
    cue_from_json,
    cue_to_json,
    decoded,
    is_jsonl,
    jsonl_line,
    jsonl_prompts,
    numbered_cue,
    switch_seconds,
    timeline_entries,
    without,
)
from .text_format import (
    begins_with_time,
    checked_text,
    content_lines,
    grouped,
    plain_prompt,
    read_cue,
    written_cue,
)

REFERENCE_BLOCK_LATENT_FRAMES = 3  # the blocks that the reference's switch frames are written for

__all__ = ["SWITCH_POLICIES", "Cue", "Policy", "PromptSchedule", "ScheduleError", "Segment", "Timeline"]


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
            f"{spelled(segment.cue.seconds)} {quoted(segment.cue.prompt)} takes effect at "
            f"{rounded(segment.seconds)} (block {segment.block})"
            for segment in self.segments
        )


@dataclass(frozen=True)
class PromptSchedule:
    """Cues in order of time, the first at 0; its policy is never used."""

    cues: tuple[Cue, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "cues", tuple(self.cues))
        check_number_of_cues(len(self.cues))
        _check_order(self.cues)

    @classmethod
    def parse(cls, text: str, switch_frames: Sequence[int] = ()) -> "PromptSchedule":
        """Schedule text, timeline JSON or JSONL, told apart by how they begin (`{"` or `[{` is JSON).

        Schedule text has one cue a line, `TIME [=>] [POLICY:] PROMPT`. Indented lines continue the cue above,
        blank lines and lines that begin with # are skipped. A first line without a time makes the whole text
        one prompt. `switch_frames` belongs to JSONL alone.
        """
        text = checked_text(text)
        if is_jsonl(text):
            return cls.from_jsonl(text, switch_frames)
        if len(switch_frames):
            raise ScheduleError(
                "switch frames go with JSONL prompts only, and this schedule has times of its own; "
                "leave the switch frames out"
            )
        return cls.from_json(text) if JSON_START.match(text) else cls.from_text(text)

    @classmethod
    def from_text(cls, text: str) -> "PromptSchedule":
        """Schedule text, in the grammar that `parse` describes."""
        lines = content_lines(checked_text(text))
        if not begins_with_time(lines[0].text):
            return cls.single(plain_prompt(lines))
        parts = grouped(lines)
        check_number_of_cues(len(parts))
        cues = tuple(read_cue(part) for part in parts)
        try:
            return cls(cues)
        except ScheduleError as error:
            first = parts[error.cue - 1][0]
            raise error.at(first.number, first.column) from None

    @classmethod
    def from_json(cls, text: str) -> "PromptSchedule":
        """Timeline JSON: `{"version": 1, "cues": [{"time": 5.0, "prompt": "...", "policy": "recache"}]}`.

        `time` is seconds or a time as in schedule text. Without a `policy` (or with "auto") a cue names none;
        "blend" may have its seconds in `blend`. Cues may come in any order.
        """
        document = decoded(checked_text(text))
        entries = timeline_entries(document)
        check_number_of_cues(len(entries))
        cues = [cue_from_json(entry, number) for number, entry in enumerate(entries, 1)]
        return cls(tuple(sorted(cues, key=lambda cue: cue.seconds)), without(document, "version", "cues"))

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
        number, source = jsonl_line(checked_text(text), line)
        prompts = jsonl_prompts(decoded(source, number))
        check_switch_frames(switch_frames, len(prompts))
        times = [0.0, *switch_seconds(switch_frames, block_latent_frames)]
        return cls(tuple(map(numbered_cue, range(1, len(prompts) + 1), times, prompts)))

    @classmethod
    def single(cls, prompt: str) -> "PromptSchedule":
        """One prompt for the whole video; the text is taken as it is."""
        return cls((Cue(0.0, prompt),))

    def with_on_switch(self, policy: Policy, in_effect: str | None = None) -> "PromptSchedule":
        """The schedule with this policy where a cue names none.

        A first cue that only says again the prompt `in_effect` in the video it continues is no switch.
        """
        cues = [replace(cue, policy=policy) if cue.policy is None else cue for cue in self.cues]
        if self.cues[0].prompt == in_effect:
            cues[0] = self.cues[0]
        return replace(self, cues=tuple(cues))

    def to_text(self) -> str:
        """Schedule text that parses to the same schedule (`extra` has no place in it)."""
        return "".join(map(written_cue, self.cues))

    def to_json(self) -> str:
        """Timeline JSON that parses to the same schedule, with the fields that were not ours."""
        cues = [cue_to_json(cue) for cue in self.cues]
        return json.dumps({"version": 1, "cues": cues, **self.extra}, ensure_ascii=False, indent=2)

    def resolve(
        self,
        block_latent_frames: int,
        total_seconds: float | None = None,
        first_block: int = 0,
        cut_off: int = 0,
    ) -> Timeline:
        """Snap each cue to the first block that begins at its time or later; of two on one, the later wins.

        Blocks count from `first_block`, the first that a continued video adds; times from its beginning,
        which is `cut_off` pixel frames before that block. Raises ScheduleError if a cue is at or beyond
        `total_seconds`, the length of the video.
        """
        last_block = inf
        if total_seconds is not None:
            _check_before_end(self.cues, total_seconds)
            frames = geometry.frames_of_seconds(total_seconds)
            frames += geometry.block_first_frame(first_block, block_latent_frames) - cut_off
            last_block = max(1, geometry.num_blocks(frames, block_latent_frames) - first_block) - 1
        start = geometry.block_seconds(first_block, block_latent_frames) - cut_off / geometry.FRAME_RATE

        def begins(block: int) -> float:
            return geometry.block_seconds(first_block + block, block_latent_frames) - start

        winners: dict[int, int] = {}  # block -> index of its cue
        warnings = []
        for index, cue in enumerate(self.cues):
            block = geometry.block_at(start + cue.seconds, block_latent_frames) - first_block
            if block > last_block:
                warnings.append(_too_late(index, cue, begins(last_block)))
                continue
            if block in winners:
                warnings.append(_overtaken(self.cues, winners[block], index, block))
            winners[block] = index
        segments = (Segment(block, begins(block), self.cues[index]) for block, index in winners.items())
        return Timeline(tuple(segments), tuple(warnings))


def _check_order(cues: Sequence[Cue]) -> None:
    if cues[0].seconds != 0:
        at = spelled(cues[0].seconds)
        raise ScheduleError(
            f"the first cue is at {at}, and the video needs a prompt from 0 on; begin with a cue at 0 "
            "(where the time is meant as words of a prompt, write 0 => before it)",
            cue=1,
        )
    for index, (before, cue) in enumerate(pairwise(cues)):
        if cue.seconds < before.seconds:
            raise ScheduleError(
                f"{named(index + 1, cue)} comes after {named(index, before)}, and cues must be in order of "
                "time; move it up or correct its time",
                cue=index + 2,
            )


def _check_before_end(cues: Sequence[Cue], total_seconds: float) -> None:
    for index, cue in enumerate(cues):
        if not cue.seconds < total_seconds:
            where = "at" if cue.seconds == total_seconds else "after"
            raise ScheduleError(
                f"{named(index, cue)} begins {where} the video's end at {spelled(total_seconds)}; "
                "raise seconds or remove it",
                cue=index + 1,
            )


def _too_late(index: int, cue: Cue, last_begins: float) -> str:
    return (
        f"{named(index, cue)} is never seen: the video's last block begins at {rounded(last_begins)}; "
        "move it there or earlier, or raise seconds"
    )


def _overtaken(cues: Sequence[Cue], loser: int, winner: int, block: int) -> str:
    return (
        f"{named(loser, cues[loser])} is never seen: {named(winner, cues[winner])} takes effect at the "
        f"same block ({block}); put them further apart"
    )
