"""Where the time of a rollout goes: marks on the device's own clock, read when all is done."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..memory import GIB
from ..model.cache import KVCache
from ..pipeline import Pipeline, Plan
from ..rollout.rollout import Hook
from ..rollout.scene import Scene
from .limits import block_flops, frames_per_second, least_seconds


class Clock:
    """Marks in time that cost nothing: on a GPU they are events in its queue."""

    def __init__(self, device: torch.device):
        self._device = device

    def mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks; waits for the later one."""
        if self._device.type != "cuda":
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


@dataclass
class BlockMarks:
    """When the parts of a block were done."""

    start: Any
    recached: Any = None
    steps: list[Any] = field(default_factory=list)
    committed: Any = None


class Phases(Hook):
    """A hook that marks recache, denoising and commit of every block."""

    def __init__(self, device: torch.device):
        self._clock = Clock(device)
        self.blocks: list[BlockMarks] = []
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_open(self, scene: Scene) -> None:
        self.blocks.append(BlockMarks(self._clock.mark()))

    def on_recache(self, block: int, cache: KVCache) -> None:
        self.blocks[-1].recached = self._clock.mark()

    def on_step(self, block: int, step: int, flow: Tensor, clean: Tensor) -> None:
        self.blocks[-1].steps.append(self._clock.mark())

    def on_commit(self, block: int, cache: KVCache) -> None:
        self.blocks[-1].committed = mark = self._clock.mark()
        self.blocks.append(BlockMarks(mark))

    def seconds(self) -> list[dict[str, float]]:
        """Of every finished block: recache, denoise, commit and block (all of it but the recache)."""
        return [self._of_block(marks) for marks in self.blocks if marks.committed is not None]

    def _of_block(self, marks: BlockMarks) -> dict[str, float]:
        start, between = marks.recached or marks.start, self._clock.seconds
        denoise, commit = between(start, marks.steps[-1]), between(marks.steps[-1], marks.committed)
        recache = between(marks.start, start) if marks.recached else 0.0
        return {"recache": recache, "denoise": denoise, "commit": commit, "block": denoise + commit}


def rollout_figures(pipeline: Pipeline, plan: Plan, gpu: str = "", bits: int = 16) -> dict[str, Any]:
    """The transformer alone over a whole video: frames a second, phases, percent of the GPU's limit.

    Medians are of the blocks whose window is full and that no recache precedes. `gpu` is the name by which
    limits.py knows the hardware.
    """
    phases = Phases(pipeline.model.device)
    reset_peak(pipeline.model.device)
    for _ in pipeline.blocks(plan, phases):
        pass
    blocks = phases.seconds()
    full = plan.window.window_latent_frames // plan.window.block_latent_frames
    steady = [block for block in blocks[full:] if not block["recache"]] or blocks
    seconds = median(block["block"] for block in steady)
    limit = least_seconds(block_flops(pipeline.preset, plan.width, plan.height), gpu, bits)
    recaches = [block["recache"] for block in blocks[full:] if block["recache"]]
    return {
        "blocks": len(blocks),
        "block_seconds": round(seconds, 5),
        "denoise_seconds": round(median(block["denoise"] for block in steady), 5),
        "commit_seconds": round(median(block["commit"] for block in steady), 5),
        "recache_seconds": round(median(recaches), 5) if recaches else None,
        "frames_per_second": round(frames_per_second(pipeline.preset, seconds), 2),
        "percent_of_limit": round(100 * limit / seconds, 1) if limit else None,
        "peak_gib": peak_gib(pipeline.model.device),
        "notes": phases.notes,
        "seconds_by_block": [round(block["block"], 5) for block in blocks],
    }


def late_to_early(times: list[float], span: int) -> float | None:
    """Median of the last `span` intervals over that of the first `span`; None where there are too few."""
    if len(times) < 2 * span:
        return None
    return round(median(times[-span:]) / median(times[:span]), 4)


def intervals(arrivals: list[float]) -> list[float]:
    return [late - early for early, late in pairwise(arrivals)]


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """The most that was allocated on a GPU since the last reset; None elsewhere."""
    return round(torch.cuda.max_memory_allocated(device) / GIB, 2) if device.type == "cuda" else None
