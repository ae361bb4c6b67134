"""A run that is steered as it goes on: prompts, pause, stop, back; and what it played, to play it again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from threading import Condition
from typing import Any

from ..config import Policy
from ..geometry import FRAME_RATE, TIME_STRIDE, block_at, block_seconds
from ..rollout.rollout import Block
from ..schedule.cue import MAX_CUES, MAX_SECONDS, Cue, ScheduleError, checked_seed, quoted
from ..schedule.cue import shown as spoken
from ..schedule.schedule import PromptSchedule, Timeline
from .inbox import Inbox, Room, Ticket
from .script import EncodeText, PromptScript, SceneImages, blend_blocks

FULL_SPEED, REAL_TIME = PACES = ("full speed", "real time")
MAX_CHARACTERS = 20_000
SHOWN_CUES, SHOWN_CHARACTERS = 256, 100_000  # of a snapshot: the newest cues, their prompts together
POLL_SECONDS = 0.05


class LiveError(RuntimeError):
    """What was asked is not possible in the state that the run is in."""


class _Stop(Exception):
    """Raised at a block boundary: the rollout is to end there."""


@dataclass
class Played:
    """A cue that took effect at a block; `latency`, in seconds, is known once the block's frames are out."""

    block: int
    seconds: float
    cue: Cue
    ticket: Ticket | None = None
    latency: float | None = None
    is_live: bool = False  # not as the schedule has it

    def shown(self) -> dict[str, Any]:
        when = {"block": self.block, "seconds": self.seconds, "latency": self.latency}
        origin = "live" if self.is_live else "schedule"
        return {**when, **shown(self.cue), "origin": origin, "ticket": self.ticket and self.ticket.number}


@dataclass(frozen=True)
class Back:
    """A run is to go back to a block, counted from its first, which begins at `seconds`.

    What it makes from there on begins from noise of `seed`, if there is one. With `keep`, what is taken back
    is to be saved first. `ticket` is of the prompt that came with it, `played` what was played before.
    """

    block: int
    seconds: float
    seed: int | None = None
    keep: bool = False
    ticket: Ticket | None = None
    played: PromptSchedule | None = None


