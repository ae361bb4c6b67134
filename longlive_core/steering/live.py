"""A run that is steered while it goes on: prompts, pause, stop; and what was played, to be played again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from threading import Condition
from typing import Any

from ..config import Policy
from ..geometry import FRAME_RATE, block_seconds
from ..rollout.rollout import Block
from ..schedule.cue import MAX_CUES, Cue, ScheduleError
from ..schedule.schedule import PromptSchedule, Timeline
from .inbox import Inbox, Room, Ticket
from .script import EncodeText, PromptScript, SceneImages

FULL_SPEED, REAL_TIME = PACES = ("full speed", "real time")
MAX_CHARACTERS = 20_000
SHOWN_CUES, SHOWN_CHARACTERS = 256, 100_000  # of a snapshot: the newest cues, their prompts together
POLL_SECONDS = 0.05


class LiveError(RuntimeError):
    """What was asked is not possible in the state that the run is in."""


class _Stop(Exception):
    """Raised at a block boundary: the run is to end there."""


@dataclass
class Played:
    """A cue that took effect at a block; `latency`, in seconds, is known once the block's frames are out."""

    block: int
    seconds: float
    cue: Cue
    ticket: Ticket | None = None
    latency: float | None = None

    def shown(self) -> dict[str, Any]:
        when = {"block": self.block, "seconds": self.seconds, "latency": self.latency}
        origin, number = ("live", self.ticket.number) if self.ticket else ("schedule", None)
        return {**when, **shown(self.cue), "origin": origin, "ticket": number}


def shown(cue: Cue) -> dict[str, Any]:
    """A cue as snapshots show it."""
    policy = cue.policy and cue.policy.value
    return {"prompt": cue.prompt, "policy": policy, "blend": cue.blend_seconds, "image": cue.image}


