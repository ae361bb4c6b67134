"""longlive batch --ray on two CPUs: the videos of the plain loop, also when a worker is killed."""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from longlive_core.cli import main

PROMPT = "a red circle drifts right over navy"
CLUSTER = ["--ray", "auto", "--cpus-per-worker", "1"]
WHY = "RAY NOT TESTED: pip install 'longlive[ray]'"


def write_jobs(folder: Path, jobs: list[dict]) -> list[str]:
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    return ["batch", str(folder / "jobs.jsonl"), "--out"]


def kill_the_writer(path: Path, is_over: threading.Event, killed: list[int]) -> None:
    """Kill the process that has this file open, once a part of the video is in it."""
    while not is_over.wait(0.02):
        if path.exists() and path.stat().st_size > 20_000:
            for link in Path("/proc").glob("[0-9]*/fd/*"):
                with suppress(OSError):
                    if int(link.parts[2]) != os.getpid() and link.resolve() == path:
                        os.kill(int(link.parts[2]), signal.SIGKILL)
                        killed.append(int(link.parts[2]))
                        return


def test_a_cluster_makes_the_same_videos_and_loses_none_with_a_worker(tmp_path, capsys, monkeypatch) -> None:
    ray = pytest.importorskip("ray", reason=WHY)
    monkeypatch.chdir(tmp_path)
    jobs = [{"prompt": PROMPT, "seconds": 10, "name": "long"}]
    jobs += [{"prompt": PROMPT, "seconds": 0.5, "seed": seed, "name": f"{seed}"} for seed in range(4)]
    jobs += [{"prompt": PROMPT, "seconds": 0.5, "image": "v.mp4", "name": "no longer than its beginning"}]
    assert main(["generate", "--prompt", PROMPT, "--seconds", "0.7", "--out", "v.mp4"]) == 0
    command = write_jobs(tmp_path, jobs)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    is_over, killed = threading.Event(), []
    watch = threading.Thread(target=kill_the_writer, args=(tmp_path / "there" / "long.mp4", is_over, killed))
    watch.start()
    try:
        assert main([*command, "there", *CLUSTER]) == 1
    finally:
        is_over.set()
        watch.join()
        ray.shutdown()
    assert len(killed) == 1
    assert (
        "line 6: no longer than its beginning.mp4 failed: the given part already" in capsys.readouterr().err
    )
    notes = [json.loads(line) for line in (tmp_path / "there" / "manifest.jsonl").read_text().splitlines()]
    assert sorted(one["line"] for one in notes) == [1, 2, 3, 4, 5, 6]
    assert [one["line"] for one in notes if one["error"]] == [6]

    assert main([*write_jobs(tmp_path, jobs[:5]), "there"]) == 0  # nothing is left, and no Ray is needed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*command, "here"]) == 0
    finally:
        torch.set_num_threads(threads)
    for job in jobs[:5]:
        there, here = (tmp_path / folder / f"{job['name']}.mp4" for folder in ("there", "here"))
        assert there.read_bytes() == here.read_bytes()


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


def test_without_ray_a_cluster_says_what_to_install(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = write_jobs(tmp_path, [{"prompt": PROMPT, "seconds": 1}])
    assert main([*command, str(tmp_path / "out"), "--ray", "auto"]) == 2
    assert "pip install 'longlive[ray]'" in capsys.readouterr().err
