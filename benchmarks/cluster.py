"""`longlive batch --ray` on two workers of one thread each: the videos of the plain loop, and how fast?

python -m benchmarks.cluster            # 20 jobs, three of them bad, and a worker gets kill -9; Linux
python -m benchmarks.cluster --speed    # two workers against one, after the model is loaded
"""

import argparse
import io
import json
import os
import signal
import threading
import time
from contextlib import redirect_stderr, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure import in_turn, report
from longlive_core.cli import batch, build_parser, cluster, main

PROMPT = "a red circle drifts right over navy"
CLUSTER = ["--ray", "auto", "--cpus-per-worker", "1"]


def jobs_of(name: str, count: int, **options: object) -> list[dict]:
    return [{"name": f"{name} {n}", "prompt": PROMPT, "seed": n, **options} for n in range(count)]


def write_jobs(folder: Path, jobs: list[dict]) -> list[str]:
    """The command that makes them, but for the folder of the videos."""
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    return ["batch", str(folder / "jobs.jsonl"), "--out"]


def start_ray() -> Any:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    return ray


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


def compare(folder: Path, num_short: int, seconds: float, num_bad: int) -> dict[str, Any]:
    """What two workers make of such jobs and a long one, whose worker is killed, next to the plain loop."""
    main(["generate", "--prompt", PROMPT, "--seconds", "0.7", "--out", str(folder / "v.mp4")])
    good = [*jobs_of("long", 1, seconds=10), *jobs_of("short", num_short, seconds=seconds)]
    bad = jobs_of("bad", num_bad, seconds=0.5, image="v.mp4")  # which is seen when they are made
    command, ray = write_jobs(folder, bad + good), start_ray()
    there, here = folder / "there", folder / "here"
    is_over, killed, said = threading.Event(), [], io.StringIO()
    watch = threading.Thread(target=kill_the_writer, args=(there / "long 0.mp4", is_over, killed))
    watch.start()
    try:
        with redirect_stderr(said):
            first = main([*command, str(there), *CLUSTER])
    finally:
        is_over.set()
        watch.join()
        ray.shutdown()
    before = contents(there)
    plain = main([*command, str(here)])
    made, expected = dict(before), contents(here)
    notes = [sorted(files.pop(batch.MANIFEST).splitlines()) for files in (made, expected)]
    same = [name for name, data in expected.items() if made.get(name) == data]
    again = main([*write_jobs(folder, good), str(there), *CLUSTER])  # no Ray runs now, and none is needed
    return {
        "kills": len(killed),
        "exit_codes": {"cluster": first, "plain loop": plain, "again": again},
        "failed": [line.partition(", ")[2] for line in said.getvalue().splitlines() if " failed: " in line],
        "same_videos": len(same),
        "is_same_manifest": notes[0] == notes[1],
        "is_unchanged_again": contents(there) == before,
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def speed(folder: Path, num_jobs: int, repeats: int = 3) -> dict[str, Any]:
    """Seconds that one and two workers take for the same videos of 10 s, in turn."""
    command, ray = write_jobs(folder, jobs_of("job", num_jobs, seconds=10)), start_ray()
    options = build_parser().parse_args([*command, str(folder), *CLUSTER])
    jobs = batch.read_jobs(options, batch.Problems(options.jobs))
    workers = cluster.begun(ray, options, 2)
    works = {n: lambda n=n: [*cluster.made_by(ray, workers[:n], jobs)] for n in (2, 1)}
    if errors := [error for _, _, error in works[2]() if error]:
        raise RuntimeError(errors[0])
    found = in_turn({f"workers_{n}": work for n, work in works.items()}, repeats, time.perf_counter)
    ray.shutdown()
    ratio = round(found["workers_1"] / found["workers_2"], 3)
    return {"jobs": num_jobs, "repeats": repeats, **found, "ratio": ratio}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speed", action="store_true", help="measure this alone")
    parser.add_argument("--jobs", type=int, default=8, help="with --speed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        if chosen.speed:
            report("cluster_speed", speed(Path(name), chosen.jobs))
        else:
            report("cluster", compare(Path(name), 16, 2.0, 3))
