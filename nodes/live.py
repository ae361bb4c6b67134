"""Live runs that clients can watch and steer; the newest ended ones are kept."""

import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ..longlive_core.footage import ImageFolder
from ..longlive_core.output.sound import Sound
from ..longlive_core.output.video import VideoWriter
from ..longlive_core.schedule.cue import ScheduleError, checked_image
from ..longlive_core.schedule.schedule import PromptSchedule
from ..longlive_core.steering.inbox import Room
from ..longlive_core.steering.live import SHOWN_CHARACTERS, LiveControl, LiveError
from . import host
from .vaes import NO_ENCODER

EVENT = "longlive.run"
EVENT_SECONDS = 0.1  # between two events of a run
SCHEDULE_KEY = "longlive_schedule"
KEPT_RUNS = 16  # that have ended
CURRENT = "current"
ENDED = "the run has ended; freeze it to the schedule, change that from there on, and run it again"
MAX_PROMPTS, RATE_SECONDS = 20, 1.0


class NoSuchRun(LookupError):
    """There is no run with that id."""


class TooManyPrompts(RuntimeError):
    """More prompts came within a second than are allowed."""


class Announcer:
    """Sends a run's snapshots to all pages: at once, then at most every EVENT_SECONDS, the newest last."""

    def __init__(self, snapshot: Callable[[], dict[str, Any]]):
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._is_due, self._next = False, 0.0

    def __call__(self) -> None:
        with self._lock:
            if self._is_due:
                return
            self._is_due = True
            delay = max(0.0, self._next - time.monotonic())
        host.later(delay, self._send)

    def _send(self) -> None:
        with self._lock:
            self._is_due, self._next = False, time.monotonic() + EVENT_SECONDS
        host.broadcast(EVENT, self._snapshot())


