"""A run that is steered while it goes on: prompts, pause, stop; and what was played, to be played again.

Text and buttons come in from any thread; the rollout's Script goes out. Knows schedules and blocks, and
neither HTTP nor files nor models: what it holds of tensors it only passes on.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Event, Lock, Thread
from typing import Any

from torch import Tensor

from ..config import Policy
from ..geometry import FRAME_RATE, block_seconds
from ..rollout.rollout import Block, Script
from ..schedule.cue import MAX_CUES, Cue, ScheduleError
from ..schedule.schedule import PromptSchedule, Timeline
from .script import KEPT_PROMPTS, EncodeText, PromptScript

FULL_SPEED, REAL_TIME = PACES = ("full speed", "real time")
MAX_PROMPT_CHARACTERS = 20_000
SHOWN_CUES, SHOWN_CHARACTERS = 256, 100_000  # of a snapshot: the newest cues, their prompts together
POLL_SECONDS = 0.05
ENCODING, READY, PLAYED, REPLACED, FAILED, DROPPED = (
    *("encoding", "ready", "played", "replaced", "failed", "dropped"),
)

logger = logging.getLogger("longlive")


class LiveError(RuntimeError):
    """What was asked is not possible in the state that the run is in."""


class _Stop(Exception):
    """Raised at a block boundary: the run is to end there."""


@dataclass
class Ticket:
    """A prompt that was sent. `state` is encoding, ready, played, replaced, failed (see `error`) or dropped.

    `cue` stands at 0 s until it takes effect; `sent` is a time of the run's clock.
    """

    number: int
    cue: Cue
    sent: float
    state: str = ENCODING
    error: str | None = None
    embeds: Tensor | None = None
    is_held: bool = False  # to be encoded between two blocks

    def shown(self) -> dict[str, Any]:
        return {"ticket": self.number, "state": self.state, "error": self.error, **shown(self.cue)}


class Room:
    """Where prompts are encoded; this one has room for the encoder at any time."""

    def is_free(self) -> bool:
        """Whether the encoder may run now, beside the sampling; where not, it runs between two blocks."""
        return True

    def cleared(self) -> AbstractContextManager[None]:
        """Between two blocks: room for the encoder, and then for the model again."""
        return nullcontext()


class Inbox:
    """The newest prompt that waits, encoded by a thread that lives while there is something to encode."""

    def __init__(self, room: Room, on_change: Callable[[], None]):
        self._room, self._on_change = room, on_change
        self._lock, self._encoder = Lock(), Lock()
        self._newest: Ticket | None = None
        self._encode: EncodeText | None = None
        self._is_busy = False

    def open(self, encode: EncodeText) -> None:
        """From now on prompts can be encoded."""
        self._encode = encode
        self._work()

    def put(self, ticket: Ticket) -> None:
        """It waits; the one that waited before is replaced."""
        with self._lock:
            self._drop(REPLACED)
            self._newest = ticket
        self._work()

    def take(self) -> Ticket | None:
        """At a block boundary: the prompt that takes effect now, if one is ready."""
        ticket = self._newest
        if ticket and ticket.is_held:
            with self._encoder, self._room.cleared():
                self._embed(ticket)
        with self._lock:
            if self._newest is None or self._newest.state != READY:
                return None
            taken, self._newest = self._newest, None
            taken.state = PLAYED
            return taken

    def waiting(self) -> Ticket | None:
        """The prompt that waits, or the newest one that failed."""
        return self._newest

    def close(self) -> None:
        """Nothing takes effect any more."""
        with self._lock:
            self._drop(DROPPED)
            self._newest = self._encode = None
            self._room = Room()

    def _drop(self, state: str) -> None:
        if self._newest and self._newest.state in (ENCODING, READY):
            self._newest.state, self._newest.embeds = state, None

    def _work(self) -> None:
        with self._lock:
            if self._is_busy or self._encode is None or self._newest is None:
                return
            self._is_busy = True
        Thread(target=self._encode_all, name="longlive-live", daemon=True).start()

    def _encode_all(self) -> None:
        while ticket := self._next():
            with self._encoder:
                self._embed(ticket, is_beside=True)

    def _next(self) -> Ticket | None:
        with self._lock:
            ticket = self._newest
            if ticket and self._encode and ticket.state == ENCODING and not ticket.is_held:
                return ticket
            self._is_busy = False
            return None

    def _embed(self, ticket: Ticket, is_beside: bool = False) -> None:
        """Encode it, beside the sampling only where there is room; what goes wrong is the ticket's alone."""
        encode, embeds, error = self._encode, None, None
        try:
            if is_beside and not self._room.is_free():
                ticket.is_held = True
                return
            embeds = encode(ticket.cue.prompt) if encode else None
        except Exception as failure:
            error = f"the prompt could not be encoded: {failure}"
            logger.warning("%s", error)
        with self._lock:
            ticket.is_held = False
            if ticket.state == ENCODING:
                ticket.state, ticket.embeds, ticket.error = FAILED if error else READY, embeds, error
        self._on_change()


