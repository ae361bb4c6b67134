"""`longlive generate`: prompts -> video file."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..config import SWITCH_POLICIES, Policy, Preset
from ..output.contact_sheet import ContactSheet
from ..output.video import VideoWriter
from ..pipeline import ModelFiles, Pipeline, Plan, Request, checked_frames, load_pipeline
from ..resume import Ending, VideoState
from ..rollout.rollout import Hook
from ..schedule.schedule import PromptSchedule
from ..weights.files import first_line
from .options import add_model, add_size_and_window, add_steps, window_from
from .outputs import DEFAULT_OUT, check_outputs, default_out
from .stderr import STDERR

HELP = "make a video from a prompt or a schedule of timed prompts"
MAX_LINES = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--schedule", type=Path, metavar="FILE", help="timed prompts: text, JSON or JSONL")
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt for the whole video")
    parser.add_argument(
        "--switch-frames", type=frame_list, default=(), metavar="N,N", help="with a JSONL schedule"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the video (default: 10)")
    parser.add_argument("--seed", type=int, help="default: 0, or that of the state to --resume")
    add_model(parser)
    add_size_and_window(parser)
    add_steps(parser)
    parser.add_argument("--positions", choices=("auto", "absolute", "endless"), default="auto")
    parser.add_argument(
        "--on-switch",
        choices=[policy.value for policy in SWITCH_POLICIES],
        help="what cues that name no policy do to the past (default: recache)",
    )
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help="also write thumbnails of the video"
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="also write the exact state at the end, for --resume"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="STATE", help="go on from a --state; times count from its end"
    )
    parser.add_argument("--out", type=Path, help=f"the mp4 to write (default: {DEFAULT_OUT})")


def frame_list(text: str) -> tuple[int, ...]:
    """`40,80` -> (40, 80)."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of latent frames; write it as 40,80")
    return tuple(int(part) for part in parts)


def run(options: argparse.Namespace) -> None:
    """Make the video, writing it while it is made."""
    options.out = options.out or default_out(options)
    check_outputs(options)
    checked_frames(options.seconds)  # UNTIL_STOPPED needs someone to stop it
    pipeline = pipeline_from(options)
    request = request_from(options, pipeline.preset)
    plan = pipeline.plan(request)
    announce(plan.timeline.report())
    announce(plan.timeline.warnings)
    with enough_memory(plan):
        record(pipeline, plan, options)


def record(pipeline: Pipeline, plan: Plan, options: argparse.Namespace) -> None:
    """Write the video, then its state, and the contact sheet of the frames that were made."""
    writer = VideoWriter(options.out, plan.width, plan.height, pipeline.settings(plan))
    sheet, ending = ContactSheet(plan.frames), Ending() if options.state else None
    with sheet_kept(sheet, options.contact_sheet):
        try:
            film(pipeline, plan, writer, sheet, ending)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(what_is_kept(options, writer.num_frames)) from stop
        if ending:
            ending.state.save(options.state)
    print(f"{options.out}: {writer.num_frames} frames")


def film(
    pipeline: Pipeline, plan: Plan, writer: VideoWriter, sheet: ContactSheet, ending: Ending | None
) -> None:
    """Frames into the file, the contact sheet and the progress bar."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(writer)
        bar = stack.enter_context(tqdm(total=plan.frames, unit="frame", desc="block 0", file=STDERR))
        for chunk in pipeline.run(plan, Notes(), ending=ending):
            frames = chunk.uint8()
            writer.append(frames)
            sheet.append(frames)
            bar.set_description(f"block {chunk.block.index + 1}/{plan.blocks.stop}")
            bar.update(len(frames))


@contextmanager
def sheet_kept(sheet: ContactSheet, path: Path | None) -> Iterator[None]:
    """Save the sheet at the end, also after an error. Raises OSError, or prints it after another error."""
    try:
        yield
    except BaseException:
        try:
            save_sheet(sheet, path)
        except OSError as error:
            print(f"longlive: {error}", file=STDERR)
        raise
    save_sheet(sheet, path)


def save_sheet(sheet: ContactSheet, path: Path | None) -> None:
    """Save it, if asked for. Raises OSError whatever the image format complains of."""
    try:
        if path:
            sheet.save(path)
    except Exception as error:
        raise OSError(f"the contact sheet {path} cannot be written ({first_line(error)})") from error


def what_is_kept(options: argparse.Namespace, num_frames: int) -> str:
    """After Ctrl-C: which part of the video was kept, and that its state was not."""
    made = f"{options.out} keeps the first {num_frames} frames" if num_frames else "nothing was made yet"
    return f"{made}; {options.state} was not written" if options.state else made


class Notes(Hook):
    """Prints the pipeline's notes above the progress bar."""

    def on_note(self, text: str) -> None:
        tqdm.write(text, file=STDERR)


@contextmanager
def enough_memory(plan: Plan) -> Iterator[None]:
    """Out-of-memory errors of any kind in one sentence; what was made is kept."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        is_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text
        if not (is_memory or "Storage size calculation overflowed" in text):
            raise
        window = plan.window.window_latent_frames or f"all {plan.blocks.stop} blocks"
        raise ValueError(
            f"a video of {plan.width}x{plan.height} with a window of {window} does not fit the memory "
            f"({first_line(error)}); choose a smaller --size or --window, --precision fp8, or --tile"
        ) from error


def pipeline_from(options: argparse.Namespace) -> Pipeline:
    """The model that the options name."""
    given = {part.name: getattr(options, part.name, part.default) for part in fields(ModelFiles)}
    shown = {"unit": " weights", "desc": "loading", "delay": 0.5, "file": STDERR}
    with tqdm(**shown) as bar:
        note = partial(tqdm.write, file=STDERR)
        return load_pipeline(**given, on_progress=partial(progress, bar), on_note=note)


def progress(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def announce(lines: tuple[str, ...]) -> None:
    """Print the first lines, and how many more there are."""
    shown = (
        lines if len(lines) <= MAX_LINES else (*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more")
    )
    for line in shown:
        print(line, file=STDERR)


def request_from(options: argparse.Namespace, preset: Preset) -> Request:
    """The options as a Request."""
    if options.schedule:
        schedule = PromptSchedule.parse(read_text(options.schedule), options.switch_frames)
    else:
        if options.switch_frames:
            raise ValueError("--switch-frames goes with a JSONL --schedule, not with --prompt; leave it out")
        schedule = PromptSchedule.single(options.prompt)
    state = VideoState.load(options.resume) if options.resume else None
    if options.on_switch:
        in_effect = state.script.prompt if state else None
        schedule = schedule.with_on_switch(Policy(options.on_switch), in_effect)
    width, height = options.size or (None, None)
    seed = state.seed if state and options.seed is None else options.seed
    made = (options.seconds, seed or 0, width, height, window_from(options, preset), options.positions)
    return Request(schedule, *made, state=state, steps=options.steps)


def read_text(path: Path) -> str:
    """A text file; ValueError when it is not UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file ({error})") from error