def shown(cue: Cue) -> dict[str, Any]:
    """A cue as snapshots show it."""
    seed = {} if cue.seed is None else {"seed": cue.seed}
    policy = cue.policy and cue.policy.value
    return {"prompt": cue.prompt, "policy": policy, "blend": cue.blend_seconds, "image": cue.image, **seed}


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
        self._is_paused = self._is_stopping = self._is_over = False
        self._end = self._error = self._num_blocks = None
        self._ran: tuple[float, float | None] = 0.0, None  # seconds before the newest start; its time
        self._num_tickets = self._num_frames = self._num_gone = 0
        self._block = -1  # the newest whose frames are out
        self._begun = 0  # blocks that an earlier run made
        self._played: list[Played] = []
        self._always = ""  # of the schedule
        self._back: Back | None = None  # that waits for a block boundary
        self.backs: list[Back] = []  # that took effect
        self._again: Cue | None = None  # at the block that the newest of them goes back to
        self._begins: Callable[[int], float] = lambda index: 0.0
        self._block_at: Callable[[float], int] = lambda seconds: 0
        self._ahead = 0.0  # seconds that the clock was ahead of the video when it was taken back
        self.no_way_back = "nothing is kept to go back to"  # empty where it can be

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
        cue = self._checked(prompt, policy, blend_seconds, image)
        with self._change("a prompt"):
            return self._post(cue)

    def take_back(
        self,
        block: int | None = None,
        seconds: float | None = None,
        prompt: str | None = None,
        policy: str | None = None,
        blend_seconds: float | None = None,
        image: str | None = None,
        seed: int | None = None,
        keep: bool = False,
    ) -> Back:
        """Go back to a block, counted from the run's first, or to the first at or after `seconds`.

        Also while paused. The blocks before it stay as they are; what was played from it on is forgotten, and
        the schedule goes on there, or a prompt that takes effect as one that is sent. A seed is for the noise
        from there on; without a prompt, what began at that block begins once more. It happens at the next
        block boundary, once the prompt is encoded; until then a newer one replaces it. What is taken back can
        be saved first with `keep`. Raises as `send`, and LiveError beyond what is made.
        """
        cue = None if prompt is None else self._checked(prompt, policy, blend_seconds, image)
        if cue is None and any(one is not None for one in (policy, blend_seconds, image)):
            raise ScheduleError("policy, blend and image go with a prompt; give one, or leave them out")
        seed = checked_seed(seed)
        check_place(block, seconds)
        with self._change("taking back"):
            self._check_way_back()
            block = self._block_at(seconds) if block is None else block
            if block > self._block:
                made = "nothing is made yet" if self._block < 0 else f"only {spoken(self.seconds)} are made"
                raise LiveError(f"{made}; it cannot be taken back to {spoken(self._begins(block))}")
            self._withdraw()
            ticket = self._post(cue) if cue else None
            self._back = back = Back(block, self._begins(block), seed, keep, ticket)
        return back

    def _check_way_back(self) -> None:
        if self.no_way_back:
            raise LiveError(f"the run cannot be taken back: {self.no_way_back}")
        if self._is_stopping or self._is_over:
            state = "stopping" if self._is_stopping else "at its end"
            raise LiveError(f"the run is {state}; it can no longer be taken back")

    def _withdraw(self) -> None:
        """Forget what waits to be taken back, with the prompt that came with it and waits too."""
        newest = self._back or (self.backs[-1] if self.backs else None)
        if newest and newest.ticket and newest.ticket is self._inbox.newest:
            self._inbox.put(None)
        self._back = None

    def _checked(
        self, prompt: str, policy: str | None, blend_seconds: float | None, image: str | None
    ) -> Cue:
        if isinstance(prompt, str) and len(prompt) > MAX_CHARACTERS:
            raise ScheduleError(f"the prompt has {len(prompt)} characters; use at most {MAX_CHARACTERS}")
        cue = Cue(0.0, prompt, policy, blend_seconds, image=image)
        return replace(cue, policy=self.on_switch) if cue.policy is None else cue

    def _post(self, cue: Cue) -> Ticket:
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
        return bool(self._played) and (self._is_stopping or any(played.is_live for played in self._played))

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
            "fps": round((self._num_frames + self._num_gone) / elapsed, 2) if elapsed else 0.0,
            "pace": self.pace,
            "cues": [played.shown() for played in newest_within(self._played)],
            "pending": ticket and {**ticket, **shown(newest.cue)},
            "error": self._error,
        }

    def cues(self) -> dict[int, Cue]:
        """The cues that took effect so far, by their blocks."""
        with self._lock:
            return {played.block: played.cue for played in self._played}

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
        begun: int = 0,
    ) -> PromptScript:
        """The Script of the run: the timeline with all that is sent. It waits while the run is held.

        Sent prompts win over cues at the same block. The video begins `cut_off` pixel frames before `blocks`,
        of which the first `begun` are those of an earlier run: they come without waiting, and nothing that is
        sent takes effect there.
        """
        start = block_seconds(blocks.start, block_latent_frames) - cut_off / FRAME_RATE

        def begins(index: int) -> float:
            return block_seconds(blocks.start + index, block_latent_frames) - start if index > 0 else 0.0

        def cue_at(block: int) -> Cue | None:
            index = block - blocks.start
            self._hold(index, begins(index - 1))
            if index < self._num_replayed:
                return next((played.cue for played in self._played if played.block == index), None)
            return self._play(index, begins(index), timeline.cue_at(index), self._inbox.take())

        def at(seconds: float) -> int:
            return max(0, block_at(start + seconds, block_latent_frames) - blocks.start) if seconds else 0

        self._begins, self._block_at, self._block_latent_frames = begins, at, block_latent_frames
        self._num_blocks, self._always = None if is_until_stopped else len(blocks), timeline.always
        self._begun = begun
        self._ahead, self._num_gone = -begins(begun), -round(begins(begun) * FRAME_RATE)
        begun_with = (segment for segment in timeline.segments if segment.block < begun)
        self._played = [
            Played(one.block, begins(one.block), one.cue if one.block else replace(one.cue, seconds=0.0))
            for one in begun_with
        ]
        script = PromptScript(cue_at, encode, block_latent_frames, always=timeline.always, images=images)
        self._inbox.open(script.prepare)
        return script

    def until_stopped(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks of a rollout that runs on this control's script, up to a stop, or until it goes back."""
        with suppress(_Stop):
            yield from blocks

    def out(self, block: int, num_frames: int) -> None:
        """Note that a block, counted from the run's first, is out, and `num_frames` up to its end."""
        with self._change():
            for played in takewhile(lambda played: played.block > self._block, reversed(self._played)):
                if played.ticket and played.block <= block and played.latency is None:
                    played.latency = round(self._clock() - played.ticket.sent, 4)
            self._block, self._num_frames = block, num_frames

    def goes_back(self) -> Back | None:
        """Where the run, whose rollout has ended, goes on: everything from there on is forgotten.

        None where it has come to its end: from then on it cannot be taken back.
        """
        while not self._is_due_back():
            if not self._back:
                with self._change():
                    self._is_over = not self._back
                if self._is_over:
                    return None
            self._wait()
        with self._change():
            back, self._back = self._back, None
            back = replace(back, played=self._made_schedule())
            self._forget(back)
        return back

    def seeds(self, first_block: int) -> tuple[tuple[int, int], ...]:
        """(block, seed) of all that came with taking the run back, which begins with `first_block`."""
        taken = [(played.block, played.cue.seed) for played in self._played if played.is_live]
        taken += [(back.block, back.seed) for back in self.backs[-1:]]
        return tuple((first_block + block, seed) for block, seed in taken if seed is not None)

    def _is_due_back(self) -> bool:
        """Whether the run goes back now; not where the prompt that came with it could not be encoded."""
        if not self._back or not self._inbox.settle():
            return False
        with self._lock:
            if self._back and self._back.ticket and self._back.ticket.state == "failed":
                self._back = None
            return self._back is not None

    def _made_schedule(self) -> PromptSchedule:
        made = tuple(played.cue for played in self._played if played.block <= max(0, self._block))
        return PromptSchedule(made, always=self._always)

    def _forget(self, back: Back) -> None:
        """Go on as if nothing from a block on had been played."""
        gone = [played for played in self._played if played.block >= back.block]
        self._played = self._played[: len(self._played) - len(gone)]
        self._again = None if back.seed is None else replace(self._cue_again(back, gone), seed=back.seed)
        self._ahead = self._elapsed() - back.seconds
        self._num_gone += self._num_frames - round(back.seconds * FRAME_RATE)
        self.backs.append(back)

    def _cue_again(self, back: Back, gone: list[Played]) -> Cue:
        """What began at the block that a run goes back to, else what was in effect, without a switch."""
        if gone and gone[0].block == back.block:
            return gone[0].cue
        newest = self._played[-1]
        cue = replace(newest.cue, seconds=back.seconds, policy=Policy.KEEP, blend_seconds=None, image=None)
        if newest.cue.policy is not Policy.BLEND:
            return cue
        left = blend_blocks(newest.cue.blend_seconds, self._block_latent_frames) - (back.block - newest.block)
        rest = max(0, left) * self._block_latent_frames * TIME_STRIDE / FRAME_RATE
        return replace(cue, policy=Policy.BLEND, blend_seconds=rest) if rest else cue

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
        while not self._is_due_back():
            if index < self._num_replayed:
                return self._check()
            if self._is_stopping:
                break
            ahead = due + self._ahead - self._elapsed() if self.pace == REAL_TIME else 0.0
            if not self._is_paused and ahead <= 0:
                return None
            self._wait(POLL_SECONDS if self._is_paused else min(ahead, POLL_SECONDS))
        if index or not self._is_stopping:
            raise _Stop

    @property
    def _num_replayed(self) -> int:
        """The first blocks of the run that are made once more as they were."""
        return self.backs[-1].block if self.backs else self._begun

    def _wait(self, seconds: float = POLL_SECONDS) -> None:
        self._check()
        with self._lock:
            self._lock.wait(seconds)

    def _play(self, index: int, seconds: float, cue: Cue | None, ticket: Ticket | None) -> Cue | None:
        """The cue of a block that begins at `seconds`, noted as played; sent before scheduled."""
        again = self._again if index == self._num_replayed else None
        if ticket:  # a seed that begins here does so all the same
            seed = again.seed if again else cue and cue.seed
            cue = replace(ticket.cue, seconds=seconds, seed=seed)
        elif again:
            cue = replace(again, seconds=seconds)
        elif cue and not index:  # frames cut off from an earlier video may delay it
            cue = replace(cue, seconds=seconds)
        if cue:
            with self._change():
                is_live = ticket is not None or again is not None
                self._played.append(Played(index, seconds, cue, ticket, is_live=is_live))
        return cue


def check_place(block: int | None, seconds: float | None) -> None:
    """ScheduleError unless one of them is given, and is 0 or more."""
    if (block is None) == (seconds is None):
        raise ScheduleError("give either the block or the seconds to go back to")
    value, kinds = (seconds, (int, float)) if block is None else (block, (int,))
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= MAX_SECONDS:
        what = "number of seconds" if block is None else "whole number of a block"
        raise ScheduleError(f"{quoted(value)} is no {what} to go back to; use 0 or more")


def newest_within(played: list[Played]) -> list[Played]:
    """The newest cues within the limits of a snapshot, in order; always the very newest."""
    newest = played[-SHOWN_CUES:]
    totals = accumulate(len(cue.cue.prompt) for cue in reversed(newest))
    return newest[-max(1, sum(total <= SHOWN_CHARACTERS for total in totals)) :]
