"""`python -m benchmarks.generator`: a block and a recache of ours against the plain twin, at true width.

Two layers, 390 tokens a latent frame, the window full: small enough for a CPU, with the proportions of the
real thing. All variants alternate in one run; ratios are those of medians. With `--threads 1` the clock is
the CPU time of the process, so that other work on the machine counts little. `--dtype bf16` compares what our
loader makes of bf16 on this machine with bf16 throughout. `--size 64x64 --out /tmp/tried` tries it out.
"""

import argparse
from typing import Any

import torch

from benchmarks.measure import clock_of, in_turn, report
from benchmarks.plain import PlainScene
from longlive_core.bench.random_model import embeds_of, random_pipeline
from longlive_core.cli.options import size
from longlive_core.config import LONGLIVE_1_3B, Policy
from longlive_core.geometry import latent_size, tokens_per_frame
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, commit, denoise, recache
from longlive_core.rollout.scene import Scene
from longlive_core.weights.checkpoints import settle
from longlive_core.weights.files import first_line

LAYERS = 2
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
        commit(self.scene, self._text, made)

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
    dtype, cells = DTYPES[options.dtype], latent_size(*options.size)
    noise = SeededNoise(0, (1, LONGLIVE_1_3B.model.latent_channels, 3, *cells))
    embeds, models = embeds_of("a prompt", LONGLIVE_1_3B), {}
    for name in ("ours", "compiled") if options.compile else ("ours",):
        models[name] = random_pipeline(CPU, dtype, num_layers=LAYERS).model
        settle(models[name], options.dtype, CPU)
        models[name].compile_layers(name == "compiled")
    runs = {name: Ours(model, noise, embeds) for name, model in models.items()}
    runs["plain"] = Plain(random_pipeline(CPU, dtype, num_layers=LAYERS).model, noise, embeds)
    for run in runs.values():
        for _ in range(GROWTH):
            run.block()
    clock = clock_of(CPU)
    block = in_turn({name: run.block for name, run in runs.items()}, options.repeats, clock)
    again = in_turn({name: run.recache for name, run in runs.items()}, options.repeats, clock)
    failures = {name: model.compile_failure for name, model in models.items() if model.compile_failure}
    return {
        "dtype": options.dtype,
        "our_arithmetic": str(models["ours"].dtype),
        "clock": clock.__name__,
        "tokens_a_frame": tokens_per_frame(*cells),
        "layers": LAYERS,
        "failures": {name: first_line(failure) for name, failure in failures.items()},
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
    parser.add_argument("--size", type=size, default=(416, 240))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", help="the name of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        usual = "generator" if options.dtype == "fp32" else "generator_bf16"
        report(options.out or usual, figures(options))


if __name__ == "__main__":
    main()