class Stopwatch:
    """Seconds since it was started, pauses not counted."""

    def __init__(self, clock: Callable[[], float]):
        self.now = clock
        self._zero: float | None = None
        self._paused_at: float | None = None

    def start(self) -> None:
        self._zero = self.now()
        if self._paused_at is not None:
            self._paused_at = self._zero

    def pause(self) -> None:
        if self._paused_at is None:
            self._paused_at = self.now()

    def resume(self) -> None:
        if self._zero is not None:
            self._zero += self.now() - self._paused_at
        self._paused_at = None

    @property
    def has_started(self) -> bool:
        return self._zero is not None

    @property
    def seconds(self) -> float:
        """0 before the start."""
        until = self.now() if self._paused_at is None else self._paused_at
        return until - self._zero if self.has_started else 0.0


@dataclass
class Played:
    """A cue that took effect at a block; `latency` is known once the frames of the block are out."""

    block: int
    seconds: float
    cue: Cue
    ticket: Ticket | None = None
    latency: float | None = None

    def shown(self) -> dict[str, Any]:
        return {
            "block": self.block,
            "seconds": self.seconds,
            **shown(self.cue),
            "origin": "live" if self.ticket else "schedule",
            "ticket": self.ticket.number if self.ticket else None,
            "latency": self.latency,
        }


