"""kill -9 at random moments of one run, which goes on each time: is the video the uninterrupted one?

    python -m benchmarks.kills --kills 30 --seconds 60 --with endless,control

Compared bit for bit are the file, the latents of all blocks, the exact state at the end and the contact
sheet; of a run that is sent prompts with those of the schedule that it played. A video that is finished
before there were so many kills is compared, and the next one begun. One thread: the process that holds the
model is forked for each attempt, so that none of them loads it again.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.measure import RESULTS, report
from longlive_core.bench.random_model import random_pipeline
from longlive_core.cli import build_parser, generate
from longlive_core.config import MINI, SGF_PLUS, Policy
from longlive_core.geometry import FRAME_RATE, num_frames
from longlive_core.journal import Journal, facts_of, folder_of
from longlive_core.output.sound import Sound
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import Pipeline, load_pipeline
from longlive_core.resume import Ending
from longlive_core.steering.live import LiveControl

RED, BLUE = "a red circle drifts right over navy", "a blue square drifts up over navy"
SCHEDULE = f"""0 {RED}
{{0:.2f}}s blend 2s: {BLUE}
{{1:.2f}}s cut, seed 4: a green star circles over plum
{{2:.2f}}s refresh, seed 9: a red circle drifts left over navy
"""
LIVE, SGF = "live", "sgf"
SEND_SECONDS = 1.0  # between two prompts that are sent, on average
VIDEO, SHEET, STATE, LATENTS, PLAYED = "v.mp4", "v.png", "v.safetensors", "latents.safetensors", "played.txt"
SOUND_RATE = 48_000
Work = Callable[[], Any]


def options_of(folder: Path) -> dict[str, list[str]]:
    """What a command has besides, by the kind of the video."""
    clip = folder / "clip.mp4"
    return {
        "text": [],
        "endless": ["--positions=endless"],
        "image": [f"--image={clip}"],
        "source": [f"--video={clip}", "--strength=0.6"],
        "extend": [f"--extend={clip}", "--with-source"],
        "sound": [f"--audio={clip}"],
        "sheet": [f"--contact-sheet={folder / SHEET}"],
        "control": [f"--control={clip}", f"--reference={clip}"],
        LIVE: ["--no-metadata"],  # the schedule in it is the one that the run began with
        SGF: [],
    }


def command_of(kind: str, folder: Path, seconds: float, every: float) -> list[str]:
    """A command that makes a video of a kind, with switches of all policies."""
    schedule = folder / "schedule.txt"
    schedule.write_text(SCHEDULE.format(seconds * 0.2, seconds * 0.5, seconds * 0.8))
    outputs = [f"--out={folder / VIDEO}", f"--state={folder / STATE}"]
    common = [f"--schedule={schedule}", f"--seconds={seconds}", f"--snapshot-every={every}", *outputs]
    return ["generate", *common, *options_of(folder)[kind]]


def write_clip(path: Path, seconds: float) -> None:
    """Moving noise, and a tone."""
    image = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), np.uint8)
    tone = np.sin(np.arange(round(seconds * SOUND_RATE)) / 20, dtype=np.float32)[None, None]
    with VideoWriter(path, 128, 128, sound=Sound.of_waveform(tone, SOUND_RATE)) as writer:
        for shift in range(round(seconds * FRAME_RATE)):
            writer.append(np.roll(image, shift, 2))


def tiny_sgf_plus() -> Pipeline:
    """Random weights as large as Mini's."""
    preset = replace(SGF_PLUS, model=MINI.model, autoencoder=MINI.autoencoder, width=64, height=64)
    return random_pipeline(torch.device("cpu"), torch.float32, preset=preset)


def generated(pipeline: Pipeline, command: list[str]) -> None:
    """Run the command."""
    options = build_parser().parse_args(command)
    generate.make(pipeline, options, *generate.checked(options))


def steered(pipeline: Pipeline, command: list[str]) -> None:
    """Make the video of the command by a run that is sent prompts, and write down what was played."""
    options, control, ending = build_parser().parse_args(command), LiveControl(), Ending()
    plan = pipeline.plan(generate.request_from(options, pipeline.preset))
    with Journal(options.out, facts_of(pipeline.settings(plan), plan)) as journal, torch.inference_mode():
        plan, (restart, kept) = journal.with_sent(plan), journal.restart()
        if journal.num_blocks:
            frames = num_frames(journal.num_blocks * plan.block_latent_frames)
            print(f"goes on at {generate.clock(frames)}", flush=True)
        Thread(target=send, args=[control], daemon=True).start()
        with VideoWriter(options.out, plan.width, plan.height, kept=kept) as writer:
            snapshots = journal.snapshots(writer, options.snapshot_every, plan.blocks[-1])
            for chunk in pipeline.run(plan, None, control, ending, snapshots, restart):
                writer.append(chunk.uint8())
                journal.add(chunk.block, control.cues().get(chunk.block.index), is_sent=True)
        ending.state.save(options.state)
        options.out.with_name(PLAYED).write_text(control.schedule().to_text())
        journal.remove()


