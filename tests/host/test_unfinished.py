"""The same graph, queued again after a crash or an interrupt, goes on where it was, bit for bit."""

import os
import resource
import signal
import time

import pytest
import torch

from longlive_core.output.video import count_frames

NAVY, PLUM = "a red circle drifts right over navy", "a blue star drifts up over plum"
NOTE = "where the same run was left unfinished"


def graph(name: str, prompts: str = NAVY, **made) -> dict:
    """Mini's latents, dumped."""
    made = {"width": 64, "height": 64, "seconds": 9, "seed": 3} | made
    links = {"model": ["1", 0], "schedule": ["2", 0], "vae": ["1", 2]}
    nodes = {"LongLiveLoadMini": {}, "LongLivePromptSchedule": {"clip": ["1", 1], "prompts": prompts}}
    nodes |= {"LongLiveStream": links | made, "TestDump": {"name": name, "latent": ["3", 1]}}
    return {
        str(n): {"class_type": kind, "inputs": inputs} for n, (kind, inputs) in enumerate(nodes.items(), 1)
    }


def finished(server, prompt: dict) -> tuple[torch.Tensor, dict]:
    """The latents of a prompt, and its run."""
    done = server.run(prompt)
    assert done.has_succeeded, done.event("execution_error")
    run = server.get("/longlive/runs")["runs"][0]
    return torch.load(server.base / "output" / f"{prompt['4']['inputs']['name']}.pt"), run


def until(server, is_so) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        runs = server.get("/longlive/runs")["runs"]
        if runs and is_so(runs[0]):
            return
        time.sleep(0.05)
    raise AssertionError(f"it never was so: {runs}")


def journals(server) -> list:
    return [*(server.base / "output" / "longlive" / "unfinished").iterdir()]


@pytest.mark.newest
def test_a_killed_server_goes_on_with_what_was_sent(checkout, comfy, tmp_path):
    server = comfy.Server(checkout, tmp_path / "base", "http://127.0.0.1:9")
    try:
        server.post("/prompt", {"prompt": graph("first", pace="real time")})
        until(server, lambda run: run["num_frames"] >= 21)
        server.post("/longlive/runs/current/prompt", {"prompt": PLUM, "policy": "cut"})
        until(server, lambda run: len(run["cues"]) == 2 and run["block"] >= run["cues"][1]["block"] + 2)
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
    server = comfy.Server(checkout, tmp_path / "base", "http://127.0.0.1:9")
    try:
        again, run = finished(server, graph("first"))
        assert any(NOTE in note for note in run["notes"]), run["notes"]
        assert [cue["prompt"] for cue in run["cues"]] == [NAVY, PLUM] and run["num_frames"] == 144
        whole, run = finished(server, graph("whole", run["schedule"], resume="off"))
        assert torch.equal(again, whole) and not any(NOTE in note for note in run["notes"])
        assert journals(server) == []
    finally:
        server.stop()


@pytest.mark.newest
def test_a_version_that_does_not_fit_on_the_disk_ends_the_run_and_it_goes_on_with_room(server):
    before = {*server.base.rglob("*.mp4")}
    server.post("/prompt", {"prompt": graph("full", seed=10, pace="real time")})
    until(server, lambda run: run["state"] == "running" and run["num_frames"] >= 45)
    server.post("/longlive/runs/current/pause", {})
    time.sleep(0.5)
    (video,) = {*server.base.rglob("*.mp4")} - before
    limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (video.stat().st_size // 2, limits[1]))
    try:
        server.post("/longlive/runs/current/back", {"seconds": 0, "seed": 5, "keep": True})
        until(server, lambda run: run["state"] == "failed")
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)
    (run, *_) = server.get("/longlive/runs")["runs"]
    assert "_v1.mp4 cannot be written (File too large); the video itself stays as it was" in run["error"]
    assert run["taken_back"] == 0 and any("s are kept as" in note for note in run["notes"])
    assert count_frames(video) == run["num_frames"] >= 45
    assert {*server.base.rglob("*.mp4")} - before == {video} and not [*video.parent.glob(".*.part")]
    again, run = finished(server, graph("full", seed=10))
    assert any(NOTE in note for note in run["notes"]) and run["num_frames"] == 144
    whole, _ = finished(server, graph("whole", seed=10, resume="off"))
    assert torch.equal(again, whole)


def test_an_interrupted_run_goes_on_unless_it_is_off(server):
    for resume in ("unfinished run", "off"):
        stopped = server.run(graph(resume, seed=8, resume=resume), interrupt_after=3)
        assert stopped.event("execution_interrupted")
    whole, run = finished(server, graph("whole", seed=8, resume="off"))
    assert not any("unfinished" in note for note in run["notes"])
    stopped = server.run(graph("again", seed=9), interrupt_after=3)
    again, run = finished(server, graph("again", seed=9))
    assert any(" s are those of the run before" in note or NOTE in note for note in run["notes"])
    assert run["num_frames"] == 144 and whole.shape == again.shape
