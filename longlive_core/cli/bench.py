"""`longlive bench`: how fast this machine makes video, and which attention it does it with."""

import argparse
import json

import torch

from ..bench.end_to_end import end_to_end_figures
from ..bench.phases import rollout_figures
from ..bench.random_model import random_pipeline
from ..config import LONGLIVE_1_3B, MINI
from ..geometry import latent_size, tokens_per_frame
from ..model.attention import AUTO, BACKENDS
from ..model.fastest import AttentionShape, default_memory, fastest_attention, measured
from ..pipeline import Pipeline, Request, load_pipeline
from ..schedule.schedule import PromptSchedule
from ..speed import PLAIN, SPEEDS, Speed
from .options import size, usable_device

HELP = "measure this machine: a rollout, or the attention backends"
RANDOM = "random-1.3b"
SWITCH_SECONDS = 8.0
MAX_BENCH_SECONDS = 3600.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("what", choices=("rollout", "attention"), nargs="?", default="rollout")
    parser.add_argument(
        "--model", choices=(MINI.name, RANDOM), default=MINI.name, help="random weights need no files"
    )
    parser.add_argument("--layers", type=int, default=None, help="of random-1.3b, to try it out: 1 to 30")
    parser.add_argument("--size", type=size, default=None, metavar="WxH")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--decoder", choices=("tiny", "wan"), default="tiny", help="of random-1.3b")
    parser.add_argument("--attention", choices=(AUTO, *BACKENDS), default=AUTO)
    parser.add_argument("--speed", choices=SPEEDS, default=PLAIN)


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    device = torch.device(usable_device(options.device))
    check(options)
    with torch.inference_mode():
        if options.what == "attention":
            print_attention(options, device)
        else:
            print(json.dumps(figures(options, device), indent=2))


def check(options: argparse.Namespace) -> None:
    """ValueError for what cannot be measured."""
    if options.layers is not None and not 1 <= options.layers <= LONGLIVE_1_3B.model.num_layers:
        raise ValueError(f"--layers {options.layers} is not possible; choose 1 to 30")
    if not 0 < options.seconds <= MAX_BENCH_SECONDS:
        raise ValueError(f"--seconds {options.seconds:g} is not possible; choose more than 0, at most 3600")


def figures(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """The transformer alone, then everything to the file; what is long is left out."""
    pipeline = pipeline_of(options, device)
    width, height = options.size or (None, None)
    prompts = {0.0: "a red circle drifts right over navy", SWITCH_SECONDS: "it turns into a blue star"}
    text = "\n".join(f"{at} => {prompt}" for at, prompt in prompts.items() if at < options.seconds)
    request = Request(PromptSchedule.parse(text), options.seconds, 0, width, height)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    made = {"rollout": rollout_figures(pipeline, request, card), "all": end_to_end_figures(pipeline, request)}
    for part, long in (("rollout", "seconds_by_block"), ("all", "arrivals")):
        made[part].pop(long)
    return {"device": card or device.type, "model": pipeline.preset.name, **made}


def pipeline_of(options: argparse.Namespace, device: torch.device) -> Pipeline:
    """Mini, or the true architecture with random weights."""
    speed = Speed(options.speed, options.attention)
    if options.model == MINI.name:
        if device.type != "cpu":
            raise ValueError("mini is measured on the CPU; choose --device cpu or --model random-1.3b")
        return load_pipeline(MINI.name, options.attention, options.speed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return random_pipeline(device, dtype, speed, options.decoder, options.layers)


def print_attention(options: argparse.Namespace, device: torch.device) -> None:
    """Every backend's time for a block on a full window, and which one is taken from now on."""
    preset = MINI if options.model == MINI.name else LONGLIVE_1_3B
    width, height = options.size or (preset.width, preset.height)
    tokens = tokens_per_frame(*latent_size(width, height))
    shape = AttentionShape.of(preset.model, preset.window, tokens)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for timing in measured(shape, device, dtype, BACKENDS):
        time = f"{timing.seconds * 1000:9.3f} ms" if timing.seconds else f"   -         {timing.reason}"
        print(f"{timing.name:<12}{time}")
    print(f"auto takes {fastest_attention(shape, device, dtype)}, remembered in {default_memory()}")