class LiveControl:
    """Steers one run. Every method may be called from any thread; none of them waits for the model.

    `on_switch` is the policy of prompts that name none. `on_change` is called after each change that a
    snapshot shows, `check` while the run is held: it may raise to end it. `clock` gives seconds.
    """

    def __init__(
        self,
        pace: str = FULL_SPEED,
        on_switch: Policy | None = None,
        on_change: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
        room: Room | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if pace not in PACES:
            raise ValueError(f"unknown pace {pace!r}; choose one of {', '.join(PACES)}")
        self.pace, self.on_switch = pace, on_switch
        self._on_change, self._check, self._clock = on_change, check, clock
        self._inbox = Inbox(room or Room(), on_change)
        self._lock = Condition()  # notified of every change
        self._is_paused = self._is_stopping = self._has_played_sent = False
        self._end = self._error = self._num_blocks = None
        self._ran: tuple[float, float | None] = 0.0, None  # seconds before the newest start; its time
        self._num_tickets = self._num_frames = 0
        self._block = -1  # the newest whose frames are out
        self._played: list[Played] = []
        self._always = ""  # of the schedule

    def send(
        self,
        prompt: str,
        policy: str | None = None,
        blend_seconds: float | None = None,
        image: str | None = None,
    ) -> Ticket:
        """Let a prompt take effect at the first block after it is encoded; returns at once.

        A new scene begins with the image. A prompt that still waits is replaced. Raises ScheduleError for
        what no cue may hold and beyond 20,000 characters, LiveError when the run is at its end.
        """
        if isinstance(prompt, str) and len(prompt) > MAX_CHARACTERS:
            raise ScheduleError(f"the prompt has {len(prompt)} characters; use at most {MAX_CHARACTERS}")
        cue = Cue(0.0, prompt, policy, blend_seconds, image=image)
        if cue.policy is None:
            cue = replace(cue, policy=self.on_switch)
        with self._change("a prompt"):
            if self._is_stopping:
                raise LiveError("the run is stopping; a prompt can no longer reach it")
            if len(self._played) >= MAX_CUES:
                raise ScheduleError(f"the run has {MAX_CUES} cues, and no schedule may have more")
            self._num_tickets += 1
            ticket = Ticket(self._num_tickets, cue, self._clock())
            self._inbox.put(ticket)
        return ticket

    def pause(self) -> None:
        """Make no further block until `resume`; memory and position are held. LiveError at the run's end."""
        with self._change("pause"):
            self._is_paused = True

    def resume(self) -> None:
        """Continue after a pause. LiveError at the run's end."""
        with self._change("resume"):
            self._is_paused = False

    def stop(self) -> None:
        """End at the next block boundary and keep what is made, at least a block. LiveError after the end."""
        with self._change("stop"):
            self._is_stopping = True

    @property
    def state(self) -> str:
        """starting, running, paused, stopping, done, stopped, failed or interrupted."""
        if self._end:
            return self._end
        if self._is_stopping or self._is_paused:
            return "stopping" if self._is_stopping else "paused"
        return "running" if self._played else "starting"

    @property
    def has_ended(self) -> bool:
        return self._end is not None

    @property
    def was_steered(self) -> bool:
        """Whether something else was played than the schedule says, or less."""
        return bool(self._played) and (self._is_stopping or self._has_played_sent)

    @property
    def seconds(self) -> float:
        """Length of the video made so far."""
        return self._num_frames / FRAME_RATE

    def snapshot(self) -> dict[str, Any]:
        """The run as JSON-ready values. `cues` are the newest that took effect, within limits."""
        elapsed, newest = self._elapsed(), self._inbox.newest
        ticket = newest and {"ticket": newest.number, "state": newest.state, "error": newest.error}
        return {
            "state": self.state,
            "block": None if self._block < 0 else self._block,
            "num_blocks": self._num_blocks,
            "seconds": self.seconds,
            "fps": round(self._num_frames / elapsed, 2) if elapsed else 0.0,
            "pace": self.pace,
            "cues": [played.shown() for played in newest_within(self._played)],
            "pending": ticket and {**ticket, **shown(newest.cue)},
            "error": self._error,
        }

    def schedule(self) -> PromptSchedule:
        """What was played, to make the same latents again, bit for bit. LiveError before the first block."""
        if not self._played:
            raise LiveError("nothing was played yet; ask again when the first block is being made")
        return PromptSchedule(tuple(played.cue for played in self._played), always=self._always)

    def script(
        self,
        timeline: Timeline,
        encode: EncodeText,
        blocks: range,
        block_latent_frames: int,
        is_until_stopped: bool = False,
        cut_off: int = 0,
        images: SceneImages | None = None,
    ) -> PromptScript:
        """The Script of the run: the timeline with all that is sent. It waits while the run is held.

        Sent prompts win over cues at the same block. The video begins `cut_off` pixel frames before `blocks`.
        """
        start = block_seconds(blocks.start, block_latent_frames) - cut_off / FRAME_RATE

        def begins(index: int) -> float:
            return block_seconds(blocks.start + index, block_latent_frames) - start if index > 0 else 0.0

        def cue_at(block: int) -> Cue | None:
            index = block - blocks.start
            self._hold(index, begins(index - 1))
            return self._play(index, begins(index), timeline.cue_at(index), self._inbox.take())

        self._num_blocks, self._always = None if is_until_stopped else len(blocks), timeline.always
        script = PromptScript(cue_at, encode, block_latent_frames, always=timeline.always, images=images)
        self._inbox.open(script.prepare)
        return script

    def until_stopped(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks of a rollout that runs on this control's script, up to a stop."""
        with suppress(_Stop):
            yield from blocks

    def out(self, block: int, num_frames: int) -> None:
        """Note that the frames of a block, counted from the run's first, are out."""
        with self._change():
            for played in takewhile(lambda played: played.block > self._block, reversed(self._played)):
                if played.ticket and played.block <= block:
                    played.latency = round(self._clock() - played.ticket.sent, 4)
            self._block, self._num_frames = block, self._num_frames + num_frames

    def settle(self) -> None:
        """No more frames come out: a later cue than the first whose block was not finished was not played."""
        with self._lock:
            self._played[1:] = [cue for cue in self._played[1:] if cue.block <= self._block]

    def finish(self, state: str | None = None, error: str | None = None) -> None:
        """End the run: done or stopped unless another state is named. Later calls change nothing."""
        with self._change():
            self.settle()
            if not self._end:
                self._end, self._error = state or ("stopped" if self._is_stopping else "done"), error
            self._inbox.close()

    @contextmanager
    def _change(self, what: str | None = None) -> Iterator[None]:
        """Change the run under its lock, then report it; LiveError where `what` comes after the end."""
        with self._lock:
            if what and self._end:
                raise LiveError(f"the run has ended ({self._end}); {what} cannot reach it, start another")
            yield
            is_running = bool(self._played) and not self._is_paused and not self._end
            if is_running != (self._ran[1] is not None):
                self._ran = self._elapsed(), self._clock() if is_running else None
            self._lock.notify_all()
        self._on_change()

    def _elapsed(self) -> float:
        """Seconds since the first block began, without pauses."""
        before, start = self._ran
        return before if start is None else before + self._clock() - start

    def _hold(self, index: int, due: float) -> None:
        """Wait until a block may begin, in real time at `due` seconds; raise _Stop if there is to be none."""
        while not self._is_stopping:
            ahead = due - self._elapsed() if self.pace == REAL_TIME else 0.0
            if not self._is_paused and ahead <= 0:
                return
            self._check()
            with self._lock:
                self._lock.wait(POLL_SECONDS if self._is_paused else min(ahead, POLL_SECONDS))
        if index:
            raise _Stop

    def _play(self, index: int, seconds: float, cue: Cue | None, ticket: Ticket | None) -> Cue | None:
        """The cue of a block that begins at `seconds`, noted as played; sent before scheduled."""
        if ticket:  # a seed that begins here does so all the same
            cue = replace(ticket.cue, seconds=seconds, seed=cue and cue.seed)
        elif cue and not index:  # frames cut off from an earlier video may delay it
            cue = replace(cue, seconds=seconds)
        if cue:
            with self._change():
                self._played.append(Played(index, seconds, cue, ticket))
                self._has_played_sent = self._has_played_sent or ticket is not None
        return cue


def newest_within(played: list[Played]) -> list[Played]:
    """The newest cues within the limits of a snapshot, in order; always the very newest."""
    newest = played[-SHOWN_CUES:]
    totals = accumulate(len(cue.cue.prompt) for cue in reversed(newest))
    return newest[-max(1, sum(total <= SHOWN_CHARACTERS for total in totals)) :]