def send(control: LiveControl) -> None:
    """Send prompts of all policies at random moments, others in each process."""
    chance = random.Random()
    while True:
        time.sleep(chance.uniform(0, 2 * SEND_SECONDS))
        control.send(chance.choice([RED, BLUE]), chance.choice([*Policy]).value)


def keep_latents(folder: Path) -> None:
    """Have this process keep the latents of all blocks when the journal goes."""
    remove = Journal.remove

    def removed(journal: Journal) -> None:
        latents = {str(block): journal.latents(block) for block in range(journal.num_blocks)}
        save_file({block: made for block, made in latents.items() if made is not None}, folder / LATENTS)
        remove(journal)

    Journal.remove = removed


def begin(work: Work, folder: Path) -> int:
    """The id of a new process that does the work."""
    if process := os.fork():
        return process
    with (folder / "log").open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            keep_latents(folder)
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def finish(process: int, folder: Path) -> dict[str, Any]:
    """The files that a process makes, which are removed."""
    if os.waitpid(process, 0)[1] or folder_of(folder / VIDEO).exists():
        raise RuntimeError((folder / "log").read_text()[-2000:])
    return contents(folder)


def contents(folder: Path) -> dict[str, Any]:
    """What was made, which is removed."""
    names = [name for name in (VIDEO, SHEET, STATE, LATENTS) if (folder / name).exists()]
    found = {
        name: (held_in if name in (STATE, LATENTS) else Path.read_bytes)(folder / name) for name in names
    }
    for name in names:
        (folder / name).unlink()
    return found


def held_in(path: Path) -> dict[str, Any]:
    """What a safetensors file holds; it may have any order."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        return (file.metadata() or {}) | tensors


def killed(work: Work, folder: Path, most: int, mean: float) -> tuple[int, dict[str, Any]]:
    """Kill a run `mean` seconds after it begins, again and again: how often, and what it makes at last."""
    for count in range(most):
        process = begin(work, folder)
        time.sleep(random.uniform(0, 2 * mean))
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return count, finish(process, folder)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return most, finish(begin(work, folder), folder)


def trial(pipeline: Pipeline, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """How often runs of a kind were killed, how often they went on, and which of their files are others."""
    kills, videos, differing = 0, 0, set()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_clip(folder / "clip.mp4", options.seconds / 2)
        command = command_of(kind, folder, options.seconds, options.snapshot_every)
        plain, schedule = partial(generated, pipeline, command), folder / "schedule.txt"
        work = partial(steered, pipeline, command) if kind == LIVE else plain
        start, written = time.monotonic(), schedule.read_text()
        expected = finish(begin(plain, folder), folder)
        mean = max((time.monotonic() - start) / max(1, options.kills), options.least)
        while kills < options.kills:
            count, found = killed(work, folder, options.kills - kills, mean)
            kills, videos = kills + count, videos + 1
            if kind == LIVE:
                (folder / PLAYED).replace(schedule)
                expected = finish(begin(plain, folder), folder)
                schedule.write_text(written)
            differing |= {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
        places = re.findall(r"goes on at (\S+)", (folder / "log").read_text())
    figures = {"seconds": options.seconds, "kills": kills, "videos": videos, "went on": len(places)}
    return figures | {"up to": max(places, default=""), "differing": sorted(differing)}


def main() -> int:
    kinds = [*options_of(Path())]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the video")
    parser.add_argument("--snapshot-every", type=float, default=5.0)
    parser.add_argument(
        "--least", type=float, default=0.3, help="seconds from a start to its kill, on average"
    )
    parser.add_argument("--with", dest="kinds", default="text", help=f"of {', '.join(kinds)}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--report", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    mini, results = load_pipeline(), {}
    for kind in options.kinds.split(","):
        results[kind] = trial(tiny_sgf_plus() if kind == SGF else mini, kind, options)
        print(f"{kind}: {results[kind]}, {'ANOTHER' if results[kind]['differing'] else 'the same'} video")
    if options.report:
        file = RESULTS / "kills.json"
        before = json.loads(file.read_text())["videos"] if file.exists() else {}
        report("kills", {"videos": before | results})
    return 1 if any(figures["differing"] for figures in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
