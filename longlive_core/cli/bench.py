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
from ..pipeline import Pipeline, Request, load_pipeline, usable_device
from ..schedule.schedule import PromptSchedule
from .options import add_attention, add_speed, size

HELP = "measure how fast this machine makes video"
RANDOM = "random-1.3b"
SWITCH_SECONDS = 8.0
MAX_BENCH_SECONDS = 3600.0
PARTS = {"rollout": "transformer alone", "all": "prompt to H.264 file"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("what", choices=("rollout", "attention"), nargs="?", default="rollout")
    parser.add_argument(
        "--model", choices=(MINI.name, RANDOM), default=MINI.name, help="random weights need no files"
    )
    parser.add_argument("--layers", type=int, default=None, help="of random-1.3b, to try it out: 1 to 30")
    parser.add_argument("--size", type=size, default=None, metavar="WxH")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--device", default=AUTO)
    parser.add_argument("--decoder", choices=("tiny", "wan"), default="tiny", help="of random-1.3b")
    add_attention(parser)
    add_speed(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    check(options)
    with torch.inference_mode():
        found = figures(options, usable_device(options.device))
    print(json.dumps(found, indent=2) if options.json else table(found))


def check(options: argparse.Namespace) -> None:
    """ValueError for what cannot be measured."""
    if options.what == "attention":
        raise ValueError("bench attention was removed: --attention auto chooses by the GPU; leave it out")
    if options.layers is not None and not 1 <= options.layers <= LONGLIVE_1_3B.model.num_layers:
        raise ValueError(f"--layers {options.layers} is not possible; choose 1 to 30")
    if not 0 < options.seconds <= MAX_BENCH_SECONDS:
        raise ValueError(f"--seconds {options.seconds:g} is not possible; choose more than 0, at most 3600")


def figures(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The transformer alone, then everything to the file; long lists are left out."""
    pipeline = pipeline_of(options, device)
    width, height = options.size or (None, None)
    prompts = {0.0: "a red circle drifts right over navy", SWITCH_SECONDS: "it turns into a blue star"}
    text = "\n".join(f"{at} => {prompt}" for at, prompt in prompts.items() if at < options.seconds)
    plan = pipeline.plan(Request(PromptSchedule.parse(text), options.seconds, 0, width, height))
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    made = {"rollout": rollout_figures(pipeline, plan, gpu), "all": end_to_end_figures(pipeline, plan)}
    for part, long in (("rollout", "seconds_by_block"), ("all", "arrivals")):
        made[part].pop(long)
    return {"device": gpu or device.type, "model": pipeline.preset.name, **made}


def table(found: dict[str, Any]) -> str:
    """The same figures for people, a line each."""
    lines = [f"{found['model']} on {found['device']}"]
    for part, title in PARTS.items():
        lines.append(f"\n{title}")
        shown = {name.replace("_", " "): value for name, value in found[part].items() if value is not None}
        lines += [f"  {name:<26}{value}" for name, value in shown.items() if not isinstance(value, list)]
        lines += [f"  {note}" for note in found[part].get("notes", ())]
    return "\n".join(lines)


def pipeline_of(options: argparse.Namespace, device: torch.device) -> Pipeline:
    """Mini, or the true architecture with random weights."""
    if options.model != MINI.name:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        speed = {"attention": options.attention, "speed": options.speed}
        return random_pipeline(device, dtype, options.decoder, num_layers=options.layers, **speed)
    if device.type != "cpu":
        raise ValueError("mini is measured on the CPU; choose --device cpu or --model random-1.3b")
    return load_pipeline(MINI.name, attention=options.attention, speed=options.speed)
