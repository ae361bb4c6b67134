"""`python -m benchmarks.generator`: a block and a recache of ours against the plain twin, at true width.

Two layers, 390 tokens a latent frame, the window full: small enough for a CPU, with the proportions of the
real thing. All variants take turns in one run; ratios are those of medians. With `--threads 1` the clock is
the CPU time of the process, so that other work on the machine counts little. `--dtype bf16` compares what our
loader makes of bf16 on this machine with bf16 throughout.
"""

import argparse
import time
from typing import Any

import torch
from longlive_core.model.compiled import compile_layers
from longlive_core.speed import Speed

from benchmarks.measure import in_turn, report
from benchmarks.plain import PlainScene
from longlive_core.bench.random_model import embeds_of, random_pipeline
from longlive_core.config import LONGLIVE_1_3B, Policy
from longlive_core.geometry import latent_size, tokens_per_frame
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Block, Hook, commit, denoise, recache
from longlive_core.rollout.scene import Scene
from longlive_core.weights.checkpoints import settle

WIDTH, HEIGHT, LAYERS = 416, 240, 2
GROWTH = 4  # blocks until the window is full
CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Ours:
    """Our rollout, block by block."""

    def __init__(self, model: CausalWan, noise: SeededNoise, embeds: torch.Tensor):
        self._noise, self._sigmas = noise, shifted_sigmas(LONGLIVE_1_3B.sigmas)
        self._text = model.encode_text(embeds)
        self.scene = Scene(model, torch.empty(noise.shape), LONGLIVE_1_3B.window, 0)

    def block(self) -> None:
        made = denoise(self.scene, self._text, self._noise, self._sigmas, 0, Hook())
        commit(self.scene, self._text, Block(0, made, opens_scene=False), Hook())

    def recache(self) -> None:
        recache(self.scene, self._text, Policy.RECACHE)


class Plain:
    """The plain twin, with its noise drawn beforehand."""

    def __init__(self, model: CausalWan, noise: SeededNoise, embeds: torch.Tensor):
        self._sigmas, self._embeds = shifted_sigmas(LONGLIVE_1_3B.sigmas), embeds
        self._noise = [noise(0, step) for step in range(len(self._sigmas))]
        self.scene = PlainScene(model, torch.empty(noise.shape), LONGLIVE_1_3B.window)

    def block(self) -> None:
        self.scene.run_block(self._noise, self._sigmas, self._embeds)

    def recache(self) -> None:
        self.scene.recache(self._embeds)


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of a block and of a recache, and how many times faster than the twin."""
    dtype = DTYPES[options.dtype]
    pipeline = random_pipeline(CPU, dtype, Speed(), num_layers=LAYERS)
    cells = latent_size(WIDTH, HEIGHT)
    noise = SeededNoise(0, (1, LONGLIVE_1_3B.model.latent_channels, 3, *cells))
    embeds = embeds_of("a prompt", pipeline.preset)
    compiled, notes = random_pipeline(CPU, dtype, Speed(), num_layers=LAYERS).model, []
    for model in (pipeline.model, compiled):
        settle(model, options.dtype, CPU)
    if options.compile:
        notes.append(compile_layers(compiled, 1, 3, tokens_per_frame(*cells)))
    models = {"ours": pipeline.model} | ({"compiled": compiled} if options.compile else {})
    runs = {name: Ours(model, noise, embeds) for name, model in models.items()}
    runs["plain"] = Plain(random_pipeline(CPU, dtype, Speed(), num_layers=LAYERS).model, noise, embeds)
    for run in runs.values():
        for _ in range(GROWTH):
            run.block()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    block = in_turn({name: run.block for name, run in runs.items()}, options.repeats, clock)
    again = in_turn({name: run.recache for name, run in runs.items()}, options.repeats, clock)
    return {
        "dtype": options.dtype,
        "our_arithmetic": str(pipeline.model.dtype),
        "clock": clock.__name__,
        "tokens_a_frame": tokens_per_frame(*cells),
        "layers": LAYERS,
        "notes": notes,
        "block": with_gains(block),
        "recache": with_gains(again),
    }


def with_gains(seconds: dict[str, float]) -> dict[str, Any]:
    gains = {name: round(seconds["plain"] / value, 3) for name, value in seconds.items() if name != "plain"}
    return {"seconds": seconds, "times_faster_than_plain": gains}


def main() -> None:
    """Print and keep all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        report("generator" if options.dtype == "fp32" else "generator_bf16", figures(options))


if __name__ == "__main__":
    main()
