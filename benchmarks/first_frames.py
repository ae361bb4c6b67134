"""How long the first frames of a video take, and on what."""

import time
from statistics import median

from longlive_core.pipeline import Pipeline, Plan
from longlive_core.rollout.rollout import Hook
from longlive_core.rollout.scene import Scene

REPEATS = 5


class Opening(Hook):
    """Marks when the rollout begins: the model is ready, the prompt encoded, the cache allocated."""

    time = 0.0

    def on_open(self, scene: Scene) -> None:
        self.time = time.perf_counter()


def first_frames_figures(pipeline: Pipeline, plan: Plan, repeats: int = REPEATS) -> dict[str, float]:
    """Medians over warm starts, in seconds: until the rollout began, its first block, its frames, and all.

    The first start, which may compile, does not count.
    """
    starts = [first_frames(pipeline, plan) for _ in range(repeats + 1)][1:]
    return {part: round(median(start[part] for start in starts), 4) for part in starts[0]}


def first_frames(pipeline: Pipeline, plan: Plan) -> dict[str, float]:
    """Of two starts: one ends with its first block of latents, the other with its first frames."""
    opening, begun = Opening(), time.perf_counter()
    next(iter(pipeline.blocks(plan, opening)))
    has_latents = time.perf_counter()
    next(iter(pipeline.run(plan))).uint8()
    whole = time.perf_counter() - has_latents
    ready, latents = opening.time - begun, has_latents - opening.time
    return {
        "ready_seconds": ready,
        "latents_seconds": latents,
        "frames_seconds": max(0.0, whole - ready - latents),
        "first_frames_seconds": whole,
    }
