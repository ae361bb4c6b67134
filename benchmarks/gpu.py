"""`python -m benchmarks.gpu`: all that needs a card, in one go. LongLive-1.3B, true size, random weights.

Cases run one after the other and each is written to benchmarks/results/gpu.json as soon as it is done, so a
card that is lent for a short time leaves what it managed. About six minutes on an H200; `--only` chooses.
`--device cpu --layers 2 --size 64x64 --seconds 4` tries the script out.
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from longlive_core.model.fastest import AttentionShape, measured
from longlive_core.speed import COMPILED, SPEEDS, Speed
from longlive_core.weights.arithmetic import settle_arithmetic

from benchmarks.measure import RESULTS, machine
from benchmarks.plain import PlainScene
from benchmarks.plots import plot
from longlive_core.bench.end_to_end import end_to_end_figures
from longlive_core.bench.first_frames import first_frames_figures
from longlive_core.bench.limits import block_flops, frames_per_second, least_seconds
from longlive_core.bench.phases import Clock, rollout_figures
from longlive_core.bench.random_model import embeds_of, random_pipeline
from longlive_core.cli.options import size
from longlive_core.config import LONGLIVE_1_3B
from longlive_core.geometry import latent_size, tokens_per_frame
from longlive_core.memory import GIB, Setting, estimate
from longlive_core.model.attention import BACKENDS
from longlive_core.pipeline import Pipeline, Request
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.files import first_line
from longlive_core.weights.quantize import PRECISIONS, quantize

SHORT_SECONDS = 15.0
LONG_SECONDS = 240.0
SWITCH_EVERY_SECONDS = 5.0
PLAIN_BLOCKS = 3  # behind a full window
Case = Callable[[], dict[str, Any]]


class Bench:
    """What all cases share: device, size of the model and of the video."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device(options.device)
        self.width, self.height = options.size
        self.layers, self.longest = options.layers, options.seconds
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    def cases(self) -> dict[str, Case]:
        """By name, in the order of what matters most."""
        return {
            "limit": self.limit,
            "attention": self.attention,
            **{f"dit {layers}": partial(self.rollout, Speed(layers, "auto")) for layers in SPEEDS},
            "dit plain twin": self.plain_twin,
            "all tiny": partial(self.end_to_end, "tiny", LONG_SECONDS),
            "all wan": partial(self.end_to_end, "wan", LONG_SECONDS / 4),
            **{f"first {decoder}": partial(self.first_frames, decoder) for decoder in ("tiny", "wan")},
            **{f"dit {name}": partial(self.small, name) for name in ("fp8-fast", "int8")},
        }

    def limit(self) -> dict[str, Any]:
        """The arithmetic of a block, and the fastest it could be here."""
        flops = block_flops(LONGLIVE_1_3B, self.width, self.height)
        seconds = least_seconds(flops, self.card)
        fps = round(frames_per_second(LONGLIVE_1_3B, seconds), 1) if seconds else None
        return {"tflop_a_block": round(flops.total / 1e12, 2), "frames_per_second": fps}

    def attention(self) -> dict[str, Any]:
        """Milliseconds of every backend for a block on a full window."""
        tokens = tokens_per_frame(*latent_size(self.width, self.height))
        shape = AttentionShape.of(LONGLIVE_1_3B.model, LONGLIVE_1_3B.window, tokens)
        rows = measured(shape, self.device, self.dtype, BACKENDS)
        return {row.name: round(row.seconds * 1000, 3) if row.seconds else row.reason for row in rows}

    def rollout(self, speed: Speed) -> dict[str, Any]:
        """The transformer alone, with prompt switches."""
        return rollout_figures(self.pipeline(speed), self.request(SHORT_SECONDS), self.card)

    def small(self, precision: str) -> dict[str, Any]:
        """The same with the layers in 8 bits, in arithmetic too where that is faster here."""
        pipeline = self.pipeline(Speed(COMPILED, "auto"))
        quantize(pipeline.model, PRECISIONS[precision].stored)
        notes = settle_arithmetic(pipeline.model, precision, self.device, is_compiled=True)
        made = rollout_figures(pipeline, self.request(SHORT_SECONDS), self.card, bits=8)
        return {**made, "notes": [*notes, *made["notes"]]}

    def end_to_end(self, decoder: str, seconds: float) -> dict[str, Any]:
        """Prompt to file, compiled, after a short video that warms up."""
        pipeline = self.pipeline(Speed(COMPILED, "auto"), decoder)
        warm_up = end_to_end_figures(pipeline, self.request(min(seconds, SHORT_SECONDS)))
        window = pipeline.preset.window
        setting = Setting(self.width, self.height, decoder=decoder, window=window)
        return {
            **end_to_end_figures(pipeline, self.request(seconds)),
            "first_frames_seconds_cold": warm_up["first_frames_seconds"],
            "planned_gib": round(estimate(pipeline.preset, setting, self.device).total / GIB, 2),
        }

    def first_frames(self, decoder: str) -> dict[str, Any]:
        """What the first frames wait for, after a short video that warms up."""
        pipeline = self.pipeline(Speed(COMPILED, "auto"), decoder)
        return first_frames_figures(pipeline, self.request(SHORT_SECONDS))

    def plain_twin(self) -> dict[str, Any]:
        """Seconds of a steady block computed without any care for speed (plain.py)."""
        pipeline = self.pipeline(Speed())
        plan = pipeline.plan(self.request(SHORT_SECONDS))
        noise, clock = SeededNoise(0, plan.block_shape), Clock(self.device)
        sigmas, embeds = shifted_sigmas(pipeline.preset.sigmas), embeds_of("plain", pipeline.preset)
        scene = PlainScene(pipeline.model, torch.empty(plan.block_shape), plan.window)
        marks = [clock.mark()]
        for block in range(4 + PLAIN_BLOCKS):
            drawn = [noise(block, step).to(self.device) for step in range(len(sigmas))]
            scene.run_block(drawn, sigmas, embeds.to(self.device))
            marks.append(clock.mark())
        seconds = clock.seconds(marks[-1 - PLAIN_BLOCKS], marks[-1]) / PLAIN_BLOCKS
        fps = frames_per_second(pipeline.preset, seconds)
        return {"block_seconds": round(seconds, 5), "frames_per_second": round(fps, 2)}

    def pipeline(self, speed: Speed, decoder: str = "tiny") -> Pipeline:
        return random_pipeline(self.device, self.dtype, speed, decoder, self.layers, LONGLIVE_1_3B)

    def request(self, seconds: float) -> Request:
        """A video of that length or the longest allowed, with a new prompt every few seconds."""
        seconds = min(seconds, self.longest)
        times = range(0, int(-(-seconds // SWITCH_EVERY_SECONDS)))
        cues = "\n".join(f"{turn * SWITCH_EVERY_SECONDS:g}s => prompt {turn}" for turn in times)
        return Request(PromptSchedule.parse(cues), seconds, 0, self.width, self.height)


def run(cases: dict[str, Case], out: Path) -> Iterator[str]:
    """Run and keep case after case; one that fails says why and the next one goes on.

    Cases that were measured on the same card before and are not asked for stay as they were.
    """
    here = machine()
    before = json.loads(out.read_text()) if out.exists() else {}
    is_same = all(before.get(name) == here[name] for name in ("device", "torch"))
    results = {**here, "cases": before["cases"] if is_same else {}}
    for name, case in cases.items():
        try:
            results["cases"][name] = case()
        except (RuntimeError, ValueError) as error:
            results["cases"][name] = {"failed": first_line(error)}
        results["cases"][name]["commit"] = here["commit"]
        out.write_text(json.dumps(results, indent=2) + "\n")
        yield f"{name}: {json.dumps(short(results['cases'][name]))}"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def short(figures: dict[str, Any]) -> dict[str, Any]:
    """Without the long lists."""
    return {name: value for name, value in figures.items() if name not in ("seconds_by_block", "arrivals")}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=None, help="fewer than 30, to try it out")
    parser.add_argument("--size", type=size, default=(LONGLIVE_1_3B.width, LONGLIVE_1_3B.height))
    parser.add_argument("--seconds", type=float, default=LONG_SECONDS, help="of the longest video")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="some of the cases, by name")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the cases, keep their figures, draw them."""
    options = parse(arguments)
    cases = Bench(options).cases()
    if unknown := set(options.only or ()) - set(cases):
        raise SystemExit(f"no case is called {', '.join(unknown)}; choose from {', '.join(cases)}")
    chosen = {name: cases[name] for name in options.only or cases}
    with torch.inference_mode():
        for line in run(chosen, options.out):
            print(line, flush=True)
    plot(options.out, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
