"""longlive batch --ray on two CPUs: the videos of the plain loop, also when a worker is killed."""

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cluster import PROMPT, compare, write_jobs
from longlive_core.cli import main
from longlive_core.cli.cluster import connected, made_by

WHY = "RAY NOT TESTED: pip install 'longlive[ray]'"


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_cluster_makes_the_same_videos_and_loses_none_with_a_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason=WHY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = compare(tmp_path, 3, 0.5, 1)
    finally:
        torch.set_num_threads(threads)
    assert len(found["failed"]) == 1 and found["failed"][0].startswith("line 1: bad 0.mp4 failed: the given")
    assert (found["kills"], found["same_videos"]) == (1, 4)
    assert found["exit_codes"] == {"cluster": 1, "plain loop": 1, "again": 0}
    assert found["is_same_manifest"] and found["is_unchanged_again"]


class Lost(Exception):
    """What Ray raises for a worker that is gone."""


def stand_in(make: Callable, load: Callable) -> SimpleNamespace:
    """For a worker; a task runs when its result is asked for."""
    tasks = SimpleNamespace(remote=lambda job: partial(make, job))
    return SimpleNamespace(
        preset=SimpleNamespace(remote=lambda: partial(load)),
        make=SimpleNamespace(options=lambda max_task_retries: tasks),
    )


def test_jobs_of_lost_workers_go_on_with_others_and_one_that_kills_them_ends() -> None:
    """With a stand-in for Ray. One worker is lost at its first job and does not come back."""
    ray = SimpleNamespace(
        wait=lambda tasks: (tasks[:1], tasks[1:]),
        get=lambda task: task(),
        exceptions=SimpleNamespace(RayError=Lost),
    )
    tried = []

    def make(job: SimpleNamespace) -> tuple[int, None]:
        tried.append(job.line)
        if job.line == 2:
            raise Lost("killed")
        return 8, None

    def gone(*_: object) -> None:
        raise Lost("no such machine")

    loads = iter([lambda: None, gone])
    workers = [stand_in(make, lambda: None), stand_in(gone, lambda: next(loads)())]
    jobs = [SimpleNamespace(line=number) for number in range(5)]
    found = {job.line: (frames, error) for job, frames, error in made_by(ray, workers, jobs)}
    assert found == dict.fromkeys((0, 1, 3, 4), (8, None)) | {2: (0, "its worker failed 3 times: killed")}
    assert tried.count(2) == 3
    none = [*made_by(ray, [stand_in(gone, gone)], jobs[:1])]
    assert none == [(jobs[0], 0, "no worker is left: no such machine")]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--cpus-per-worker", "1"], "goes with --ray"),
        (["--ray", "auto", "--cpus-per-worker", "0"], "1 or more"),
    ],
)
def test_options_of_a_cluster_that_cannot_be(given, sentence, tmp_path, capsys) -> None:
    command = write_jobs(tmp_path, [{"prompt": PROMPT}])
    assert main([*command, str(tmp_path / "out"), *given]) == 2 and sentence in capsys.readouterr().err


def test_sigterm_still_ends_like_ctrl_c_when_ray_has_begun(monkeypatch) -> None:
    """A stand-in for Ray sets a handler of its own, as Ray does."""
    ray = SimpleNamespace(init=lambda *_, **options: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = signal.getsignal(signal.SIGTERM)
    assert connected("auto") is ray and signal.getsignal(signal.SIGTERM) == before


def test_without_ray_a_cluster_says_what_to_install(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = write_jobs(tmp_path, [{"prompt": PROMPT, "seconds": 1}])
    assert main([*command, str(tmp_path / "out"), "--ray", "auto"]) == 2
    assert "pip install 'longlive[ray]'" in capsys.readouterr().err
