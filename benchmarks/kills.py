"""kill -9 at random moments of one run, which goes on each time: is the video the uninterrupted one?

    python -m benchmarks.kills --kills 30 --seconds 60 --with blend,endless

One thread: the process that holds the model is forked for each attempt, so that none of them loads it again.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from safetensors import safe_open

from longlive_core.cli import build_parser, generate
from longlive_core.journal import folder_of
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import Pipeline, load_pipeline

SCHEDULE = """0 a red circle drifts right over navy
{0:.2f}s blend 2s: a blue square drifts up over navy
{1:.2f}s cut, seed 4: a green star circles over plum
{2:.2f}s refresh, seed 9: a red circle drifts left over navy
"""
EXTRAS = ("text", "endless", "image", "source", "extend", "sound", "sheet")
OUTPUTS = ("v.mp4", "v.png", "v.safetensors")


def arguments(folder: Path, seconds: float, extra: str, every: float) -> list[str]:
    """A command that makes a video with switches of all kinds, and what is special to `extra`."""
    schedule = folder / "schedule.txt"
    schedule.write_text(SCHEDULE.format(seconds * 0.2, seconds * 0.5, seconds * 0.8))
    clip = folder / "clip.mp4"
    more = {
        "endless": ["--positions=endless"],
        "image": [f"--image={clip}"],
        "source": [f"--video={clip}", "--strength=0.6"],
        "extend": [f"--extend={clip}", "--with-source"],
        "sound": [f"--audio={clip}"],
        "sheet": [f"--contact-sheet={folder / 'v.png'}"],
    }
    outputs = [f"--out={folder / 'v.mp4'}", f"--state={folder / 'v.safetensors'}"]
    common = [f"--schedule={schedule}", f"--seconds={seconds}", f"--snapshot-every={every}", *outputs]
    return ["generate", *common, *more.get(extra, [])]


def write_clip(path: Path) -> None:
    """Three seconds of moving noise."""
    frames = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), np.uint8)
    with VideoWriter(path, 128, 128) as writer:
        for shift in range(48):
            writer.append(np.roll(frames, shift, 2))


def begin(pipeline: Pipeline, command: list[str], log: Path) -> int:
    """The id of a new process that runs the command."""
    if process := os.fork():
        return process
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        options = build_parser().parse_args(command)
        try:
            generate.make(pipeline, options, *generate.checked(options))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    os._exit(0)


def made(pipeline: Pipeline, command: list[str], folder: Path) -> list:
    """The files that a run makes which nothing interrupts."""
    _, status = os.waitpid(begin(pipeline, command, folder / "log"), 0)
    if status:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    return contents(folder)


def contents(folder: Path) -> list:
    """What was made: of the state, whose file may have any order, what it holds."""
    *files, state = (folder / name for name in OUTPUTS)
    with safe_open(state, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        held = file.metadata() | tensors
    return [held, *(path.read_bytes() for path in files if path.exists())]


def killed(pipeline: Pipeline, command: list[str], folder: Path, most: int, mean: float) -> int:
    """Kill the run again and again, `mean` seconds after it began; how many times it was killed."""
    for count in range(most):
        process = begin(pipeline, command, folder / "log")
        time.sleep(random.uniform(0, 2 * mean))
        if os.waitpid(process, os.WNOHANG)[0]:
            return count
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return most


def trial(pipeline: Pipeline, extra: str, options: argparse.Namespace) -> bool:
    """Whether the files of a run that was killed are those of one that was not."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_clip(folder / "clip.mp4")
        command = arguments(folder, options.seconds, extra, options.snapshot_every)
        start = time.monotonic()
        expected = made(pipeline, command, folder)
        mean = (time.monotonic() - start) / max(1, options.kills)
        for path in OUTPUTS:
            (folder / path).unlink(missing_ok=True)
        (folder / "log").unlink()
        count = killed(pipeline, command, folder, options.kills, max(mean, options.least))
        is_same = made(pipeline, command, folder) == expected and not folder_of(folder / "v.mp4").exists()
        times = (folder / "log").read_text().count("goes on at")
        print(f"{extra}: {count} kills, went on {times} times, {'the same' if is_same else 'ANOTHER'} video")
        if not is_same and options.keep:
            shutil.copytree(folder, options.keep / extra, dirs_exist_ok=True)
    return is_same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the video")
    parser.add_argument("--snapshot-every", type=float, default=5.0)
    parser.add_argument(
        "--least", type=float, default=0.3, help="seconds from a start to its kill, on average"
    )
    parser.add_argument("--with", dest="extras", default="text", help=f"of {', '.join(EXTRAS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="for the files of a video that is another")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    av.logging.set_level(av.logging.ERROR)
    pipeline = load_pipeline()
    return 0 if all([trial(pipeline, extra, options) for extra in options.extras.split(",")]) else 1


if __name__ == "__main__":
    sys.exit(main())
