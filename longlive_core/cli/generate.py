"""`longlive generate`: prompts -> video file."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..config import SWITCH_POLICIES, Policy, Preset
from ..footage import ImageFolder
from ..geometry import FRAME_RATE, num_frames
from ..journal import Journal, facts_of, keep_growing
from ..output.contact_sheet import ContactSheet
from ..output.sound import Sound
from ..output.video import VideoWriter, read_frames
from ..pipeline import Chunk, ModelFiles, Pipeline, Plan, Request, checked_frames, load_pipeline
from ..resume import Ending, Restart, VideoState
from ..rollout.rollout import Hook
from ..schedule.schedule import PromptSchedule
from ..weights.files import first_line
from .begin import Beginning, add_footage, seconds_of
from .options import add_model, add_size_and_window, add_steps, window_from
from .outputs import DEFAULT_OUT, check_outputs
from .signals import ending_like_ctrl_c
from .stderr import STDERR, loading_bar, printable, show

HELP = "make a video from a prompt or a schedule of timed prompts"
MAX_LINES = 20
STDIN = Path("-")
SNAPSHOT_SECONDS = 30.0
FILES = (
    "vae",
    "text_encoder",
    "tokenizer",
    "lora",
    "vace",
    "mask",
    "with_source",
)  # settings name no content
THUMBNAILS = "thumbnails"  # of a block, in the journal
WITHOUT_EFFECT = ("snapshot_every", "fresh")  # on the video
SCHEDULE_HELP = "timed prompts: text, JSON or JSONL, in UTF-8; - reads standard input"


def add_options(parser: argparse.ArgumentParser) -> None:
    prompts, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    prompts.add_argument("--schedule", type=Path, metavar="FILE", help=SCHEDULE_HELP)
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt for the whole video")
    add("--switch-frames", type=frame_list, default=(), metavar="N,N", help="for a JSONL schedule")
    add("--seconds", type=float, help="length of the video (default: 10, or that of --video)")
    add("--seed", type=int, help="default: 0, or that of the state to --resume")
    add_model(parser)
    add_size_and_window(parser)
    add_steps(parser)
    add("--positions", choices=("auto", "absolute", "endless"), default="auto")
    policies = [policy.value for policy in SWITCH_POLICIES]
    add("--on-switch", choices=policies, help="policy of cues that name none; default: the model's own")
    add("--contact-sheet", type=Path, metavar="PNG", help="also write thumbnails of the video")
    add("--state", type=Path, metavar="FILE", help="also write the exact state at the end, for --resume")
    add("--resume", type=Path, metavar="STATE", help="continue from a --state; times count from its end")
    add_footage(parser)
    sound = "a sound file, or a video with sound: heard from the first frame of --out on"
    add("--audio", type=Path, metavar="FILE", help=sound)
    no_metadata = "leave prompts, seed and all settings out of the video; a --state always has them"
    add("--no-metadata", action="store_true", help=no_metadata)
    add("--out", type=Path, default=DEFAULT_OUT, help=f"the mp4 to write (default: {DEFAULT_OUT})")
    snapshots = (
        "of video between exact states on disk, from which a killed run goes on; 0: none, it goes on from "
        "its blocks' latents (default: 30; at 832x480 3.2 GiB each, the two newest stay, 1.2 MB a block)"
    )
    add("--snapshot-every", type=interval, default=SNAPSHOT_SECONDS, metavar="S", help=snapshots)
    add("--fresh", action="store_true", help="start over where the same run was killed, instead of going on")


def interval(text: str) -> float:
    """Seconds between snapshots."""
    try:
        if (seconds := float(text)) >= 0:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} are no seconds; choose 0 for no snapshots, or more")


def frame_list(text: str) -> tuple[int, ...]:
    """`40,80` -> (40, 80)."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of latent frames; write it as 40,80")
    return tuple(map(int, parts))


def run(options: argparse.Namespace) -> None:
    """Make the video; the file is playable while it grows."""
    beginning, sound = checked(options)
    with ending_like_ctrl_c():
        make(pipeline_from(options), options, beginning, sound)


def checked(options: argparse.Namespace) -> tuple[Beginning, Sound | None]:
    """Check the options before there is a model, and open their files; settles `seconds`."""
    check_outputs(options)
    options.seconds = seconds_of(options)
    if options.seconds or not options.video:
        checked_frames(options.seconds)  # a plan without end needs a LiveControl
    return Beginning.of(options), sound_from(options)


