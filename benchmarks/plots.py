"""Figures of benchmarks/gpu.py as a chart: frames a second over the video, seconds a block, memory."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from longlive_core.geometry import FRAME_RATE

SMOOTH_BLOCKS = 8
FRAMES_A_BLOCK = 12
MEMORY = {"device_gib": "in use on the GPU", "reserved_gib": "reserved", "peak_gib": "allocated"}


def plot(results: Path, chart: Path) -> None:
    """Read the JSON that gpu.py keeps, write a PNG."""
    read = json.loads(results.read_text())
    cases: dict[str, dict[str, Any]] = read["cases"]
    figure, (speed, blocks, memory) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    draw_speed(speed, cases)
    draw_blocks(blocks, cases)
    draw_memory(memory, cases)
    figure.suptitle(f"LongLive-1.3B, random weights, {read['device']}, torch {read['torch']}")
    figure.savefig(chart, dpi=100)
    plt.close(figure)


def draw_speed(axes: Axes, cases: dict[str, dict[str, Any]]) -> None:
    """Frames a second against seconds of video, end to end."""
    for name, figures in cases.items():
        arrivals = figures.get("arrivals", [])
        spans = range(SMOOTH_BLOCKS, len(arrivals))
        if not spans:
            continue
        fps = [SMOOTH_BLOCKS * FRAMES_A_BLOCK / (arrivals[i] - arrivals[i - SMOOTH_BLOCKS]) for i in spans]
        axes.plot([i * FRAMES_A_BLOCK / FRAME_RATE for i in spans], fps, label=name)
    axes.set(xlabel="seconds of video", ylabel="frames a second, decoded and encoded", ylim=(0, None))
    legend(axes)


def draw_blocks(axes: Axes, cases: dict[str, dict[str, Any]]) -> None:
    """Milliseconds of every block, transformer alone."""
    for name, figures in cases.items():
        if seconds := figures.get("seconds_by_block"):
            axes.plot([1000 * second for second in seconds], label=f"{name}, {1000 * median(seconds):.0f} ms")
    axes.set(xlabel="block", ylabel="milliseconds a block", ylim=(0, None))
    legend(axes)


def draw_memory(axes: Axes, cases: dict[str, dict[str, Any]]) -> None:
    """GiB by case: smaller bars lie on larger ones."""
    for kind, label in MEMORY.items():
        sizes = {name: figures[kind] for name, figures in cases.items() if figures.get(kind)}
        axes.barh(list(sizes), list(sizes.values()), label=label if sizes else None)
    axes.set(xlabel="GiB at most" if axes.patches else "memory is measured on GPUs only")
    legend(axes)


def legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