class LiveControl:
    """Steers one run. Every method may be called from any thread; none of them waits for the model.

    `on_switch` is the policy of prompts that name none. `on_change` is called after each change that a
    snapshot shows. `check` is called while the run is held, and may raise to end it.
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
        self._on_change, self._check = on_change, check
        self._inbox = Inbox(room or Room(), on_change)
        self._watch = Stopwatch(clock)
        self._lock = Lock()
        self._wake = Event()
        self._is_paused = self._is_stopping = self._is_settled = False
        self._end: str | None = None
        self._error: str | None = None
        self._num_tickets = 0
        self._played: list[Played] = []
        self._awaited: deque[Played] = deque()  # sent, playing, and their frames not out yet
        self._begins: Callable[[int], float] = lambda _: 0.0
        self._num_blocks: int | None = None
        self._block: int | None = None
        self._frames = 0

    def send(self, prompt: str, policy: str | None = None, blend_seconds: float | None = None) -> Ticket:
        """Let a prompt take effect at the next block boundary after it is encoded; returns at once.

        Up to 20,000 characters. `policy` and `blend_seconds` are a cue's. A prompt that still waits is
        replaced. Raises ScheduleError for what no cue may hold, LiveError when the run is at its end.
        """
        if isinstance(prompt, str) and len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ScheduleError(
                f"the prompt has {len(prompt)} characters; a prompt has at most {MAX_PROMPT_CHARACTERS}"
            )
        cue = Cue(0.0, prompt, policy, blend_seconds)
        if cue.policy is None:
            cue = replace(cue, policy=self.on_switch)
        with self._lock:
            self._refuse_at_the_end("a prompt")
            if len(self._played) >= MAX_CUES:
                raise ScheduleError(f"the run has {MAX_CUES} cues, and no schedule may have more")
            self._num_tickets += 1
            ticket = Ticket(self._num_tickets, cue, self._watch.now())
        self._inbox.put(ticket)
        self._on_change()
        return ticket

    def pause(self) -> None:
        """Make no further block until `resume`; memory and position are held. LiveError at the run's end."""
        self._set_paused(True)

    def resume(self) -> None:
        """Go on after a pause. LiveError at the run's end."""
        self._set_paused(False)

    def stop(self) -> None:
        """End at the next block boundary and keep what is made, at least a block. LiveError after the end."""
        with self._lock:
            self._refuse_after_the_end("stop")
            self._is_stopping = True
        self._changed()

    @property
    def state(self) -> str:
        """starting, running, paused, stopping, done, stopped, failed or interrupted."""
        if self._end:
            return self._end
        if self._is_stopping:
            return "stopping"
        if self._is_paused:
            return "paused"
        return "running" if self._watch.has_started else "starting"

    @property
    def has_ended(self) -> bool:
        return self._end is not None

    @property
    def was_steered(self) -> bool:
        """Whether something else was played than the schedule says, or less."""
        played = list(self._played)
        return bool(played) and (self._is_stopping or any(cue.ticket for cue in played))

    @property
    def _cues(self) -> list[Played]:
        """Those that took effect; once all is settled the first, and those whose frames are out."""
        played = list(self._played)
        if not self._is_settled:
            return played
        newest = -1 if self._block is None else self._block
        return played[:1] + [cue for cue in played[1:] if cue.block <= newest]

    @property
    def seconds(self) -> float:
        """Of video made."""
        return self._frames / FRAME_RATE

    def snapshot(self) -> dict[str, Any]:
        """What there is to show, for JSON. `cues` are the newest that took effect, within limits."""
        pending = self._inbox.waiting()
        elapsed = self._watch.seconds
        return {
            "state": self.state,
            "block": self._block,
            "num_blocks": self._num_blocks,
            "seconds": self.seconds,
            "fps": round(self._frames / elapsed, 2) if elapsed else 0.0,
            "pace": self.pace,
            "cues": [played.shown() for played in newest_within(self._cues)],
            "pending": pending.shown() if pending else None,
            "error": self._error,
        }

    def schedule(self) -> PromptSchedule:
        """What was played. With the same seed and settings it gives the same latents, bit for bit.

        Raises LiveError before the first block.
        """
        if not self._played:
            raise LiveError("nothing was played yet; ask again when the first block is being made")
        return PromptSchedule(tuple(played.cue for played in self._cues))

    def script(
        self,
        timeline: Timeline,
        encode: EncodeText,
        blocks: range,
        block_latent_frames: int,
        is_until_stopped: bool = False,
        unwanted: Event | None = None,
        cut_off: int = 0,
    ) -> Script:
        """The Script of the run: the timeline with all that is sent. It waits while the run is held.

        A sent prompt and a cue at the same block: the sent one is played. Set `unwanted` to end a held run.
        The video begins `cut_off` pixel frames before its first block.
        """
        first, unwanted = blocks.start, unwanted or Event()
        start = block_seconds(first, block_latent_frames) - cut_off / FRAME_RATE
        self._begins = lambda index: (
            block_seconds(first + index, block_latent_frames) - start if index else 0.0
        )
        self._num_blocks = None if is_until_stopped else len(blocks)
        of_timeline = lru_cache(KEPT_PROMPTS)(encode)
        taken: dict[str, Tensor] = {}

        def opens(block: int) -> Cue | None:
            self._wait_for(block - first, unwanted)
            taken.clear()
            if ticket := self._inbox.take():
                taken[ticket.cue.prompt], ticket.embeds = ticket.embeds, None
            return self._play(block - first, timeline, ticket)

        def embeds_of(prompt: str) -> Tensor:
            return taken[prompt] if prompt in taken else of_timeline(prompt)

        self._inbox.open(encode)
        return PromptScript(opens, embeds_of, block_latent_frames)

    def until_stopped(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks of a rollout that runs on this control's script, up to a stop."""
        try:
            yield from blocks
        except _Stop:
            return

    def out(self, block: int, num_frames: int) -> None:
        """The frames of a block, counted from the run's first, are out: written and to be seen."""
        with self._lock:
            self._block, self._frames = block, self._frames + num_frames
            while self._awaited and self._awaited[0].block <= block:
                played = self._awaited.popleft()
                played.latency = round(self._watch.now() - played.ticket.sent, 4)
        self._on_change()

    def settle(self) -> None:
        """No more frames come out: a cue whose block was not finished was not played."""
        self._is_settled = True

    def finish(self, state: str | None = None, error: str | None = None) -> None:
        """The run has ended: done or stopped unless another end is named. Later calls change nothing."""
        self.settle()
        with self._lock:
            if self._end is None:
                self._end = state or ("stopped" if self._is_stopping else "done")
                self._error = error
                self._watch.pause()
        self._inbox.close()
        self._changed()

    def _set_paused(self, is_paused: bool) -> None:
        with self._lock:
            self._refuse_after_the_end("pause" if is_paused else "resume")
            if is_paused == self._is_paused:
                return
            self._is_paused = is_paused
            (self._watch.pause if is_paused else self._watch.resume)()
        self._changed()

    def _changed(self) -> None:
        self._wake.set()
        self._on_change()

    def _refuse_at_the_end(self, what: str) -> None:
        if self._is_stopping and not self._end:
            raise LiveError(f"the run is stopping; {what} can no longer reach it")
        self._refuse_after_the_end(what)

    def _refuse_after_the_end(self, what: str) -> None:
        if self._end:
            raise LiveError(
                f"the run has ended ({self._end}); {what} needs a run that goes on: start another"
            )

    def _wait_for(self, index: int, unwanted: Event) -> None:
        """Until the block may begin; _Stop if there is to be none."""
        while (seconds := self._seconds_to_hold(index)) > 0 and not unwanted.is_set():
            self._check()
            self._wake.wait(min(seconds, POLL_SECONDS))
            self._wake.clear()
        if unwanted.is_set() or (self._is_stopping and index):
            raise _Stop
        if not index:
            with self._lock:
                self._watch.start()
            self._on_change()

    def _seconds_to_hold(self, index: int) -> float:
        if self._is_stopping:
            return 0.0
        if self._is_paused:
            return POLL_SECONDS
        if self.pace == FULL_SPEED or not index:
            return 0.0
        return self._begins(index - 1) - self._watch.seconds

    def _play(self, index: int, timeline: Timeline, ticket: Ticket | None) -> Cue | None:
        """The cue that begins at a block, noted as played."""
        segment = timeline.opens(index)
        if ticket is None and segment is None:
            return None
        cue = ticket.cue if ticket else segment.cue
        if ticket or not index:  # what a continued video cut off may hold a cue that comes first then
            cue = replace(cue, seconds=self._begins(index))
        with self._lock:
            self._played.append(Played(index, self._begins(index), cue, ticket))
            if ticket:
                self._awaited.append(self._played[-1])
        self._on_change()
        return cue


def shown(cue: Cue) -> dict[str, Any]:
    """What a snapshot says of any cue."""
    policy = cue.policy.value if cue.policy else None
    return {"prompt": cue.prompt, "policy": policy, "blend": cue.blend_seconds}


def newest_within(played: list[Played]) -> list[Played]:
    """The newest cues within the limits of a snapshot, in order; always the very newest."""
    kept: list[Played] = []
    characters = 0
    for cue in reversed(played[-SHOWN_CUES:]):
        characters += len(cue.cue.prompt)
        if kept and characters > SHOWN_CHARACTERS:
            break
        kept.append(cue)
    return kept[::-1]
