"""`python -m benchmarks.journal`: what a journal costs, and what it costs that the encoder starts over.

Two runs of Mini alternate, span by span: one as `longlive generate` makes it, with a snapshot every 5 s of
video, one without. The sizes are of the same frames, encoded as all videos are, and as they were before: with
as many threads as x264 chooses, and a key frame every 48 frames.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.measure import report
from longlive_core.config import MINI
from longlive_core.geometry import FRAME_RATE
from longlive_core.journal import Journal, facts_of
from longlive_core.output.contact_sheet import ContactSheet
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import Request, load_pipeline
from longlive_core.schedule.schedule import PromptSchedule

THREADS = 1  # of torch; the writers need some too
SPAN, SPANS = 8, 18  # blocks of a span, in which one snapshot is made; spans of each run
SNAPSHOT_SECONDS = 5.0
BEFORE = {"crf": "18", "preset": "veryfast", "g": "48", "tune": "zerolatency"}
PROMPTS = ("a red circle drifts right over navy", "it turns blue", "cut: a green star circles over plum")
SCHEDULE = PromptSchedule.parse("\n".join(f"{5 * n}s {PROMPTS[n % 3]}" for n in range(36)))


def made(folder: Path, has_journal: bool) -> Iterator[np.ndarray]:
    """The frames of block after block of a video, written, and recorded where there is a journal."""
    pipeline = load_pipeline("mini")
    plan = pipeline.plan(Request(SCHEDULE, SPAN * SPANS * 0.75, seed=1))
    path, snapshots, sheet = folder / f"{has_journal}.mp4", None, ContactSheet(plan.frames)
    with VideoWriter(path, MINI.width, MINI.height) as writer:
        if has_journal:
            journal = Journal(path, facts_of(pipeline, plan))
            snapshots = journal.snapshots(writer, SNAPSHOT_SECONDS, plan.blocks[-1])
        for chunk in pipeline.run(plan, snapshots=snapshots):
            frames = chunk.uint8()
            writer.append(frames)
            kept = sheet.append(frames)
            if has_journal:
                thumbnails = {"thumbnails": torch.from_numpy(np.stack(kept))} if kept else {}
                journal.add(chunk.block, **thumbnails)
            yield frames


def span(run: Iterator[np.ndarray]) -> tuple[float, float]:
    """Seconds of a span, and those that the process worked, its threads included."""
    start, worked = time.perf_counter(), time.process_time()
    for _ in islice(run, SPAN):
        pass
    return time.perf_counter() - start, time.process_time() - worked


def cost() -> dict[str, float]:
    """Speed with a journal against without, by medians of spans that took turns; the first are warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {has: made(Path(folder), has) for has in (False, True)}
        times = {False: [], True: []}
        for number in range(SPANS):
            for has in (True, False) if number % 2 else (False, True):
                times[has].append(span(runs[has]))
        for run in runs.values():
            run.close()
    off, on = (np.array(times[has][2:]) for has in (False, True))
    clock, worked = np.median(off / on, axis=0)
    return {
        "block_ms_off": round(1000 * statistics.median(off[:, 0]) / SPAN, 2),
        "block_ms_on": round(1000 * statistics.median(on[:, 0]) / SPAN, 2),
        "speed_on_to_off": round(float(clock), 3),
        "speed_on_to_off_by_cpu_time": round(float(worked), 3),
    }


def encoded_before(frames: np.ndarray) -> int:
    """Bytes of an mp4 as the encoder was set before it had to start over."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", FRAME_RATE, BEFORE, pix_fmt="yuv420p")
        stream.height, stream.width = frames.shape[1:3]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.tell()


def encoded_now(frames: np.ndarray, path: Path) -> int:
    with VideoWriter(path, frames.shape[2], frames.shape[1]) as writer:
        for begin in (0, *range(9, len(frames), 12)):
            writer.append(frames[begin : begin + (12 if begin else 9)])
    return path.stat().st_size


def sizes() -> dict[str, dict[str, float]]:
    """A minute of Mini, and twelve seconds of it at 832x480, where there is more to encode."""
    with tempfile.TemporaryDirectory() as folder:
        run = made(Path(folder), has_journal=False)
        frames = np.concatenate([*islice(run, 80)])
        run.close()
        height, width = (-(-side // small) for side, small in zip((480, 832), frames.shape[1:3], strict=True))
        large = frames[:189].repeat(height, 1).repeat(width, 2)[:, :480, :832]
        found = {}
        for name, images in (("64x64", frames), ("832x480", large)):
            before, now = encoded_before(images), encoded_now(images, Path(folder) / "now.mp4")
            found[name] = {"before": before, "now": now, "ratio": round(now / before, 3)}
    return found


def main() -> None:
    """Print and keep all figures."""
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        report("journal", {"cost": cost(), "bytes": sizes()})


if __name__ == "__main__":
    main()
