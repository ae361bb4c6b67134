"""How long the first frames of a video take, and on what."""

import time
from dataclasses import replace
from statistics import median
from typing import Any

from torch import Tensor

from ..pipeline import Pipeline, Request
from ..rollout.rollout import Hook
from ..rollout.scene import Scene
from ..vae.streaming import Decoder

REPEATS = 5


class Opening(Hook):
    """Marks when the rollout begins: the model is ready, the prompt read, the cache there."""

    def __init__(self):
        self.time = 0.0

    def on_open(self, scene: Scene) -> None:
        self.time = time.perf_counter()


class Watched:
    """A decoder that marks when the first latents come to it, which are finished then."""

    def __init__(self, inner: Decoder):
        self.inner, self.time = inner, 0.0

    def decode(self, latents: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        self.time = self.time or time.perf_counter()
        return self.inner.decode(latents, past)


def first_frames_figures(pipeline: Pipeline, request: Request, repeats: int = REPEATS) -> dict[str, float]:
    """Medians over warm starts, in seconds: until the rollout began, its first block, its frames, and all.

    The first start, which may compile and measure, does not count.
    """
    starts = [first_frames(pipeline, request) for _ in range(repeats + 1)][1:]
    return {part: round(median(start[part] for start in starts), 4) for part in starts[0]}


def first_frames(pipeline: Pipeline, request: Request) -> dict[str, float]:
    """Of one start, which ends with its first frames."""
    opening, decoder = Opening(), Watched(pipeline.decoder)
    begun = time.perf_counter()
    chunks = replace(pipeline, decoder=decoder).run(request, opening)
    next(chunks).pictures()
    done = time.perf_counter()
    chunks.close()
    return {
        "ready_seconds": opening.time - begun,
        "latents_seconds": decoder.time - opening.time,
        "frames_seconds": done - decoder.time,
        "first_frames_seconds": done - begun,
    }
