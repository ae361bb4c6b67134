"""Prompts sent to a run: the newest waits, is encoded, and takes effect at the next block."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock, RLock

from ..schedule.cue import Cue


@dataclass
class Ticket:
    """A prompt that was sent. `state` is encoding, ready, played, replaced, failed (see `error`) or dropped.

    `cue` has the time 0 s; `sent` is a time of the run's clock, in seconds.
    """

    number: int
    cue: Cue
    sent: float
    state: str = "encoding"
    error: str | None = None
    is_held: bool = False  # to be encoded between two blocks


class Room:
    """Device memory for the text encoder; here there is enough at any time."""

    def is_free(self) -> bool:
        """Whether the encoder may run now, next to the model; if not, it runs between two blocks."""
        return True

    def cleared(self) -> AbstractContextManager[None]:
        """Make room for the encoder between two blocks, and for the model again afterwards."""
        return nullcontext()


class Inbox:
    """Holds `newest`, the prompt that waits or failed, and encodes it in a thread."""

    def __init__(self, room: Room, on_change: Callable[[], None]):
        self.newest: Ticket | None = None
        self._room, self._on_change = room, on_change
        self._prepare: Callable[[Cue], None] | None = None
        self._states, self._encoder = Lock(), RLock()  # guard the states of tickets; the use of the encoder
        self._thread = ThreadPoolExecutor(1, "longlive-live")

    def open(self, prepare: Callable[[Cue], None]) -> None:
        """From now on encode what waits and what comes; `prepare` must cache, tickets hold no embeddings."""
        with self._states:
            self._prepare = prepare
            if self.newest:
                self._thread.submit(self._encode_now, self.newest, needs_room=True)

    def put(self, ticket: Ticket | None, state: str = "replaced") -> None:
        """Let a prompt wait, or none; the one that waited before ends in that state."""
        with self._states:
            if self.newest and self.newest.state in ("encoding", "ready"):
                self.newest.state = state
            self.newest = ticket
            if ticket and self._prepare:
                self._thread.submit(self._encode_now, ticket, needs_room=True)

    def settle(self) -> bool:
        """Whether nothing is being encoded; what was held is encoded now, between two blocks."""
        if (ticket := self.newest) and ticket.is_held:
            with self._encoder, self._room.cleared():
                self._encode_now(ticket)
        return not self.newest or self.newest.state != "encoding"

    def take(self) -> Ticket | None:
        """The prompt that takes effect at this block, if one is ready."""
        self.settle()
        with self._states:
            if not self.newest or self.newest.state != "ready":
                return None
            ticket, self.newest = self.newest, None
            ticket.state = "played"
            return ticket

    def close(self) -> None:
        """Drop the prompt that waits; hold neither the encoder nor the room any longer."""
        self._prepare, self._room = None, Room()
        self.put(None, "dropped")
        self._thread.shutdown(wait=False)

    def _encode_now(self, ticket: Ticket, needs_room: bool = False) -> None:
        """Encode a prompt unless it was replaced meanwhile; what goes wrong fails this prompt alone."""
        with self._encoder:
            prepare, error = self._prepare, None
            if not prepare or ticket.state != "encoding":
                return
            try:
                ticket.is_held = needs_room and not self._room.is_free()
                if ticket.is_held:
                    return
                prepare(ticket.cue)
            except Exception as failure:
                error = f"the prompt could not be encoded: {failure}"
                logging.getLogger("longlive").warning("%s", error)
        with self._states:
            if ticket.state == "encoding":
                ticket.state, ticket.error = "failed" if error else "ready", error
        self._on_change()