class LiveRun:
    """One run of a Stream node as clients see it: its control, its video and its settings."""

    def __init__(
        self,
        node_id: str,
        size: tuple[int, int],
        settings: dict[str, Any],
        workflow: str | None = None,
        warnings_of: Callable[[str], list[str]] = lambda _: [],
        images: ImageFolder | None = None,
        **steering: Any,
    ):
        """`workflow` is the id of the node's workflow; `warnings_of` has sentences about words of a prompt.

        `images` are those that new scenes may begin with; None where the VAE cannot encode them. `steering`
        are arguments of a LiveControl.
        """
        self.id = secrets.token_hex(3)
        self.node_id, self.size, self.settings, self.workflow = node_id, size, settings, workflow
        self.notes: list[str] = []
        self.is_closed = False
        reporting = {"on_change": Announcer(self.snapshot), "check": host.throw_if_interrupted}
        self.control = LiveControl(**steering, **reporting)
        self._sent: deque[float] = deque(maxlen=MAX_PROMPTS)
        self._warnings_of, self._warnings = warnings_of, {}  # by the number of a ticket
        self._images = images
        self.num_cuts = 0  # of the file
        self._version: dict[str, Any] | None = None  # settings of a file that could not be cut
        self._video: host.VideoFile | None = None
        self._writer: VideoWriter | None = None
        self._num_frames: Callable[[], int] = lambda: 0

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Register the run; at its end its snapshot names what ended it."""
        RUNS.add(self)
        try:
            yield
        except BaseException as error:
            self._close("interrupted" if host.is_interrupt(error) else "failed", str(error) or None)
            raise
        self._close()
        if self.control.was_steered or not self.settings["seconds"]:
            RUNS.count_steered(self)

    def writer(
        self, video: host.VideoFile, metadata: dict[str, str], sound: Sound | None = None
    ) -> VideoWriter:
        """A writer for the video of this run, with its sound; `metadata` are further texts in it."""
        writer = VideoWriter(video.path, *self.size, host.allowed_metadata(self.settings), metadata, sound)
        self._video, self._writer, self._num_frames = video, writer, lambda: writer.num_frames
        return writer

    def cut(self, num_frames: int) -> None:
        """Drop what was taken back from the file; where that was asked, it is saved next to it first.

        Raises OSError if it cannot be; the file is then as it was.
        """
        back = self.control.backs[-1]
        self._version = self._settings(back.played, self.control.seconds)
        if back.keep:
            path = unused_version(self._video.path)
            self._writer.save_copy(path, host.allowed_metadata(self._version))
            self.notes.append(f"what was taken back is kept as {host.shown_path(path)}")
        self.num_cuts += 1  # before: who reads the file looks at it
        self._writer.cut(num_frames)
        self._version = None

    @contextmanager
    def recording(self, writer: VideoWriter) -> Iterator[None]:
        """Close the writer at the end, also after an error, with the settings that were really played."""
        with writer:
            try:
                yield
            finally:
                writer.describe(host.allowed_metadata(self.played_settings()))

    def path(self) -> Path:
        """The current path of the video; FileNotFoundError before there is one."""
        if self._video is None:
            raise FileNotFoundError(f"the video of run {self.id} has not begun yet")
        return self._video.path

    def snapshot(self) -> dict[str, Any]:
        """The state of the run, for JSON."""
        names = {"run": self.id, "node": self.node_id, "workflow": self.workflow}
        cuts = f"?cuts={self.num_cuts}" if self.num_cuts else ""  # then a player must begin with it again
        names |= {"video": f"/longlive/runs/{self.id}/video{cuts}", "notes": self.notes}
        width, height = self.size
        video = {"width": width, "height": height, "num_frames": self._num_frames()}
        video |= {"taken_back": self.num_cuts}
        text = self.settings["schedule"]
        video |= {"length": self.settings["seconds"]}
        video |= {"schedule": text if len(text) <= SHOWN_CHARACTERS else None}
        video["block_latent_frames"] = self.settings["window"]["block_latent_frames"]
        return names | self._warned(self.control.snapshot()) | video

    def _warned(self, control: dict[str, Any]) -> dict[str, Any]:
        """A snapshot of the control in which a sent prompt has its `warnings`, if there are any."""
        for cue in filter(None, (*control["cues"], control["pending"])):
            if warnings := self._warnings.get(cue["ticket"]):
                cue["warnings"] = warnings
        return control

    def check_image(self, name: Any) -> None:
        """ScheduleError unless a new scene may begin with an image of that name."""
        try:
            checked_image(name)
            if self._images is None:
                raise ValueError(NO_ENCODER)
            self._images.file(name)
        except ValueError as error:
            raise ScheduleError(str(error)) from error

    def send(self, prompt: Any, policy: Any = None, blend: Any = None, image: Any = None) -> dict[str, Any]:
        """Send a prompt, with an image that was checked.

        ScheduleError, LiveError or TooManyPrompts if it is not accepted.
        """
        with self._counted():
            ticket = self.control.send(prompt, policy, blend, image)
        self._warnings[ticket.number] = self._warnings_of(prompt)
        return {"ticket": ticket.number, "run": self.id}

    def take_back(self, blend: Any = None, **fields: Any) -> dict[str, Any]:
        """Take the run back, to fields of LiveControl.take_back; as `send` if it is not accepted."""
        if self.control.has_ended:
            raise LiveError(ENDED)
        with self._counted():
            back = self.control.take_back(blend_seconds=blend, **fields)
        answer = {"run": self.id, "block": back.block, "seconds": back.seconds, "ticket": None}
        if back.ticket:
            self._warnings[back.ticket.number] = self._warnings_of(fields["prompt"])
            answer["ticket"] = back.ticket.number
        return answer

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Around what is sent; TooManyPrompts where it comes too fast."""
        now = time.monotonic()
        if len(self._sent) == MAX_PROMPTS and now - self._sent[0] < RATE_SECONDS:
            raise TooManyPrompts(
                f"more than {MAX_PROMPTS} prompts came within a second; send the next one a little later"
            )
        yield
        self._sent.append(now)

    def frozen(self) -> dict[str, Any]:
        """What was played, and the settings to make it again; LiveError before the first block."""
        schedule = self.control.schedule()
        settings = self._settings(schedule, self.control.seconds)
        names = {"text": settings["schedule"], "json": schedule.to_json()}
        return {**names, "seed": settings["seed"], "settings": settings}

    def _settings(self, schedule: PromptSchedule, seconds: float) -> dict[str, Any]:
        settings = self.settings | {"schedule": schedule.to_text(), "seconds": seconds}
        if schedule.images:
            named = {name: self._images.facts(name) for name in schedule.images}
            settings["made_from"] = settings.get("made_from", {}) | {"images": named}
        return settings

    def played_settings(self) -> dict[str, Any]:
        """The settings that make the ended video again."""
        self.control.settle()
        if self._version:
            return self._version
        return self.frozen()["settings"] if self.control.was_steered else self.settings

    def as_listing(self) -> dict[str, list[str]]:
        """What was played, for /history."""
        return {SCHEDULE_KEY: [self.control.schedule().to_text()]}

    def _close(self, state: str | None = None, error: str | None = None) -> None:
        frames = self._num_frames()
        self._num_frames = lambda: frames
        self.is_closed = True
        self.control.finish(state, error)


