"""`python -m benchmarks.gpu`: all that needs a GPU, in one go. LongLive-1.3B, true size, random weights.

Cases run one after the other and each is written to benchmarks/results/gpu.json as soon as it is done, so a
GPU that is lent for a short time leaves what it managed. About six minutes on an H200; `--only` chooses.
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
from torch import Tensor

from benchmarks.first_frames import first_frames_figures
from benchmarks.measure import RESULTS, clock_of, in_turn, machine
from benchmarks.plain import PlainScene
from benchmarks.plots import plot
from longlive_core.bench.end_to_end import end_to_end_figures
from longlive_core.bench.limits import block_flops, frames_per_second, least_seconds
from longlive_core.bench.phases import mark, rollout_figures, seconds_between
from longlive_core.bench.random_model import embeds_of, random_pipeline
from longlive_core.cli.options import size
from longlive_core.config import LONGLIVE_1_3B
from longlive_core.fast.compiled import COMPILED, EAGER
from longlive_core.geometry import latent_size, tokens_per_frame
from longlive_core.memory import GIB, Setting, estimate
from longlive_core.model.attention import AUTO, BACKENDS, attention_backend
from longlive_core.pipeline import Pipeline, Plan, Request
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.checkpoints import settle
from longlive_core.weights.files import first_line
from longlive_core.weights.quantize import PRECISIONS, quantize

MEMORY_SECONDS = 6.0  # the window is full after 2.3, and recached once
SHORT_SECONDS = 15.0
LONG_SECONDS = 240.0
SWITCH_EVERY_SECONDS = 5.0
GROWTH, PLAIN_BLOCKS = 4, 3  # blocks of the plain twin: until its window is full, and then measured
CALLS, REPEATS = 10, 5  # of an attention kernel
SETTINGS = (("bf16", "tiny"), ("fp8", "tiny"), ("bf16", "wan"))  # whose memory is measured
Case = Callable[[], dict[str, Any]]


class Bench:
    """What all cases share: device, size of the model and of the video."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device(options.device)
        self.width, self.height = options.size
        self.layers, self.longest = options.layers, options.seconds
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    def cases(self) -> dict[str, Case]:
        """By name, in the order of what matters most."""
        return {
            "limit": self.limit,
            "attention": self.attention,
            **{f"dit {speed}": partial(self.rollout, speed) for speed in (EAGER, COMPILED)},
            "dit plain twin": self.plain_twin,
            "all tiny": partial(self.end_to_end, "tiny", LONG_SECONDS),
            "all wan": partial(self.end_to_end, "wan", LONG_SECONDS / 4),
            **{f"memory {' '.join(setting)}": partial(self.memory, *setting) for setting in SETTINGS},
            **{f"first {decoder}": partial(self.first_frames, decoder) for decoder in ("tiny", "wan")},
            "dit fp8-fast": partial(self.rollout, COMPILED, "fp8-fast"),
        }

    def limit(self) -> dict[str, Any]:
        """The arithmetic of a block, and the fastest it could be here."""
        flops = block_flops(LONGLIVE_1_3B, self.width, self.height)
        seconds = least_seconds(flops, self.gpu)
        fps = round(frames_per_second(LONGLIVE_1_3B, seconds), 1) if seconds else None
        return {"tflop_a_block": round(flops.total / 1e12, 2), "frames_per_second": fps}

    def attention(self) -> dict[str, Any]:
        """Milliseconds of every backend for a block on a full window, or why it cannot run."""
        model, window = LONGLIVE_1_3B.model, LONGLIVE_1_3B.window
        tokens, works, found = tokens_per_frame(*latent_size(self.width, self.height)), {}, {}
        frames = (window.block_latent_frames, window.window_latent_frames, window.window_latent_frames)
        shapes = ((1, count * tokens, model.num_heads, model.head_dim) for count in frames)
        qkv = [torch.randn(shape, device=self.device, dtype=self.dtype) for shape in shapes]
        for name in BACKENDS:
            try:
                works[name] = partial(repeated, attention_backend(name, self.device), qkv)
            except ValueError as error:
                found[name] = str(error)
        seconds = in_turn(works, REPEATS, clock_of(self.device))
        return {name: round(1000 * value / CALLS, 4) for name, value in seconds.items()} | found

    def rollout(self, speed: str, precision: str = "bf16") -> dict[str, Any]:
        """The transformer alone, with prompt switches."""
        pipeline, notes = self.pipeline(speed, precision=precision)
        bits = 8 if PRECISIONS[precision].has_8_bit_products else 16
        made = rollout_figures(pipeline, self.plan(pipeline, SHORT_SECONDS), self.gpu, bits)
        return {**made, "notes": [*notes, *made["notes"]]}

    def end_to_end(self, decoder: str, seconds: float) -> dict[str, Any]:
        """Prompt to file, compiled, after a short video that warms up."""
        pipeline, _ = self.pipeline(COMPILED, decoder)
        warm_up = end_to_end_figures(pipeline, self.plan(pipeline, SHORT_SECONDS))
        return {
            **end_to_end_figures(pipeline, self.plan(pipeline, seconds)),
            "first_frames_seconds_cold": warm_up["first_frames_seconds"],
        }

    def memory(self, precision: str, decoder: str) -> dict[str, Any]:
        """GiB planned, and taken by an eager video with a recache (None but on a GPU)."""
        pipeline, _ = self.pipeline(EAGER, decoder, precision)
        setting = Setting(self.width, self.height, precision, decoder)
        planned = estimate(pipeline.preset, setting, self.device).total
        made = end_to_end_figures(pipeline, self.plan(pipeline, MEMORY_SECONDS))
        measured = {name: value for name, value in made.items() if name.endswith("_gib")}
        return {"planned_gib": round(planned / GIB, 2), **measured}

    def first_frames(self, decoder: str) -> dict[str, Any]:
        """What the first frames wait for, after a short video that warms up."""
        pipeline, _ = self.pipeline(COMPILED, decoder)
        return first_frames_figures(pipeline, self.plan(pipeline, SHORT_SECONDS))

    def plain_twin(self) -> dict[str, Any]:
        """Seconds of a steady block computed without any care for speed (plain.py)."""
        pipeline, _ = self.pipeline(EAGER)
        plan = self.plan(pipeline, SHORT_SECONDS)
        noise, sigmas = SeededNoise(0, plan.block_shape), shifted_sigmas(pipeline.preset.sigmas)
        embeds = embeds_of("plain", pipeline.preset).to(self.device)
        scene = PlainScene(pipeline.model, torch.empty(plan.block_shape), plan.window)
        marks = [mark(self.device)]
        for block in range(GROWTH + PLAIN_BLOCKS):
            drawn = [noise(block, step).to(self.device) for step in range(len(sigmas))]
            scene.run_block(drawn, sigmas, embeds)
            marks.append(mark(self.device))
        seconds = seconds_between(marks[GROWTH], marks[-1]) / PLAIN_BLOCKS
        fps = frames_per_second(pipeline.preset, seconds)
        return {"block_seconds": round(seconds, 5), "frames_per_second": round(fps, 2)}

    def pipeline(
        self, speed: str, decoder: str = "tiny", precision: str = "bf16"
    ) -> tuple[Pipeline, tuple[str, ...]]:
        """A random model, and notes on its precision; nothing of how it was made stays in memory."""
        made = random_pipeline(self.device, self.dtype, decoder, AUTO, speed, self.layers, LONGLIVE_1_3B)
        if PRECISIONS[precision].is_8_bit:
            quantize(made.model, PRECISIONS[precision].stored)
        notes = settle(made.model, precision, self.device)
        free_memory()
        return made, notes

    def plan(self, pipeline: Pipeline, seconds: float) -> Plan:
        """A video of that length or the longest allowed, with a new prompt every few seconds."""
        seconds = min(seconds, self.longest)
        times = range(0, int(-(-seconds // SWITCH_EVERY_SECONDS)))
        cues = "\n".join(f"{turn * SWITCH_EVERY_SECONDS:g}s => prompt {turn}" for turn in times)
        return pipeline.plan(Request(PromptSchedule.parse(cues), seconds, 0, self.width, self.height))


def repeated(attend: Callable[..., Tensor], qkv: list[Tensor]) -> None:
    """Attention, CALLS times."""
    for _ in range(CALLS):
        attend(*qkv)


def free_memory() -> None:
    """Give back what nothing uses, to the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(cases: dict[str, Case], chosen: list[str], out: Path) -> Iterator[str]:
    """Run and keep the chosen cases; one that fails says why and the next one goes on.

    Others stay as they were measured before on the same GPU.
    """
    here = machine()
    before = json.loads(out.read_text()) if out.exists() else {}
    is_same = all(before.get(name) == here[name] for name in ("device", "torch"))
    kept = {name: figures for name, figures in before.get("cases", {}).items() if is_same and name in cases}
    results = {**here, "cases": kept}
    for name in chosen:
        try:
            results["cases"][name] = cases[name]()
        except (RuntimeError, ValueError) as error:
            results["cases"][name] = {"failed": first_line(error)}
        results["cases"][name]["commit"] = here["commit"]
        out.write_text(json.dumps(results, indent=2) + "\n")
        yield f"{name}: {json.dumps(short(results['cases'][name]))}"
        free_memory()


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
    with torch.inference_mode():
        for line in run(cases, options.only or list(cases), options.out):
            print(line, flush=True)
    plot(options.out, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
