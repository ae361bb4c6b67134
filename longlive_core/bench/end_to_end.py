"""From prompt to file: when frames come out, how many a second, and whether that stays so."""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from ..geometry import FRAME_RATE, TIME_STRIDE
from ..output.video import VideoWriter
from ..pipeline import Pipeline, Plan
from .phases import memory_figures, reset_peak

SPAN_SECONDS = 10.0  # of video, at the beginning of the steady part and at the end


def end_to_end_figures(pipeline: Pipeline, plan: Plan) -> dict[str, Any]:
    """A whole video with decoding and H.264: speed, time to the first frames, speed late against early.

    The first seconds, in which the window grows, are no part of the steady figures.
    A video of a single block has none: they are None.
    """
    device = pipeline.model.device
    reset_peak(device)
    start, arrivals = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        with VideoWriter(Path(folder) / "bench.mp4", plan.width, plan.height) as writer:
            for chunk in pipeline.run(plan):
                writer.append(chunk.uint8())
                arrivals.append(time.perf_counter())
        end = time.perf_counter()
    frames_a_block = TIME_STRIDE * plan.block_latent_frames
    span = round(SPAN_SECONDS * FRAME_RATE / frames_a_block)
    intervals = [late - early for early, late in pairwise(arrivals)]
    steady = intervals[min(len(intervals) // 3, span) :]
    return {
        "seconds": plan.request.seconds,
        "first_frames_seconds": round(arrivals[0] - start, 3),
        "frames_per_second": round(plan.frames / (end - start), 2),
        "steady_frames_per_second": round(frames_a_block * len(steady) / sum(steady), 2) if steady else None,
        "last_to_first_10_s": late_to_early(steady, span),
        **memory_figures(device),
        "arrivals": [round(arrival - start, 3) for arrival in arrivals],
    }


def late_to_early(times: list[float], span: int) -> float | None:
    """Median of the last `span` intervals over that of the first `span`; None where there are too few."""
    if len(times) < 2 * span:
        return None
    return round(median(times[-span:]) / median(times[:span]), 4)
