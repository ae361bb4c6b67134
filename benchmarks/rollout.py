"""`python -m benchmarks.rollout`: steady time per block late against early, and Mini's real time end to end.

Ratios come from one run on one machine. Mini runs on two CPU threads, encoding included.
"""

import statistics
import time

import torch

from benchmarks.first_frames import first_frames_figures
from benchmarks.measure import report
from longlive_core.bench.end_to_end import end_to_end_figures
from longlive_core.config import WindowConfig
from longlive_core.geometry import FRAME_RATE
from longlive_core.pipeline import Request, load_pipeline
from longlive_core.schedule.schedule import PromptSchedule

THREADS = 2
REPEATS = 3
EARLY, LATE, SPAN = 10, 300, 40
SCHEDULE = """0:00 a red circle drifts right over navy
0:08 it turns into a blue star
0:15 it circles and moves over plum
0:22 a yellow square drifts up over slate"""


def block_times(endless: bool) -> list[float]:
    """Seconds of every block of a rollout long enough for both spans."""
    pipeline = load_pipeline("mini")
    seconds = (LATE + SPAN) * 0.75
    request = Request(
        PromptSchedule.single("a red circle circles over navy"), seconds, window=WindowConfig(endless=endless)
    )
    times, last = [], time.perf_counter()
    for _ in pipeline.blocks(pipeline.plan(request)):
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return times


def flatness(endless: bool) -> dict[str, object]:
    """Median time of blocks around 300 over that around 10: median of several rollouts, and all."""
    ratios = []
    for _ in range(REPEATS):
        times = block_times(endless)
        early, late = times[EARLY : EARLY + SPAN], times[LATE - SPAN // 2 : LATE + SPAN // 2]
        ratios.append(round(statistics.median(late) / statistics.median(early), 3))
    return {"late_to_early": statistics.median(ratios), "rollouts": ratios}


def end_to_end(seconds: float = 30.0) -> dict[str, float]:
    """Mini's speed with generation, decode and H.264 encode, and the time to the first frames."""
    pipeline = load_pipeline("mini")
    plan = pipeline.plan(Request(PromptSchedule.parse(SCHEDULE), seconds, seed=1))
    speed = end_to_end_figures(pipeline, plan)["frames_per_second"]
    return {
        "frames_per_second": speed,
        "times_real_time": round(speed / FRAME_RATE, 2),
        **first_frames_figures(pipeline, plan),
    }


def main() -> None:
    """Print and keep all figures."""
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        figures = {
            "absolute": flatness(endless=False),
            "endless": flatness(endless=True),
            "mini_end_to_end": end_to_end(),
        }
    report("rollout", figures)


if __name__ == "__main__":
    main()