def make(pipeline: Pipeline, options: argparse.Namespace, beginning: Beginning, sound: Sound | None) -> int:
    """Make the video of checked options; the frames in its file."""
    request = request_from(options, pipeline.preset, beginning)
    plan = pipeline.plan(replace(request, **beginning.encoded(pipeline, request.width, request.height)))
    earlier = earlier_video(plan, options, beginning)
    report([*plan.timeline.report(), *beginning.notes(), *request.images.notes, *plan.timeline.warnings])
    report(sound.notes((earlier.num_frames + plan.frames) / FRAME_RATE) if sound else ())
    return record(pipeline, plan, options, sound, earlier)


def sound_from(options: argparse.Namespace) -> Sound | None:
    """The sound of the options; ValueError if the file has none."""
    if not options.audio:
        return None
    is_whole = options.with_source or not options.seconds
    return Sound.of_file(options.audio, *(() if is_whole else (options.seconds,)))


class Earlier(NamedTuple):
    """The frames uint8 [F, H, W, 3] that the file begins with, and about how many they are."""

    frames: Iterable[np.ndarray] = ()
    num_frames: int = 0


def earlier_video(plan: Plan, options: argparse.Namespace, beginning: Beginning) -> Earlier:
    """What the file begins with: the video that is resumed, or the footage that is extended, if asked for."""
    if beginning.num_joined:
        return Earlier(beginning.joined(plan.width, plan.height), beginning.num_joined)
    if not options.with_source:
        return Earlier()
    check_source(plan, options.with_source)
    return Earlier(read_frames(options.with_source), plan.request.state.num_frames)


def check_source(plan: Plan, source: Path) -> None:
    """Raise ValueError unless the video to begin with is the one that the plan continues."""
    if not (state := plan.request.state):
        raise ValueError("--with-source is the video that --resume continues; give its --resume STATE too")
    shapes = [frames.shape[2:0:-1] for frames in read_frames(source)]
    if [*shapes] != [(state.width, state.height)] * state.num_frames:
        size = "x".join(map(str, shapes[0])) if shapes else "0x0"
        raise ValueError(
            f"{source} has {len(shapes)} frames of {size}, and --resume continues {state.num_frames} of "
            f"{state.width}x{state.height}; name the whole video up to that state"
        )


def pipeline_from(options: argparse.Namespace) -> Pipeline:
    """The model that the options name, with a progress bar while it is loaded."""
    names = (field.name for field in fields(ModelFiles))
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    with loading_bar("loading") as on_progress:
        return load_pipeline(**given, on_progress=on_progress, on_note=Notes().on_note)


class Notes(Hook):
    """Prints notes above the progress bar."""

    def on_note(self, text: str) -> None:
        tqdm.write(printable(text), file=STDERR)


def request_from(options: argparse.Namespace, preset: Preset, beginning: Beginning | None = None) -> Request:
    """The options as a Request, without the latents of what is encoded first; their files may be open."""
    beginning, schedule = beginning or Beginning.of(options), schedule_from(options)
    state = VideoState.load(options.resume) if options.resume else None
    if options.on_switch:
        in_effect = state.script.prompt if state else None
        schedule = schedule.with_on_switch(Policy(options.on_switch), in_effect)
    width, height = options.size or beginning.size(preset, state)
    seed = state.seed if state and options.seed is None else options.seed
    window, begin = window_from(options, preset), beginning.request(width, height)
    made = (seconds_of(options), seed or 0, width, height, window, options.positions)
    folder = options.schedule.parent if options.schedule else Path()
    images = ImageFolder(folder, fit=options.fit)
    return Request(schedule, *made, state=state, steps=options.steps, images=images, **begin)


def schedule_from(options: argparse.Namespace) -> PromptSchedule:
    """The prompts of the options, as they are written."""
    if options.schedule:
        return PromptSchedule.parse(read_text(options.schedule), options.switch_frames)
    if options.switch_frames:
        raise ValueError("--switch-frames is for a JSONL --schedule, not for --prompt; leave it out")
    return PromptSchedule.single(options.prompt)


