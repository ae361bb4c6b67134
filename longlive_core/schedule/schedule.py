"""Cues in seconds of video -> PromptSchedule -> Timeline: which cue each block runs under."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from typing import Any

from .. import geometry
from ..config import Policy
from .cue import Cue, ScheduleError, check_cues, checked_always, clock, named, quoted, shown, whole
from .json_format import JSON_START, is_jsonl, read_jsonl, read_timeline, written_timeline
from .prefix import slip
from .text_format import checked_text, read_text, written_always, written_cue

NEVER = " is never seen: "  # in warnings, between a cue and the reason


@dataclass(frozen=True)
class Segment:
    """Blocks under one cue: the first of them, and when that begins in the video."""

    block: int
    seconds: float
    cue: Cue


@dataclass(frozen=True)
class Timeline:
    """A schedule snapped to blocks; segments are in order, the first begins at block 0.

    The words of `always` come before every prompt when it is encoded.
    """

    segments: tuple[Segment, ...]
    warnings: tuple[str, ...] = ()
    always: str = ""

    @property
    def prompts(self) -> list[str]:
        """The prompts of the segments as they are encoded."""
        return [whole(self.always, segment.cue.prompt) for segment in self.segments]

    @property
    def seeds(self) -> tuple[tuple[int, int], ...]:
        """(block, seed) of the segments that have one of their own, in order."""
        return tuple((one.block, one.cue.seed) for one in self.segments if one.cue.seed is not None)

    @property
    def images(self) -> list[str]:
        """The distinct images that segments begin with."""
        return list(dict.fromkeys(one.cue.image for one in self.segments if one.cue.image))

    def segment_at(self, block: int) -> Segment:
        """The segment that block `block` belongs to."""
        assert block >= 0, block
        return self.segments[bisect_right(self.segments, block, key=lambda segment: segment.block) - 1]

    def cue_at(self, block: int) -> Cue | None:
        """The cue that takes effect at block `block`, if one does."""
        segment = self.segment_at(block)
        return segment.cue if segment.block == block else None

    def report(self, frame_wise: "Timeline | None" = None, moved: float = 0.0) -> tuple[str, ...]:
        """One line a segment: the time its cue was written for, and when it takes effect.

        Only of those in which these differ by `moved` seconds or more.

        With the same schedule for a `frame_wise` model also when it does there, if that is another time.
        """
        others = {segment.cue: segment for segment in frame_wise.segments} if frame_wise else {}

        def begins(segment: Segment) -> str:
            return f"{shown(segment.seconds)} (block {segment.block})"

        def line(segment: Segment) -> str:
            other = others.get(segment.cue, segment)
            more = "" if other.seconds == segment.seconds else f", in a frame-wise model at {begins(other)}"
            when = f"{shown(segment.cue.seconds)} {quoted(segment.cue.prompt)}"
            return f"{when} takes effect at {begins(segment)}{more}"

        return tuple(line(part) for part in self.segments if abs(part.seconds - part.cue.seconds) >= moved)


@dataclass(frozen=True)
class PromptSchedule:
    """Cues in order of time, the first at 0. `extra` holds unknown fields of a timeline JSON.

    The words of `always`, such as a style, come before every prompt when it is encoded, sent ones too.
    """

    cues: tuple[Cue, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    always: str = ""

    def __post_init__(self):
        object.__setattr__(self, "cues", tuple(self.cues))
        object.__setattr__(self, "always", checked_always(self.always))
        check_cues(self.cues)

    @classmethod
    def parse(cls, text: str, switch_frames: Sequence[int] = ()) -> "PromptSchedule":
        """Read schedule text, timeline JSON or JSONL, recognised by the first characters (`{"`, `[{`: JSON).

        Schedule text has one cue a line, `TIME [=>] [POLICY, seed N, image FILE:] PROMPT`. Indented lines
        continue the cue above, blank lines and lines that begin with # are skipped. A first line without a
        time makes the whole text one prompt; `always: ...` may come first. `switch_frames` goes with JSONL
        alone. Raises ScheduleError.
        """
        text = checked_text(text)
        if is_jsonl(text):
            return cls.from_jsonl(text, switch_frames)
        if len(switch_frames):
            raise ScheduleError(
                "switch frames go with JSONL prompts only, and this schedule has times of its own; "
                "leave the switch frames out"
            )
        if JSON_START.match(text):
            return cls.from_json(text)
        always, cues = read_text(text)
        return cls(tuple(cues), always=always)

    @classmethod
    def from_json(cls, text: str) -> "PromptSchedule":
        """Read `{"version": 1, "cues": [{"time": 5.0, "prompt": "...", "policy": "recache"}]}`.

        `time` is seconds or a time as in schedule text. Without a `policy` (or with "auto") a cue names none;
        "blend" may have its seconds in `blend`; a `seed` above 2**53 - 1 is in quotes; an `image` is a name.
        Cues may come in any order. `always` may be next to `cues`.
        """
        cues, extra, always = read_timeline(checked_text(text))
        return cls(tuple(cues), extra, always)

    @classmethod
    def from_jsonl(
        cls, text: str, switch_frames: Sequence[int] = (), *, line: int = 1, block_latent_frames: int = 3
    ) -> "PromptSchedule":
        """Read the reference's prompts, `{"prompts": [...]}` a line, with the latent frame of each switch.

        `line` counts the lines that are not blank. A switch takes effect at the first block that begins at
        its latent frame or later and that no earlier switch has taken (LongLive v1.0 switch_frame_indices).
        """
        return cls(tuple(read_jsonl(checked_text(text), switch_frames, line, block_latent_frames)))

    @classmethod
    def single(cls, prompt: str) -> "PromptSchedule":
        """One prompt for the whole video; the text is not parsed."""
        return cls((Cue(0.0, prompt),))

    @property
    def images(self) -> list[str]:
        """The distinct images that cues begin with."""
        return list(dict.fromkeys(cue.image for cue in self.cues if cue.image))

    @property
    def prompts(self) -> list[str]:
        """The distinct prompts as they are encoded."""
        return list(dict.fromkeys(whole(self.always, cue.prompt) for cue in self.cues))

    def with_on_switch(self, policy: Policy, in_effect: str | None = None) -> "PromptSchedule":
        """The schedule with this policy where a cue names none.

        A first cue that repeats `in_effect`, the prompt of the video that is continued, is no switch.
        """
        cues = [replace(cue, policy=policy) if cue.policy is None else cue for cue in self.cues]
        if self.prompts[0] == in_effect:
            cues[0] = self.cues[0]
        return replace(self, cues=tuple(cues))

    def to_text(self) -> str:
        """Schedule text that parses to the same schedule, `extra` left out."""
        return written_always(self.always) + "".join(map(written_cue, self.cues))

    def to_json(self) -> str:
        """Timeline JSON that parses to the same schedule, `extra` included."""
        return written_timeline(self.cues, self.extra, self.always)

    def resolve(
        self,
        block_latent_frames: int,
        total_seconds: float | None = None,
        first_block: int = 0,
        cut_off: int = 0,
    ) -> Timeline:
        """Snap each cue to the first block that begins at its time or later; of two on one, the later wins.

        Blocks count from `first_block`, the first to be made; times from `cut_off` pixel frames before that
        block, or behind its beginning if less than 0. What is due earlier begins with that block. Cues at or
        beyond `total_seconds`, the length of the video, are not played.
        """
        start = geometry.block_seconds(first_block, block_latent_frames) - cut_off / geometry.FRAME_RATE

        def begins(block: int) -> float:
            return max(0.0, geometry.block_seconds(first_block + block, block_latent_frames) - start)

        last_block = inf
        if total_seconds is not None:
            frames = geometry.frames_of_seconds(total_seconds)
            frames += geometry.block_first_frame(first_block, block_latent_frames) - cut_off
            last_block = max(1, geometry.num_blocks(frames, block_latent_frames) - first_block) - 1
        winners: dict[int, int] = {}  # block -> index of its cue
        unseen: list[tuple[int, str]] = []  # index of a cue and why no block shows it
        played = [cue for cue in self.cues if total_seconds is None or not 0 < cue.seconds >= total_seconds]
        for index, cue in enumerate(played):
            at = geometry.block_at(start + cue.seconds, block_latent_frames) - first_block
            block = max(0, at) if cue.seconds else 0
            if block > last_block:
                why = f"the video's last block begins at {shown(begins(last_block))}"
                unseen.append((index, f"{why}; move it there or earlier, or raise seconds"))
                continue
            if block in winners:
                why = f"{named(index, cue, shown)} takes effect at the same block ({block})"
                unseen.append((winners[block], f"{why}; put them further apart"))
            winners[block] = index
        segments = (Segment(block, begins(block), self.cues[index]) for block, index in winners.items())
        warnings = [f"{named(index, self.cues[index], shown)}{NEVER}{why}" for index, why in unseen]
        warnings += filter(None, map(slip, count(), played))
        if late := len(self.cues) - len(played):
            cues_are = "1 cue after {} is" if late == 1 else f"{late} cues after {{}} are"
            warnings.append(f"{cues_are.format(clock(total_seconds))} not played")
        return Timeline(tuple(segments), tuple(warnings), self.always)
