"""From prompt to file: when frames come out, how many a second, and whether that stays so."""

import tempfile
import time
from pathlib import Path
from typing import Any

from ..geometry import FRAME_RATE, TIME_STRIDE
from ..output.video import VideoWriter
from ..pipeline import Pipeline, Plan
from .phases import intervals, late_to_early, peak_gib, reset_peak

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
    steps = intervals(arrivals)
    skipped = min(len(steps) // 3, round(SPAN_SECONDS * FRAME_RATE / frames_a_block(plan)))
    steady = steps[skipped:]
    steady_speed = round(frames_a_block(plan) * len(steady) / sum(steady), 2) if steady else None
    return {
        "seconds": plan.request.seconds,
        "first_frames_seconds": round(arrivals[0] - start, 3),
        "frames_per_second": round(plan.frames / (end - start), 2),
        "steady_frames_per_second": steady_speed,
        "last_to_first_10_s": late_to_early(steady, round(SPAN_SECONDS * FRAME_RATE / frames_a_block(plan))),
        "peak_gib": peak_gib(device),
        "arrivals": [round(arrival - start, 3) for arrival in arrivals],
    }


def frames_a_block(plan: Plan) -> int:
    """Pixel frames that every block but the first adds."""
    return TIME_STRIDE * plan.block_latent_frames
