"""`longlive generate` and `longlive info`: arguments -> pipeline -> video file."""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from .config import PRESETS, WindowConfig
from .contact_sheet import ContactSheet
from .model.attention import BACKENDS
from .pipeline import Request, load_pipeline
from .rollout.prompts import Policy, PromptSchedule
from .rollout.rollout import RolloutError
from .video import VideoWriter, read_settings

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
MAX_LINES = 20


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 and one sentence on bad input, 130 on Ctrl-C (what was made is kept)."""
    options = build_parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, OSError, RolloutError) as error:
        print(f"longlive: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("longlive: stopped; what was made is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="longlive", description="Timed prompts become one long video.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser("generate", help="make a video from a prompt or a schedule of timed prompts")
    make.set_defaults(command=generate)
    prompts = make.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--schedule", type=Path, metavar="FILE", help="timed prompts: text, JSON or JSONL")
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt for the whole video")
    make.add_argument(
        "--switch-frames", type=frame_list, default=(), metavar="N,N", help="with a JSONL schedule"
    )
    make.add_argument("--seconds", type=float, required=True, help="length of the video")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--model", default="mini", help="mini (packaged)")
    make.add_argument("--size", type=size, metavar="WxH", help="default: the model's own")
    make.add_argument("--window", type=int, help="latent frames a block sees, 0 for all")
    make.add_argument("--sink", type=int, help="first latent frames that are never forgotten")
    make.add_argument("--positions", choices=("auto", "absolute", "endless"), default="auto")
    make.add_argument(
        "--on-switch", choices=[p.value for p in Policy], help="what every recache cue does instead"
    )
    make.add_argument("--attention", choices=BACKENDS, default="sdpa")
    make.add_argument("--contact-sheet", type=Path, metavar="PNG", help="also write thumbnails of the video")
    make.add_argument("--out", type=Path, default=Path("longlive.mp4"), help="the mp4 to write")
    info = commands.add_parser("info", help="print the schedule, seed and settings a video was made with")
    info.set_defaults(command=show_info)
    info.add_argument("video", type=Path)
    return parser


def size(text: str) -> tuple[int, int]:
    """`832x480` -> (832, 480)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 832x480")
    return int(width), int(height)


def frame_list(text: str) -> tuple[int, ...]:
    """`40,80` -> (40, 80)."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of latent frames; write it as 40,80")
    return tuple(int(part) for part in parts)


def generate(options: argparse.Namespace) -> None:
    """Make the video, writing it while it is made."""
    pipeline = load_pipeline(options.model, options.attention)
    request = request_from(options)
    plan = pipeline.plan(request)
    for path in filter(None, (options.out, options.contact_sheet)):
        check_writable(path)
    announce(plan.timeline.report())
    announce(plan.timeline.warnings)
    sheet = ContactSheet(plan.frames)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        writer = stack.enter_context(
            VideoWriter(
                options.out, plan.width, plan.height, plan.settings() | {"attention": options.attention}
            )
        )
        if options.contact_sheet:
            stack.callback(sheet.save, options.contact_sheet)
        bar = stack.enter_context(tqdm(total=plan.frames, unit="frame", desc="block 0"))
        for chunk in pipeline.run(request):
            frames = chunk.pictures()
            writer.append(frames)
            sheet.append(frames)
            bar.set_description(f"block {chunk.block.index + 1}/{plan.blocks.stop}")
            bar.update(len(frames))
    print(f"{options.out}: {writer.num_frames} frames")


def announce(lines: tuple[str, ...]) -> None:
    """Print the first lines, and how many more there are."""
    shown = (
        lines if len(lines) <= MAX_LINES else (*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more")
    )
    for line in shown:
        print(line, file=sys.stderr)


def request_from(options: argparse.Namespace) -> Request:
    """The options as a Request."""
    if options.schedule:
        schedule = PromptSchedule.parse(read_text(options.schedule), options.switch_frames)
    else:
        if options.switch_frames:
            raise ValueError("--switch-frames goes with a JSONL --schedule, not with --prompt; leave it out")
        schedule = PromptSchedule.single(options.prompt)
    if options.on_switch:
        default = Policy(options.on_switch)
        cues = (replace(c, policy=default) if c.policy is Policy.RECACHE else c for c in schedule.cues)
        schedule = replace(schedule, cues=tuple(cues))
    width, height = options.size or (None, None)
    window = window_from(options)
    return Request(schedule, options.seconds, options.seed, width, height, window, options.positions)


def window_from(options: argparse.Namespace) -> WindowConfig | None:
    """The window that the options ask for; None when they leave everything to the preset."""
    changes = {}
    if options.window is not None:
        changes["window_latent_frames"] = options.window or None
    if options.sink is not None:
        changes["sink_latent_frames"] = options.sink
    return replace(PRESETS[options.model].window, **changes) if changes else None


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


def show_info(options: argparse.Namespace) -> None:
    """Print a video's settings as JSON."""
    if not options.video.is_file():
        raise ValueError(f"{options.video} is not a file")
    print(json.dumps(read_settings(options.video), indent=2, ensure_ascii=False))
