"""`longlive bench`: how fast this machine makes video."""

import argparse
import json
from typing import Any

import torch

from ..bench.end_to_end import end_to_end_figures
from ..bench.phases import rollout_figures
from ..bench.random_model import random_pipeline
from ..config import LONGLIVE_1_3B, MINI
from ..model.attention import AUTO
from ..pipeline import Pipeline, Request, checked_frames, load_pipeline, usable_device
from ..schedule.schedule import PromptSchedule
from .options import add_attention, add_speed, size

HELP = "measure how fast this machine makes video"
RANDOM = "random-1.3b"
PROMPTS = {0.0: "a red circle drifts right over navy", 8.0: "it turns into a blue star"}  # by their seconds
TITLES = {"rollout": "transformer alone", "all": "prompt to H.264 file"}


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", choices=("rollout", "attention"), nargs="?", default="rollout")
    add("--model", choices=(MINI.name, RANDOM), default=MINI.name, help="random weights need no files")
    add("--layers", type=int, help=f"1 to 30, of {RANDOM}, to try it out")
    add("--size", type=size, metavar="WxH")
    add("--seconds", type=float, default=30.0)
    add("--device", default=AUTO)
    add("--decoder", choices=("tiny", "wan"), default="tiny", help=f"of {RANDOM}")
    add_attention(parser)
    add_speed(parser)
    add("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    check(options)
    with torch.inference_mode():
        found = figures(options, usable_device(options.device))
    print(json.dumps(found, indent=2) if options.json else table(found))


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for what cannot be measured."""
    if options.what == "attention":
        raise ValueError("bench attention was removed: --attention auto chooses by the GPU; leave it out")
    if options.layers is not None and not 1 <= options.layers <= LONGLIVE_1_3B.model.num_layers:
        raise ValueError(f"--layers {options.layers} is not possible; choose 1 to 30")
    checked_frames(options.seconds)


def figures(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Of the transformer alone, then of everything to the file; without the long lists."""
    pipeline = pipeline_of(options, device)
    width, height = options.size or (None, None)
    text = "\n".join(f"{at} => {prompt}" for at, prompt in PROMPTS.items() if at < options.seconds)
    plan = pipeline.plan(Request(PromptSchedule.parse(text), options.seconds, 0, width, height))
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    made = {"rollout": rollout_figures(pipeline, plan, gpu), "all": end_to_end_figures(pipeline, plan)}
    del made["rollout"]["seconds_by_block"], made["all"]["arrivals"]
    return {"device": gpu or device.type, "model": pipeline.preset.name, **made}


def pipeline_of(options: argparse.Namespace, device: torch.device) -> Pipeline:
    """Mini, or the true architecture with random weights."""
    speed = {"attention": options.attention, "speed": options.speed}
    if options.model == RANDOM:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return random_pipeline(device, dtype, options.decoder, num_layers=options.layers, **speed)
    if device.type != "cpu":
        raise ValueError(f"mini is measured on the CPU; choose --device cpu or --model {RANDOM}")
    return load_pipeline(MINI.name, **speed)


def table(found: dict[str, Any]) -> str:
    """The same figures to read, a line each."""
    lines = [f"{found['model']} on {found['device']}"]
    for part, title in TITLES.items():
        notes = found[part].get("notes", ())
        shown = {name: value for name, value in found[part].items() if name != "notes" and value is not None}
        lines += ["", title, *(f"  {name.replace('_', ' '):<26}{value}" for name, value in shown.items())]
        lines += [f"  {note}" for note in notes]
    return "\n".join(lines)
