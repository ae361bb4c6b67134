"""`longlive batch --ray`: Ray actors hold the model, jobs are their tasks; Ray places and restarts them."""

import argparse
import importlib
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import torch

from ..config import MINI, Preset
from ..weights.files import first_line
from ..weights.published import DOWNLOADS
from . import generate
from .jobs import MODEL, Job, Made, attempt, placed

MOST_LOSSES = 3  # a job that kills every worker must end
MOST_RESTARTS = 16  # of each worker: a model that kills its worker while it is loaded must end too


def add_options(parser: argparse.ArgumentParser) -> None:
    cluster = (
        "make the videos on a Ray cluster: auto is the one of this machine (extra: ray; docs/cluster.md)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help=cluster)
    cpus = "with --ray: workers on so many CPUs, with as many threads, instead of a GPU each"
    parser.add_argument("--cpus-per-worker", type=int, metavar="N", help=cpus)


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for impossible options; paths become those that workers find, too."""
    if options.cpus_per_worker is not None and (not options.ray or options.cpus_per_worker < 1):
        raise ValueError("--cpus-per-worker is 1 or more, and goes with --ray ADDRESS")
    if options.ray:
        for key in ("jobs", "out", *MODEL):
            setattr(options, key, placed(getattr(options, key), Path.cwd()))
        if options.model not in (MINI.name, *DOWNLOADS):
            options.model = str(Path(options.model).absolute())
        if options.vace and options.vace.name in DOWNLOADS:
            options.vace = Path(options.vace.name)


class Worker:
    """A process of the cluster that holds the model."""

    def __init__(self, options: argparse.Namespace):
        if options.cpus_per_worker:
            torch.set_num_threads(options.cpus_per_worker)
        self._pipeline = generate.pipeline_from(options)

    def preset(self) -> Preset:
        return self._pipeline.preset

    def make(self, job: Job) -> tuple[int, str | None]:
        return attempt(self._pipeline, job)


def make_there(
    due: Sequence[Job], options: argparse.Namespace, check: Callable[[Preset], None]
) -> Iterator[Made]:
    """Make the videos on the cluster, in the order in which they are finished; `check` sees the preset."""
    ray = connected(options.ray)
    try:
        workers = begun(ray, options, len(due))
        try:
            check(ray.get(workers[0].preset.remote()))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"a worker could not load the model: {reason}") from error
        yield from made_by(ray, workers, due)
    finally:
        ray.shutdown()


def connected(address: str) -> ModuleType:
    """Ray, connected to the cluster; ValueError where there is none."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f"--ray needs Ray ({error}); pip install 'longlive[ray]'") from error
    ending = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster at {address} ({first_line(error)}); start one with: ray start --head; where it "
            "asks for a token, set RAY_AUTH_MODE=token here too"
        ) from error
    with suppress(ValueError):  # not in the main thread, where handlers are
        signal.signal(signal.SIGTERM, ending)  # Ray has set its own, which ends with a trace
    return ray


def begun(ray: ModuleType, options: argparse.Namespace, most: int) -> list:
    """Workers that load the model, as many as there is room for; Ray starts those again that die."""
    needs = {"CPU": options.cpus_per_worker or 1, "GPU": 0 if options.cpus_per_worker else 1}
    place = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"]}
    actor = ray.remote(Worker).options(**place, max_restarts=MOST_RESTARTS, max_task_retries=-1)
    return [actor.remote(options) for _ in range(num_workers(ray, needs, most))]


def num_workers(ray: ModuleType, needs: dict[str, int], most: int) -> int:
    """How many workers the cluster has room for; ValueError if none."""
    has = ray.cluster_resources()
    room = min(has.get(name, 0) // count for name, count in needs.items() if count)
    if room < 1:
        raise ValueError(
            f"the cluster has {has.get('GPU', 0):g} GPUs and {has.get('CPU', 0):g} CPUs, too few for a "
            "worker; without GPUs give --cpus-per-worker N"
        )
    return min(int(room), most)


def made_by(ray: ModuleType, workers: list, due: Sequence[Job]) -> Iterator[Made]:
    """Give each worker that is ready the next job; the job of one that is lost goes on with any other.

    Ray itself would retry it with the same worker, several times before it knows that a machine is lost.
    """
    idle, left, losses, reason = [], deque(due), Counter(), None
    running = {worker.preset.remote(): (worker, None) for worker in workers}  # ready when that is answered
    while running and (left or any(job for _, job in running.values())):
        (task, *_), _ = ray.wait([*running])
        worker, job = running.pop(task)
        try:
            made = ray.get(task)
            idle.append(worker)
            if job:
                yield job, *made
        except ray.exceptions.RayError as error:
            reason = first_line(error)
            if job:  # else its model could not be loaded
                running |= {one.preset.remote(): (one, None) for one in (worker, *idle)}
                idle.clear()
                losses[job.line] += 1
                if losses[job.line] < MOST_LOSSES:
                    left.appendleft(job)
                else:
                    yield job, 0, f"its worker failed {MOST_LOSSES} times: {reason}"
        while left and idle:
            worker, job = idle.pop(), left.popleft()
            running[worker.make.options(max_task_retries=0).remote(job)] = worker, job
    yield from ((job, 0, f"no worker is left: {reason}") for job in left)
