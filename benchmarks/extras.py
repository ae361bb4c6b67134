"""`python -m benchmarks.extras`: what could be left out without training, what it gains and what it costs.

The judge looks at Mini's videos, on the same seeds and prompts. The gain is that of a block's median seconds,
all variants timed in turn in one run.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import report
from longlive_core.config import MINI, Policy, SigmaConfig, WindowConfig
from longlive_core.mini.loader import Mini, load_mini
from longlive_core.model.causal_wan import CausalWan
from longlive_core.pipeline import Request, load_pipeline
from longlive_core.schedule.schedule import PromptSchedule
from longlive_training import evaluate

BLOCKS = 40
REPEATS = 5
LONG_SECONDS = 60


class WithoutCommit:
    """A model whose blocks leave behind the K and V of their last denoising step, at sigma 0.625."""

    def __init__(self, model: CausalWan):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *inputs: Any) -> torch.Tensor:
        return self._model(*inputs)

    def fill_cache(self, latents: torch.Tensor, *inputs: Any) -> None:
        """A recache, which has other sizes than a block, is not left out."""
        if latents.shape[2] != MINI.window.block_latent_frames:
            self._model.fill_cache(latents, *inputs)


EXTRAS = {
    "plain": (MINI.sigmas, False),
    "no commit": (MINI.sigmas, True),
    "3 steps": (SigmaConfig((1000, 750, 250)), False),
    "2 steps": (SigmaConfig((1000, 500)), False),
}


def changed(model: CausalWan, is_uncommitted: bool) -> Any:
    return WithoutCommit(model) if is_uncommitted else model


def judged(videos: int) -> dict[str, Any]:
    """What the judge sees of each: one prompt for 10 s, a switch, the last 10 s of a minute."""
    found = {}
    for name, (sigmas, is_uncommitted) in EXTRAS.items():
        mini: Mini = load_mini()
        mini = mini._replace(transformer=changed(mini.transformer, is_uncommitted))
        with mock.patch.object(evaluate, "MINI", replace(MINI, sigmas=sigmas)):
            found[name] = {
                "one prompt, 10 s": evaluate.single_prompt_figures(mini, videos, 10, WindowConfig()),
                "switch at 5 s": evaluate.switch_figures(mini, videos, Policy.RECACHE),
                "one prompt, 60 s": evaluate.single_prompt_figures(mini, videos // 2, LONG_SECONDS),
            }
        print(name, found[name], flush=True)
    return found


def block_seconds() -> dict[str, float]:
    """Median seconds of a steady block, the variants in turn."""
    pipelines = {}
    for name, (sigmas, is_uncommitted) in EXTRAS.items():
        pipeline = load_pipeline("mini")
        pipeline.preset = replace(MINI, sigmas=sigmas)
        pipeline.model = changed(pipeline.model, is_uncommitted)
        pipelines[name] = pipeline
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(REPEATS):
        for name, pipeline in pipelines.items():
            request = Request(PromptSchedule.single("a red circle circles over navy"), BLOCKS * 0.75)
            start = time.perf_counter()
            made = sum(1 for _ in pipeline.blocks(pipeline.plan(request)))
            times[name].append((time.perf_counter() - start) / made)
    return {name: round(statistics.median(seconds), 5) for name, seconds in times.items()}


def main() -> None:
    """Print and keep all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        seconds = block_seconds()
        gains = {name: round(seconds["plain"] / value, 3) for name, value in seconds.items()}
        report("extras", {"block_seconds": seconds, "gain": gains, "judge": judged(options.videos)})


if __name__ == "__main__":
    main()
