"""What every benchmark shares: clocks, taking turns, results with machine, versions and commit."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Clock = Callable[[], float]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """Of this repository; empty where there is no git, or no repository, only its files."""
    try:
        asked = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the figures and keep them in benchmarks/results, or where an absolute name says."""
    text = json.dumps({**machine(), **figures}, indent=2)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def clock_of(device: torch.device) -> Clock:
    """Seconds: on a GPU after all its work is done; with one CPU thread the time that the process worked."""
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def now() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def in_turn(works: dict[str, Callable[[], Any]], repeats: int, clock: Clock) -> dict[str, float]:
    """Median seconds of each, measured one after the other, over and over."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = clock()
            work()
            times[name].append(clock() - start)
    return {name: round(statistics.median(seconds), 6) for name, seconds in times.items()}