def read_text(path: Path) -> str:
    """A text file, or standard input for `-`; ValueError unless it is UTF-8."""
    is_stdin = path == STDIN
    try:
        return (sys.stdin.buffer.read() if is_stdin else path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = "standard input" if is_stdin else path
        raise ValueError(f"{name} is not a UTF-8 text file ({error}); save it as UTF-8") from error


def report(lines: Sequence[str]) -> None:
    """Print the first lines, and how many more there are."""
    for line in lines[:MAX_LINES]:
        show(line, STDERR)
    if len(lines) > MAX_LINES:
        show(f"... and {len(lines) - MAX_LINES} more", STDERR)


def record(
    pipeline: Pipeline, plan: Plan, options: argparse.Namespace, sound: Sound | None, earlier: Earlier
) -> int:
    """Write the video, its state, and the contact sheet, also after an error; the frames in the file.

    A run that was killed goes on where its journal ends.
    """
    heard, made = {"sound": sound.settings} if sound else {}, pipeline.settings(plan)
    files = {name: getattr(options, name) for name in (*FILES, "tile")}
    with Journal(options.out, facts_of(made, plan, **heard, **files), options.fresh) as journal:
        report([journal.note] if journal.note else [])
        restart, kept = journal.restart()
        settings = None if options.no_metadata else made | heard
        writer = VideoWriter(options.out, plan.width, plan.height, settings, sound=sound, kept=kept)
        film = Film(pipeline, plan, writer, journal, restart, options.snapshot_every)
        film.make(options, earlier)
        journal.remove()
    show(f"{options.out}: {writer.num_frames} frames")
    return writer.num_frames


class Film:
    """One video while it is made: frames into the file, all that it needs to go on into the journal."""

    def __init__(
        self,
        pipeline: Pipeline,
        plan: Plan,
        writer: VideoWriter,
        journal: Journal,
        restart: Restart,
        seconds: float,
    ):
        """`seconds` of video are between snapshots, 0 for none."""
        self._pipeline, self._plan, self._writer, self._journal = pipeline, plan, writer, journal
        self._restart, self._seconds = restart, seconds
        self._sheet, self._done = ContactSheet(plan.frames), 0

    def make(self, options: argparse.Namespace, earlier: Earlier) -> None:
        """Make the video, its state and its contact sheet; that is written after an error, too."""
        ending = Ending() if options.state else None
        try:
            self._film(earlier.frames, ending)
            if ending:
                ending.state.save(options.state)
        except KeyboardInterrupt as stop:
            count = self._writer.num_frames
            kept = f"{options.out} keeps the first {count} frames" if count else "nothing was made yet"
            unwritten = f"; {options.state} was not written" if options.state else ""
            raise KeyboardInterrupt(kept + unwritten) from stop
        finally:
            is_complete = save_sheet(self._sheet, options.contact_sheet)
        if not is_complete:
            raise OSError(f"{options.out} is complete, its contact sheet is missing")

    def _film(self, earlier: Iterable[np.ndarray], ending: Ending | None) -> None:
        """Frames into the file, `earlier` ones first; the new ones also into sheet and progress bar."""
        plan, snapshots = self._plan, None
        if self._seconds:
            snapshots = self._journal.snapshots(self._writer, self._seconds, plan.blocks[-1])
        self._go_on()
        bar = tqdm(total=plan.frames, initial=self._done, unit="frame", desc="block 0", file=STDERR)
        with torch.inference_mode(), self._writer, self._growing(), bar:
            for frames in () if self._writer.num_frames else earlier:
                self._writer.append(frames)
            made = self._pipeline.run(plan, Notes(), None, ending, snapshots, self._restart)
            for chunk in made:
                self._keep(chunk)
                bar.set_description(f"block {chunk.block.index + 1}/{plan.blocks.stop}")
                bar.update(len(chunk.frames))

    def _keep(self, chunk: Chunk) -> None:
        """A chunk into the file, and then into the journal."""
        frames = chunk.uint8()
        self._writer.append(frames)
        kept = self._sheet.append(frames)
        thumbnails = {THUMBNAILS: torch.from_numpy(np.stack(kept))} if kept else {}
        self._journal.add(chunk.block, **thumbnails)

    def _go_on(self) -> None:
        """Say where the run goes on, and restore what was seen before the frames that are made now."""
        plan, journal = self._plan, self._journal
        if not journal.num_blocks:
            return
        end = num_frames(journal.num_blocks * plan.block_latent_frames) - plan.past_frames
        show(f"goes on at {clock(min(end, plan.frames))}", STDERR)
        if state := self._restart.state:
            self._done = state.num_frames - plan.past_frames
            found = (journal.tensors(block).get(THUMBNAILS, ()) for block in range(state.num_blocks))
            self._sheet.restore(self._done, [image.numpy() for images in found for image in images])

    @contextmanager
    def _growing(self) -> Iterator[None]:
        """Keep the growing file of a run that ends early: finished, it could not go on."""
        try:
            yield
        except BaseException:
            keep_growing(self._writer.path)
            raise


def clock(frames: int) -> str:
    """The time of a frame, like 1:05."""
    minutes, seconds = divmod(frames // FRAME_RATE, 60)
    return f"{minutes}:{seconds:02}"


def save_sheet(sheet: ContactSheet, path: Path | None) -> bool:
    """Whether the sheet, if asked for, is written. Raises nothing, which would hide an earlier error."""
    try:
        if path:
            sheet.save(path)
    except Exception as error:  # each image format has errors of its own
        show(f"the contact sheet {path} cannot be written ({first_line(error)})", STDERR)
        return False
    return True
