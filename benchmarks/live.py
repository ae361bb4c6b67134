"""`python -m benchmarks.live`: what watching and steering a run costs.

Two runs of Mini alternate, span by span: one plain with a cue every 3 s, one with a LiveControl that is sent
as many prompts, a snapshot as JSON at every change and a JPEG preview every block, made in another thread as
ComfyUI's server makes them. All blocks are made, decoded and written; the ratio is of one run on one machine.
"""

import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import report
from longlive_core.config import MINI
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import Chunk, Request, load_pipeline
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.steering.live import LiveControl

THREADS = 1  # of torch; the previews need some too
SPAN, SPANS = 4, 48  # blocks of a span, spans of each run
PREVIEW_PIXELS = 256  # as the node shows Mini's 64
PROMPT_EVERY = 4  # blocks
PROMPTS = ("it turns blue", "it turns into a white star", "it moves over plum", "it circles")
PLAIN = PromptSchedule.single("a red circle drifts right over navy")
SCHEDULE = PromptSchedule.parse(
    "0 a red circle drifts right over navy\n"
    + "".join(f"{3 * n}s => {PROMPTS[n % 4]}\n" for n in range(1, 48))
)


class Watched:
    """A run with everything on: prompts, previews and snapshots as ComfyUI sends them to its pages."""

    def __init__(self):
        self.control = LiveControl(on_change=self._changed)
        self._server = ThreadPoolExecutor(1)
        self._due: list[Future] = []

    def show(self, chunk: Chunk, image: np.ndarray) -> None:
        self._due.append(self._server.submit(preview, image))
        if chunk.block.index % PROMPT_EVERY == 0:
            self.control.send(PROMPTS[chunk.block.index // PROMPT_EVERY % len(PROMPTS)])

    def settle(self) -> None:
        """Until all is sent."""
        while self._due:
            self._due.pop().result()

    def _changed(self) -> None:
        self._due.append(self._server.submit(lambda: json.dumps(self.control.snapshot())))


def preview(image: np.ndarray) -> bytes:
    """An image [H, W, 3] as ComfyUI sends it to the page."""
    buffer = io.BytesIO()
    size = (PREVIEW_PIXELS, PREVIEW_PIXELS)
    Image.fromarray(image).resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def made(folder: Path, watched: Watched | None) -> Iterator[None]:
    """Block after block of a video, decoded and written, and shown where it is watched."""
    pipeline = load_pipeline("mini")
    request = Request(PLAIN if watched else SCHEDULE, SPAN * SPANS * 0.75, seed=1)
    with VideoWriter(folder / f"{bool(watched)}.mp4", MINI.width, MINI.height) as writer:
        for chunk in pipeline.run(pipeline.plan(request), live=watched.control if watched else None):
            frames = chunk.uint8()
            writer.append(frames)
            if watched:
                watched.show(chunk, frames[-1])
            writer.flush()
            yield


def span(run: Iterator[None], watched: Watched | None) -> float:
    """Seconds of a span, all that was to be sent included."""
    start = time.perf_counter()
    for _ in islice(run, SPAN):
        pass
    if watched:
        watched.settle()
    return time.perf_counter() - start


def in_turn(
    off: Iterator[None], on: Iterator[None], watched: Watched, is_on_first: bool
) -> tuple[float, float]:
    """Seconds of a span plain and watched; which of them comes first changes."""
    live = span(on, watched) if is_on_first else None
    plain = span(off, None)
    return plain, live or span(on, watched)


def cost() -> dict[str, float]:
    """Speed with everything on against off, by medians of spans that took turns; the first are warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        watched = Watched()
        off, on = made(Path(folder), None), made(Path(folder), watched)
        pairs = [in_turn(off, on, watched, is_on_first=bool(n % 2)) for n in range(SPANS)][2:]
        off.close()
        on.close()
    plain, live = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "block_ms_off": round(1000 * plain / SPAN, 2),
        "block_ms_on": round(1000 * live / SPAN, 2),
        "speed_on_to_off": round(statistics.median(a / b for a, b in pairs), 3),
    }


def main() -> None:
    """Print and keep all figures."""
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        report("live", {"cost": cost()})


if __name__ == "__main__":
    main()
