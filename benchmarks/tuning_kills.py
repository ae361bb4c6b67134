"""`python -m benchmarks.tuning_kills`: is a tuning run that is killed again and again the undisturbed one?

Small random models in two processes of torchrun (gloo, CPU). After a line of log.jsonl and a random time of
up to half a second, one rank or everything gets SIGKILL; what was killed is started again. Weights,
optimizers, average, streams and log.jsonl of both runs are compared at the end, bit for bit. Linux.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import report
from longlive_training.distil import checkpoint
from longlive_training.distil.command import process_group
from longlive_training.distil.parallel import ALL, SHARDS
from longlive_training.distil.run import Run

ONE, EVERYTHING = "one rank", "everything"
LATEST_SECONDS = 0.5
PAUSE_SECONDS = 0.01


def work(folder: Path, shard: str, steps: int) -> None:
    """What each rank does: a checkpoint after every iteration."""
    from tests.test_distil import BOTH, own_tuning

    torch.set_num_threads(1)
    with process_group("cpu"):
        Run(own_tuning(BOTH, shard), folder, "digest").train(steps, save_every=1)


def start(folder: Path, shard: str, steps: int) -> subprocess.Popen:
    """Two ranks and torchrun, which starts them again; each in a session of its own."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1000"]
    own = ["-m", "benchmarks.tuning_kills", f"--work={folder}", f"--shard={shard}", f"--steps={steps}"]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *launch, *own],
            env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def undisturbed(folder: Path, shard: str, steps: int) -> None:
    """A run from beginning to end."""
    folder.mkdir(parents=True)
    if start(folder, shard, steps).wait():
        raise RuntimeError((folder / "output.txt").read_text()[-2000:])


def disturbed(folder: Path, shard: str, steps: int, victims: list[str], seed: int = 0) -> int:
    """A run of which one rank or everything is killed at random moments; returns the number of kills."""
    folder.mkdir(parents=True)
    chance, process, kills = random.Random(seed), start(folder, shard, steps), 0
    for victim in victims:
        wait_for_a_line(folder / "log.jsonl", process)
        time.sleep(chance.uniform(0, LATEST_SECONDS))
        if process.poll() is not None:
            break
        if victim == EVERYTHING:
            for one in (process.pid, *children(process.pid)):
                os.kill(one, signal.SIGKILL)
            process.wait()
            process = start(folder, shard, steps)
        elif ranks := children(process.pid):
            os.kill(chance.choice(ranks), signal.SIGKILL)
        kills += 1
    if process.wait():
        raise RuntimeError((folder / "output.txt").read_text()[-2000:])
    return kills


def wait_for_a_line(log: Path, process: subprocess.Popen) -> None:
    """Until an iteration has ended, or the run has; one that resumes cuts its log first."""
    before = lines = num_lines(log)
    while process.poll() is None and lines <= before:
        before = lines
        time.sleep(PAUSE_SECONDS)
        lines = num_lines(log)


def num_lines(log: Path) -> int:
    return log.read_text("utf-8").count("\n") if log.exists() else 0


def children(process: int) -> list[int]:
    """The ranks that torchrun has started."""
    return [*map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]


def differing(one: Path, other: Path) -> list[str]:
    """What is not bit for bit the same at the end of two runs: names of tensors, or log.jsonl."""
    ones, others = (checkpoint.load(checkpoint.newest(run), lambda name: True) for run in (one, other))
    found = sorted(ones.keys() ^ others.keys())
    found += [name for name in ones.keys() & others.keys() if not torch.equal(ones[name], others[name])]
    logs = [(run / "log.jsonl").read_text() for run in (one, other)]
    return found + (["log.jsonl"] if logs[0] != logs[1] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="of one rank, and as many of everything")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--shard", choices=SHARDS, default=ALL)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.shard, options.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, found = Path(folder) / "undisturbed", {"shard": options.shard, "steps": options.steps}
        undisturbed(whole, options.shard, options.steps)
        for victim in (ONE, EVERYTHING):
            run = Path(folder) / victim.replace(" ", "-")
            kills = disturbed(run, options.shard, options.steps, [victim] * options.kills)
            found[victim] = {"kills": kills, "differing": differing(whole, run)}
            print(f"{victim}: {found[victim]}")
    report("tuning_kills", found)


if __name__ == "__main__":
    main()
