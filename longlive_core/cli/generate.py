"""`longlive generate`: prompts -> video file."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..config import MINI, Preset
from ..contact_sheet import ContactSheet
from ..overlap import BackgroundWriter
from ..parts import ModelFiles, load_files
from ..pipeline import Pipeline, Plan, Request, load_pipeline
from ..reasons import reason_of
from ..rollout.prompts import SWITCH_POLICIES, Policy, PromptSchedule
from ..rollout.rollout import Hook
from ..state import Ending, VideoState
from ..video import VideoWriter
from .options import add_model, add_size_and_window, add_steps, usable_device, window_from

HELP = "make a video from a prompt or a schedule of timed prompts"
MAX_LINES = 20
DEFAULT_OUT = Path("longlive.mp4")


def add_options(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--schedule", type=Path, metavar="FILE", help="timed prompts: text, JSON or JSONL")
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt for the whole video")
    parser.add_argument(
        "--switch-frames", type=frame_list, default=(), metavar="N,N", help="with a JSONL schedule"
    )
    parser.add_argument("--seconds", type=float, required=True, help="length of the video")
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
    pipeline = pipeline_from(options)
    request = request_from(options, pipeline.preset)
    plan = pipeline.plan(request)
    announce(plan.timeline.report())
    announce(plan.timeline.warnings)
    with enough_memory(plan):
        record(pipeline, plan, options)


def record(pipeline: Pipeline, plan: Plan, options: argparse.Namespace) -> None:
    """Frames into the file, the contact sheet and the progress bar."""
    sheet = ContactSheet(plan.frames)
    settings = plan.settings() | files_named(options)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        file = VideoWriter(options.out, plan.width, plan.height, settings)
        writer = stack.enter_context(BackgroundWriter(file))
        if options.contact_sheet:
            stack.callback(sheet.save, options.contact_sheet)
        bar = stack.enter_context(tqdm(total=plan.frames, unit="frame", desc="block 0"))
        ending = Ending() if options.state else None
        for chunk in pipeline.run(plan.request, Notes(), ending=ending):
            frames = chunk.pictures()
            writer.append(frames)
            sheet.append(frames)
            bar.set_description(f"block {chunk.block.index + 1}/{plan.blocks.stop}")
            bar.update(len(frames))
    if ending:
        ending.state.save(options.state)
    print(f"{options.out}: {writer.num_frames} frames")


class Notes(Hook):
    """Tells the user what the pipeline has to say, above the progress bar."""

    def on_note(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)


def files_named(options: argparse.Namespace) -> dict[str, object]:
    """What the video was made from, for its metadata: names, not places."""
    named: dict[str, object] = {"attention": options.attention, "speed": options.speed}
    if options.model != MINI.name:
        named |= {
            "checkpoint": Path(options.model).name,
            "loras": {choice.path.name: choice.strength for choice in options.lora},
            "vae": options.vae.name,
            "text_encoder": options.text_encoder.name,
            "precision": options.precision,
        }
    return named


@contextmanager
def enough_memory(plan: Plan) -> Iterator[None]:
    """torch's many words for too little memory, in one sentence; what was made is kept."""
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
            f"({reason_of(error)}); choose a smaller --size or --window, --precision fp8, or --tile"
        ) from error


def pipeline_from(options: argparse.Namespace) -> Pipeline:
    """Mini by its name, or the files of a real model."""
    if options.model == MINI.name:
        return load_pipeline(MINI.name, options.attention, options.speed)
    if not Path(options.model).exists():
        raise ValueError(f"{options.model!r} is neither {MINI.name}, the packaged model, nor a file")
    files = ModelFiles(
        checkpoint=Path(options.model),
        text_encoder=options.text_encoder,
        vae=options.vae,
        loras=tuple(options.lora),
        tokenizer=options.tokenizer,
        keep_text_encoder=options.keep_text_encoder,
        family=options.family,
        precision=options.precision,
        attention=options.attention,
        speed=options.speed,
        device=usable_device(options.device),
        tile_pixels=options.tile,
    )
    with tqdm(unit="B", unit_scale=True, desc="loading", mininterval=0.5) as bar:
        pipeline, notes = load_files(files, lambda done, total: progress(bar, done, total))
    announce(notes)
    return pipeline


def progress(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def default_out(options: argparse.Namespace) -> Path:
    """Where the video goes if nothing is said; ValueError if that may be the video to go on from."""
    if options.resume and DEFAULT_OUT.exists():
        raise ValueError(
            f"{DEFAULT_OUT} is there already, perhaps the very part that --resume goes on from; "
            "name another file with --out"
        )
    return DEFAULT_OUT


def check_outputs(options: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written, before anything is made."""
    outputs = [path for path in (options.out, options.contact_sheet, options.state) if path]
    for path in outputs:
        check_writable(path)
        for name, read in (("schedule", options.schedule), ("state", options.resume)):
            if read and path.resolve() == read.resolve():
                raise ValueError(f"{path} is the {name} itself; choose another file to write")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ValueError("two of --out, --contact-sheet and --state are the same file; choose others")
    if options.contact_sheet and options.contact_sheet.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{options.contact_sheet} is no picture; choose a name that ends in .png or .jpg")


def announce(lines: tuple[str, ...]) -> None:
    """Print the first lines, and how many more there are."""
    shown = (
        lines if len(lines) <= MAX_LINES else (*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more")
    )
    for line in shown:
        print(line, file=sys.stderr)


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


def check_writable(path: Path) -> None:
    """Refuse an output that cannot be written before anything is made."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: choose a file in a folder that exists and is writable")
