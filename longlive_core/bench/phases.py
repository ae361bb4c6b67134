"""Where the time of a rollout goes: marks on the device's own clock, read when all is done."""

import time
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

MEMORY = ("peak_gib", "reserved_gib", "device_gib")


def mark(device: torch.device) -> Any:
    """A point in time that costs nothing to take: on a GPU an event in its queue."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(start: Any, end: Any) -> float:
    """Between two marks of one device; waits for the later one."""
    if isinstance(end, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


class Phases(Hook):
    """A hook that marks recache, denoising and commit of every block."""

    def __init__(self, device: torch.device):
        self.notes: list[str] = []
        self._device = device
        self._marks: list[tuple[Any, ...]] = []  # of each block: begun, recached or None, denoised, committed
        self._begun = self._recached = self._denoised = None

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_open(self, scene: Scene) -> None:
        self._begun = mark(self._device)

    def on_recache(self, block: int, cache: KVCache) -> None:
        self._recached = mark(self._device)

    def on_step(self, block: int, step: int, flow: Tensor, clean: Tensor) -> None:
        self._denoised = mark(self._device)

    def on_commit(self, block: int, cache: KVCache) -> None:
        committed = mark(self._device)
        self._marks.append((self._begun, self._recached, self._denoised, committed))
        self._begun, self._recached = committed, None

    def seconds(self) -> list[dict[str, float]]:
        """Of every finished block: recache, denoise, commit and block (all of it but the recache)."""
        return [of_block(*marks) for marks in self._marks]


def of_block(begun: Any, recached: Any, denoised: Any, committed: Any) -> dict[str, float]:
    """Seconds of its parts; `recached` is None where no recache preceded it."""
    start = recached or begun
    denoise, commit = seconds_between(start, denoised), seconds_between(denoised, committed)
    recache = seconds_between(begun, start) if recached else 0.0
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
    medians = {part: median(block[part] for block in steady) for part in ("block", "denoise", "commit")}
    recaches = [block["recache"] for block in blocks[full:] if block["recache"]]
    limit = least_seconds(block_flops(pipeline.preset, plan.width, plan.height), gpu, bits)
    return {
        "blocks": len(blocks),
        **{f"{part}_seconds": round(seconds, 5) for part, seconds in medians.items()},
        "recache_seconds": round(median(recaches), 5) if recaches else None,
        "frames_per_second": round(frames_per_second(pipeline.preset, medians["block"]), 2),
        "percent_of_limit": round(100 * limit / medians["block"], 1) if limit else None,
        **memory_figures(pipeline.model.device),
        "notes": phases.notes,
        "seconds_by_block": [round(block["block"], 5) for block in blocks],
    }


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_figures(device: torch.device) -> dict[str, float | None]:
    """GiB allocated and reserved by torch at most since `reset_peak`, and in use on the GPU; else None."""
    if device.type != "cuda":
        return dict.fromkeys(MEMORY)
    free, total = torch.cuda.mem_get_info(device)
    sizes = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device), total - free
    return {name: round(size / GIB, 2) for name, size in zip(MEMORY, sizes, strict=True)}