def unused_version(path: Path) -> Path:
    """The first of NAME_v1.mp4, NAME_v2.mp4, ... that there is not."""
    names = (path.with_stem(f"{path.stem}_v{number}") for number in count(1))
    return next(name for name in names if not name.exists())


class Runs:
    """All runs of this server, by id. Every method may be called from any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._runs: dict[str, LiveRun] = {}
        self._num_steered: Counter[str] = Counter()

    def add(self, run: LiveRun) -> None:
        """Register a run; the oldest ended ones are forgotten."""
        with self._lock:
            self._runs[run.id] = run
            ended = [known.id for known in self._runs.values() if known.control.has_ended]
            for name in ended[: max(0, len(ended) - KEPT_RUNS)]:
                del self._runs[name]

    def count_steered(self, run: LiveRun) -> None:
        """Count a run that was steered: its inputs alone do not make the same video again."""
        with self._lock:
            self._num_steered[run.node_id] += 1

    def num_steered(self, node_id: str | None) -> int:
        """Number of steered runs of a node; of all nodes for None, since 0.3.64 passes no node id."""
        with self._lock:
            return self._num_steered.total() if node_id is None else self._num_steered[node_id]

    def get(self, name: str) -> LiveRun:
        """A run by its id; `current` is the newest that is running. NoSuchRun if there is none."""
        with self._lock:
            if name == CURRENT:
                going_on = [run for run in self._runs.values() if not run.control.has_ended]
                if going_on:
                    return going_on[-1]
                raise NoSuchRun("no run is running; start one with LongLive: Stream")
            if name in self._runs:
                return self._runs[name]
        raise NoSuchRun(f"there is no run {name[:40]!r}; GET /longlive/runs lists them")

    def newest_of(self, node_id: str, workflow: str | None) -> LiveRun | None:
        """The newest run of a node of a workflow, ended or not; a run that a script queued is of any."""
        with self._lock:
            runs = [run for run in self._runs.values() if run.node_id == node_id]
        return next((run for run in reversed(runs) if (run.workflow or workflow) == workflow), None)

    def newest(self) -> LiveRun | None:
        """The newest run of all."""
        with self._lock:
            return next(reversed(self._runs.values()), None)

    def snapshots(self) -> list[dict[str, Any]]:
        """Snapshots of all runs, the newest first; of ended ones those that are kept."""
        with self._lock:
            runs = list(self._runs.values())
        ended = [run for run in runs if run.control.has_ended][-KEPT_RUNS:]
        return [run.snapshot() for run in reversed(runs) if run in ended or not run.control.has_ended]


RUNS = Runs()


class UnloadingRoom(Room):
    """Encodes sent prompts between two blocks, with the model unloaded, if memory cannot hold both.

    `reload` loads the model again.
    """

    def __init__(self, has_room: Callable[[], bool], reload: Callable[[], Any]):
        self._has_room, self._reload = has_room, reload

    def is_free(self) -> bool:
        return self._has_room()

    @contextmanager
    def cleared(self) -> Iterator[None]:
        host.wait_for_device()
        try:
            yield
        finally:
            self._reload()
            host.wait_for_device()
