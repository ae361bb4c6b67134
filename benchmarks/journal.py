"""`python -m benchmarks.journal`: what a journal costs, and what it costs that the encoder starts over.

Three runs of Mini alternate, span by span: one without a journal; one as `longlive generate` makes it, with a
snapshot every 5 s of video; one that can be taken back, too. The sizes are of the same frames, encoded as all
videos are, and as they were before: with as many threads as x264 chooses, and a key frame every 48 frames.
With `--memory` instead: the resident memory of a watched run until stopped that can be taken back.
"""

import gc
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, permutations
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.live import PLAIN, Watched
from benchmarks.measure import report
from longlive_core.config import MINI
from longlive_core.geometry import FRAME_RATE
from longlive_core.journal import Journal, facts_of
from longlive_core.output.contact_sheet import ContactSheet
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import UNTIL_STOPPED, Request, load_pipeline
from longlive_core.resume import Rewind, VideoState
from longlive_core.schedule.schedule import PromptSchedule

THREADS = 1  # of torch; the writers need some too
SPAN, SPANS = 8, 18  # blocks of a span, in which one snapshot is made; spans of each run
SNAPSHOT_SECONDS = 5.0
OFF, JOURNAL, BACK = KINDS = "off", "journal", "journal_and_back"
BUDGET = 16 << 20  # bytes of the states to go back to, in `memory`: those of 40 s
MINUTES, MINUTE = 4, 80  # of video, in blocks
BEFORE = {"crf": "18", "preset": "veryfast", "g": "48", "tune": "zerolatency"}
PROMPTS = ("a red circle drifts right over navy", "it turns blue", "cut: a green star circles over plum")
SCHEDULE = PromptSchedule.parse("\n".join(f"{5 * n}s {PROMPTS[n % 3]}" for n in range(36)))


def made(folder: Path, kind: str) -> Iterator[np.ndarray]:
    """The frames of block after block of a video, written, and recorded where there is a journal."""
    pipeline = load_pipeline("mini")
    plan = pipeline.plan(Request(SCHEDULE, SPAN * SPANS * 0.75, seed=1))
    path, watching, sheet = folder / f"{kind}.mp4", {}, ContactSheet(plan.frames)
    with VideoWriter(path, MINI.width, MINI.height) as writer:
        if kind != OFF:
            journal = Journal(path, facts_of(pipeline.settings(plan), plan))
            watching = {"snapshots": journal.snapshots(writer, SNAPSHOT_SECONDS, plan.blocks[-1])}
        if kind == BACK:
            watching = {"rewind": rewind_of(writer, journal)}
        for chunk in pipeline.run(plan, **watching):
            frames = chunk.uint8()
            writer.append(frames)
            kept = sheet.append(frames)
            if kind != OFF:
                thumbnails = {"thumbnails": torch.from_numpy(np.stack(kept))} if kept else {}
                journal.add(chunk.block, **thumbnails)
            yield frames


def rewind_of(writer: VideoWriter, journal: Journal, **budget: int) -> Rewind:
    """As *Stream* keeps what it needs to go back; the journal gets a state of it now and then."""

    def save(state: VideoState) -> None:
        if journal.wants(writer.num_appended, SNAPSHOT_SECONDS):
            journal.save(state, writer.num_appended)

    return Rewind(lambda: writer.can_be_cut, on_state=save, disk=journal, **budget)


def span(run: Iterator[np.ndarray]) -> tuple[float, float]:
    """Seconds of a span, and those that the process worked, its threads included."""
    start, worked = time.perf_counter(), time.process_time()
    for _ in islice(run, SPAN):
        pass
    return time.perf_counter() - start, time.process_time() - worked


def cost() -> dict[str, dict[str, float]]:
    """Speed against that without, by medians of spans that took turns; the first are warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {kind: made(Path(folder), kind) for kind in KINDS}
        times = {kind: [] for kind in KINDS}
        orders = [*permutations(KINDS)]
        for number in range(SPANS):
            for kind in orders[number % len(orders)]:
                times[kind].append(span(runs[kind]))
        for run in runs.values():
            run.close()
    spans = {kind: np.array(times[kind][2:]) for kind in KINDS}
    return {kind: against(spans[OFF], spans[kind]) for kind in KINDS}


def against(off: np.ndarray, spans: np.ndarray) -> dict[str, float]:
    clock, worked = np.median(off / spans, axis=0)
    return {
        "block_ms": round(1000 * statistics.median(spans[:, 0]) / SPAN, 2),
        "speed_to_off": round(float(clock), 3),
        "speed_to_off_by_cpu_time": round(float(worked), 3),
    }


def memory() -> dict[str, object]:
    """After each minute of a watched run, whose states to go back to are at their budget."""
    watched, pipeline, found = Watched(), load_pipeline("mini"), {}
    plan = pipeline.plan(Request(PLAIN, UNTIL_STOPPED, seed=1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.mp4"
        with Journal(path, {}) as journal, VideoWriter(path, MINI.width, MINI.height) as writer:
            rewind = rewind_of(writer, journal, budget=BUDGET)
            run = pipeline.run(plan, live=watched.control, rewind=rewind)
            for chunk in islice(run, MINUTES * MINUTE):
                frames = chunk.uint8()
                writer.append(frames)
                journal.add(chunk.block)
                watched.show(chunk, frames[-1])
                if (chunk.block.index + 1) % MINUTE == 0:
                    watched.settle()
                    found[f"{60 * (chunk.block.index + 1) // MINUTE} s"] = mib()
            states = sum(state.num_bytes for state in rewind.states) / 2**20
    return {"mib_after": found, "mib_of_states": round(states, 1)}


def mib() -> dict[str, float]:
    """Resident memory of this process, and that of all tensors outside models, in MiB."""
    status, every = Path("/proc/self/status").read_text(), gc.get_objects()
    tensors = {one.data_ptr(): one.nbytes for one in every if type(one) is torch.Tensor}
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return {"resident": round(resident, 1), "tensors": round(sum(tensors.values()) / 2**20, 2)}


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
        run = made(Path(folder), OFF)
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
        if "--memory" in sys.argv:
            report("journal_memory", memory())
        else:
            report("journal", {"cost": cost(), "bytes": sizes()})


if __name__ == "__main__":
    main()
