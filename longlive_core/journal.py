"""The journal of a run, in a folder next to its video: with it, a run that was killed goes on bit for bit."""

import errno
import hashlib
import json
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch
from safetensors.torch import load, save
from torch import Tensor

from .geometry import FRAME_RATE
from .output.background import BackgroundQueue
from .output.growing import PARTS, frames_kept, open_locked, sync
from .output.video import VideoWriter
from .pipeline import Plan
from .resume import Restart, Snapshots, VideoState
from .rollout.rollout import Block
from .schedule.cue import Cue
from .schedule.schedule import PromptSchedule
from .weights.files import sha256_of

FORMAT = 2
FACTS, BLOCK, OPENS_SCENE = "longlive_journal", "block", "opens_scene"  # names in a record's metadata
CUE, IS_SENT = "cue", "is_sent"
LATENTS = "latents"
RECORDS, GROWING, STATES = "records", "growing.mp4", "state-*.safetensors"  # files of the folder
KEPT_STATES = 2
WAITING = 16  # records that wait for a slow disk, of 1.2 MB at true size, before the run does
NUMBER = struct.Struct("<Q")  # as safetensors begins: bytes of its JSON header
HEADER = struct.Struct("<II")  # of a record: its bytes and their CRC-32

WITHOUT = "the video goes on, but a run that is killed would go on from an earlier block"

logger = logging.getLogger("longlive")


def facts_of(settings: Mapping[str, Any], plan: Plan, **others: Any) -> dict[str, Any]:
    """All that decides the frames of a plan, as JSON: the settings of its video, with what they leave out.

    `others` are what else decides, like files and sound.
    """
    request = plan.request
    begin = {"past": request.past, "given": request.given, "state": request.state}
    versions = {"av": av.__version__, "threads": torch.get_num_threads()}
    versions |= {"cpu": torch.backends.cpu.get_cpu_capability()}
    return dict(settings) | versions | {name: fact(value) for name, value in (begin | others).items()}


def digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts, which are JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fact(value: Any) -> Any:
    """What counts of a value, as JSON: of a file its content, of a folder the names and sizes in it.

    Of a tensor its bytes, of a dataclass its fields.
    """
    if isinstance(value, Path) and value != Path():
        if value.is_dir():
            return sorted([file.name, file.stat().st_size] for file in value.rglob("*") if file.is_file())
        return sha256_of(value) if value.is_file() else value.name
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return [str(value.dtype), [*value.shape], hashlib.sha256(data.numpy()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(name): fact(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [fact(one) for one in value]
    if is_dataclass(value):
        return {field.name: fact(getattr(value, field.name)) for field in fields(value)}
    return value if isinstance(value, int | float | None) else str(value)


def folder_of(video: str | Path) -> Path:
    """Where the journal of a video is: next to the file itself, where its name is a link."""
    return Path(f"{os.path.realpath(video)}.resume")


def keep_growing(video: str | Path) -> None:
    """Before a growing file is finished, keep it in the journal, if there is one: the next run goes on in it.

    Disks without hard links keep none: the next run then encodes the frames again.
    """
    with suppress(OSError):
        os.link(os.path.realpath(video), folder_of(video) / GROWING)


class Journal(AbstractContextManager):
    """Clean latents and cue of every block of a run, appended one by one, and its two newest exact states.

    A journal that was begun with the same `facts` (JSON) is read up to its first damaged record, and goes on
    there. One with others, or if `is_fresh`, is removed, and `note` says why. Raises BlockingIOError while
    another run writes it. What cannot be written is only reported: the run goes on without. Then nothing more
    is recorded, and `latents` and `tensors` of what is missing raise OSError.
    """

    def __init__(
        self,
        video: str | Path,
        facts: Mapping[str, Any],
        is_fresh: bool = False,
        folder: Path | None = None,
    ):
        """Of a video whose journal is in another `folder` only the blocks go on, the file starts over."""
        self._video, self._folder = Path(os.path.realpath(video)), folder or folder_of(video)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / RECORDS
        self._path.touch()
        self._file = open_locked(self._path)
        self._places: dict[int, tuple[int, int]] = {}  # block -> where its record is, and its bytes
        self._opens: set[int] = set()  # blocks that open a scene
        self._cues: dict[int, tuple[Cue, bool]] = {}
        self._end, self._whole, self.note = 0, 0, ""  # bytes, and those on disk
        self._queue, self._saving, self._is_saving = BackgroundQueue(WAITING), BackgroundQueue(), False
        self._newest = 0  # frames before the newest state
        try:
            self._begin(json.loads(json.dumps(facts)) | {"format": FORMAT}, is_fresh)
        except BaseException:
            self.close()
            raise

    @property
    def num_blocks(self) -> int:
        """The block after the newest one that is recorded, 0 without any."""
        return max(self._places, default=-1) + 1

    def add(self, block: Block, cue: Cue | None = None, is_sent: bool = False, **tensors: Tensor) -> None:
        """Record a block in the background, and the cue that took effect there.

        `is_sent`: the cue was sent live. Other tensors are kept with it. A block that is recorded stays so.
        """
        if block.index in self._places:
            return
        facts = {BLOCK: block.index, OPENS_SCENE: block.opens_scene}
        facts |= {CUE: asdict(cue), IS_SENT: is_sent} if cue else {}
        tensors = {LATENTS: block.latents, **tensors}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        record = save(tensors, {BLOCK: json.dumps(facts)})
        self._note(facts, (self._end + HEADER.size, len(record)))
        self._put(record)

    def cut(self, num_blocks: int) -> None:
        """Forget all blocks but the first `num_blocks`, and all states: the run was taken back."""
        self._saving.flush()
        self._queue.flush()
        gone = [place for block, (place, _) in self._places.items() if block >= num_blocks]
        self._places = {block: place for block, place in self._places.items() if block < num_blocks}
        self._cues = {block: cue for block, cue in self._cues.items() if block < num_blocks}
        self._opens = {block for block in self._opens if block < num_blocks}
        for _, path in self._states():
            path.unlink()
        if gone:
            self._end = min(gone) - HEADER.size
            self._whole = min(self._whole, self._end)
            self._file.truncate(self._whole)

    def cues(self) -> dict[int, tuple[Cue, bool]]:
        """Block -> the cue that took effect there, and whether it was sent live."""
        return dict(self._cues)

    def with_sent(self, plan: Plan) -> Plan:
        """The plan with all that took effect in the recorded blocks; itself where nothing was sent live."""
        if not any(is_sent for _, is_sent in self._cues.values()):
            return plan
        end = self.num_blocks - plan.first_block
        later = (segment.cue for segment in plan.timeline.segments if segment.block >= end)
        cues = (*(self._cues[block][0] for block in sorted(self._cues)), *later)
        schedule = PromptSchedule(cues, always=plan.timeline.always)
        return Plan(plan.preset, replace(plan.request, schedule=schedule))

    def has(self, index: int) -> bool:
        """Whether a block is recorded, and on disk."""
        return index in self._places and self._places[index][0] < self._whole

    def block(self, index: int) -> Block:
        """A recorded block, read from disk."""
        return Block(index, self.tensors(index)[LATENTS], index in self._opens)

    def latents(self, block: int) -> Tensor | None:
        """Clean latents [B, C, T, H, W] of a recorded block, on the CPU, read from disk; None for another."""
        return self.tensors(block).get(LATENTS)

    def tensors(self, block: int) -> dict[str, Tensor]:
        """All that was recorded with a block; nothing for a block that is not."""
        if block not in self._places:
            return {}
        self._queue.flush()
        if not self.has(block):
            raise OSError(f"block {block} is not in {self._path}, which could not be written")
        at, length = self._places[block]
        self._file.seek(at)  # nothing is being written
        found = load(self._file.read(length))
        return {name: tensor.clone() for name, tensor in found.items()}  # aligned, as those that were made

    def save(self, state: VideoState, frames: int) -> None:
        """Write a state in the background, after so many frames of the video; the two newest are kept."""
        self._is_saving, self._newest = True, frames
        self._saving.put(partial(self._save, state, frames))

    def snapshots(self, writer: VideoWriter, seconds: float, last_block: int) -> Snapshots:
        """Saves a state about every so many seconds of video, where its growing file can be cut.

        Never while one is being written, nor after the last block, which may be trimmed.
        """
        self._newest = writer.num_appended

        def is_due(block: int) -> bool:
            return block < last_block and writer.can_be_cut and self.wants(writer.num_appended, seconds)

        return Snapshots(is_due, lambda state: self.save(state, writer.num_appended))

    def wants(self, frames: int, seconds: float) -> bool:
        """Whether so many seconds have passed since the newest state, and none is being written."""
        return frames - self._newest >= seconds * FRAME_RATE and not self._is_saving

    def restart(self) -> tuple[Restart, int]:
        """Where the run goes on, and how many frames of the growing file there stay.

        That is after the newest state that is whole, whose blocks are recorded and whose frames are there.
        """
        with suppress(OSError):
            os.replace(self._folder / GROWING, self._video)
        (self._folder / GROWING).unlink(missing_ok=True)  # it was the video still
        kept = frames_kept(self._video)
        whole = ((frames, state) for frames, state in self.states() if frames in kept)
        frames, state = next(whole, (0, None))
        return Restart(self.latents, state, num_blocks=self.num_blocks), frames

    def states(self) -> Iterator[tuple[int, VideoState]]:
        """Frames of the video before a state, and the state: the newest first, those that are damaged not."""
        for frames, path in self._states():
            with suppress(ValueError):
                if (state := VideoState.load(path)).num_blocks <= self.num_blocks:
                    yield frames, state

    def remove(self) -> None:
        """The video is finished: nothing of the journal is needed any more."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Write what is queued; idempotent. Without a block nothing is left."""
        try:
            self._saving.close()
            self._queue.close()
        finally:
            self._file.close()
        if all(at >= self._whole for at, _ in self._places.values()):
            shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, facts: dict[str, Any], is_fresh: bool) -> None:
        """Read the records, or replace them by a first one with the facts."""
        for part in self._folder.glob(PARTS.format("*")):  # of a state, when the run was killed
            part.unlink()
        records, size = self._records(), self._path.stat().st_size
        had = next(records, None)
        had = json.loads(had.get(FACTS, "null")) if had else None
        if had == facts and not is_fresh:
            for metadata in records:
                self._note(json.loads(metadata[BLOCK]), self._last)
            self._file.truncate(self._end)
            self._whole = self._end
            return
        self.note = "" if is_fresh or not size else f"this run starts over: {why(had, facts)}"
        for file in (*self._folder.glob(STATES), self._folder / GROWING):
            file.unlink(missing_ok=True)
        self._file.truncate(0)
        self._end = 0
        nothing = {LATENTS: torch.empty(0)}  # without a tensor safetensors 0.4.2 writes a broken header
        self._put(save(nothing, {FACTS: json.dumps(facts)}))

    def _note(self, facts: dict[str, Any], place: tuple[int, int]) -> None:
        """Note where the record of a block is, and what it says of it."""
        block = facts[BLOCK]
        self._places[block] = place
        if facts[OPENS_SCENE]:
            self._opens.add(block)
        if cue := facts.get(CUE):
            self._cues[block] = Cue(**cue), facts[IS_SENT]

    def _records(self) -> Iterator[dict[str, str]]:
        """The metadata of one record after the other, up to the first that is damaged or incomplete."""
        with self._path.open("rb") as file:
            while len(header := file.read(HEADER.size)) == HEADER.size:
                length, checksum = HEADER.unpack(header)
                record = file.read(length)
                if len(record) < max(length, NUMBER.size) or zlib.crc32(record) != checksum:
                    return
                self._last = self._end + HEADER.size, length
                self._end = file.tell()
                (count,) = NUMBER.unpack_from(record)
                yield json.loads(record[NUMBER.size : NUMBER.size + count])["__metadata__"]

    def _put(self, record: bytes) -> None:
        record = HEADER.pack(len(record), zlib.crc32(record)) + record
        self._queue.put(partial(self._append, self._end, record))
        self._end += len(record)

    def _append(self, at: int, record: bytes) -> None:
        """Write a record and wait until it is on disk. After an error the file stays as it was before it."""
        if at > self._whole:
            return
        try:
            self._write(at, record)
            self._whole += len(record)
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(at)
            logger.warning("%s cannot be written (%s); %s", self._path, error.strerror, WITHOUT)

    def _write(self, at: int, record: bytes) -> None:
        self._file.seek(at)
        if self._file.write(record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file.fileno())

    def _states(self) -> list[tuple[int, Path]]:
        """The frames of the video before each state on disk, newest first."""
        numbered = ((path.stem.partition("-")[2], path) for path in self._folder.glob(STATES))
        return sorted(((int(text), path) for text, path in numbered if text.isdecimal()), reverse=True)

    def _save(self, state: VideoState, frames: int) -> None:
        try:
            with suppress(FileNotFoundError):  # nothing goes on in a file that was moved away
                sync(self._video)
            state.save(self._folder / STATES.replace("*", str(frames)))
            for _, path in self._states()[KEPT_STATES:]:
                path.unlink()
        except OSError as error:
            logger.warning("%s; the video goes on without this snapshot", error)
        finally:
            self._is_saving = False


def why(had: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> str:
    """In what the settings of an unfinished run differ from those of this one."""
    if had is None:
        return "the journal of the unfinished one is damaged"
    names = sorted(name for name in {*had, *facts} if had.get(name) != facts.get(name))
    return f"the unfinished one was made with another {', '.join(names).replace('_', ' ')}"
