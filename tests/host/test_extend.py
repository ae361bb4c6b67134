"""Streams that go on from each other in a real ComfyUI, and videos that carry the graph they come from."""

import json
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

RED, STAR = "a red circle drifts right over navy", "it turns into a blue star"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def schedule(prompts: str) -> dict:
    return node("LongLivePromptSchedule", clip=["mini", 1], prompts=prompts)


def stream(prompts: str, seconds: float, **inputs) -> dict:
    parts = {"model": ["mini", 0], "schedule": [prompts, 0], "vae": ["mini", 2]}
    size = {"width": 64, "height": 64, "seconds": seconds, "seed": 21}
    return node("LongLiveStream", **parts, **(size | inputs))


def dump(name: str, source: str) -> dict:
    return node("TestDump", name=name, latent=[source, 1])


def dumped(server, name: str) -> torch.Tensor:
    return torch.load(server.base / "output" / f"{name}.pt")


def parted(keep_state: bool, seed: int, **second) -> dict:
    """A, and B that goes on from it, behind a switch; and both in one run. Another seed is not cached."""
    return {
        "mini": node("LongLiveLoadMini"),
        "red": schedule(RED),
        "star": schedule(f"0 {RED}\n0.5s => {STAR}"),
        "both": schedule(f"0 {RED}\n2s => {STAR}"),
        "a": stream("red", 1.5, keep_state=keep_state, seed=seed),
        "b": stream("star", 1.5, continue_from=["a", 1], seed=seed, **second),
        "whole": stream("both", 3.0, seed=seed),
        "dump_b": dump("extended", "b"),
        "dump_whole": dump("whole", "whole"),
    }


def run(server, prompt: dict):
    done = server.run(prompt)
    assert done.has_succeeded, done.event("execution_error")["exception_message"]
    return done


def pictures(server, done, key: str) -> np.ndarray:
    """The frames [F, H, W, 3] of a stream's video."""
    with av.open(str(server.path_of(done.outputs[key]["longlive_video"][0]))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_two_streams_are_one_with_the_state(server):
    done = run(server, parted(keep_state=True, seed=31))
    assert torch.equal(dumped(server, "extended"), dumped(server, "whole"))
    one, other, whole = (pictures(server, done, key) for key in ("a", "b", "whole"))
    assert len(one) == len(other) == 24 and len(whole) == 48
    both = np.concatenate((one, other)).astype(int)
    assert np.abs(both - whole).mean() < 2, "but for what H.264 makes of them"


@pytest.mark.newest
def test_the_whole_video_is_one_file(server):
    done = run(server, parted(keep_state=True, seed=35, whole_video=True))
    both, whole = (pictures(server, done, key) for key in ("b", "whole"))
    assert len(both) == len(whole) == 48
    assert np.abs(both.astype(int) - whole).mean() < 2, "but for what H.264 makes of them"


@pytest.mark.newest
def test_a_clip_of_any_length_is_continued(server):
    """As from Load Video: 33 frames that VAE Encode made 9 latent frames of, then 6, 7 and 8 of them.

    One is an image.
    """
    prompt = {"mini": node("LongLiveLoadMini"), "red": schedule(RED), "a": stream("red", 2.0, seed=36)}
    lengths = (1, 6, 7, 8)
    for length in lengths:
        cut = node("LatentCut", samples=["a", 1], dim="t", index=9 - length, amount=length)
        more = stream("red", 1.0, continue_from=[f"cut{length}", 0], seed=36, whole_video=True)
        prompt |= {f"cut{length}": cut, f"more{length}": more}
    done = run(server, prompt)
    for length in lengths:
        assert len(pictures(server, done, f"more{length}")) == 4 * length - 3 + 16


@pytest.mark.newest
def test_latents_alone_are_on_the_same_clock_and_smooth(server):
    """Another video from the seam on, whose first frames are those that the first one's end cut off."""
    done = run(server, parted(keep_state=False, seed=32))
    assert dumped(server, "extended").shape == dumped(server, "whole").shape
    one, other, whole = (pictures(server, done, key) for key in ("a", "b", "whole"))
    assert len(one) == len(other) == 24
    cut_off = 9 + 12 + 12 - 24
    assert np.abs(other[:cut_off].astype(int) - whole[24 : 24 + cut_off]).mean() < 2
    steps = np.abs(np.diff(np.concatenate((one, other)).astype(int), axis=0)).mean((1, 2, 3))
    assert max(steps[23], steps[23 + cut_off]) < 2 * steps[6:23].max()


@pytest.mark.newest
def test_a_state_that_does_not_fit_is_one_sentence(server):
    error = server.run(parted(True, 33, width=128)).event("execution_error")
    assert "size 64x64 (now 128x64)" in error["exception_message"]
    prompt = parted(True, 33, window=["sink", 0])
    prompt["sink"] = node("LongLiveFrameSink", window=9, sink=3, on_switch="recache", positions="auto")
    assert (
        "window latent frames 12 (now 9)" in server.run(prompt).event("execution_error")["exception_message"]
    )


@pytest.mark.newest
def test_latents_that_were_changed_go_on_without_the_state(server):
    prompt = parted(True, 34)
    prompt["changed"] = node("LatentMultiply", samples=["a", 1], multiplier=0.9)
    prompt["b"]["inputs"]["continue_from"] = ["changed", 0]
    run(server, prompt)
    assert not torch.equal(dumped(server, "extended"), dumped(server, "whole"))


@pytest.fixture(scope="module")
def graph() -> dict:
    """A workflow as a page sends it along."""
    return {"id": "0a-1b", "nodes": [{"id": 1, "title": "ünïcode ✨"}], "extra": {"text": "x" * 10_000}}


def test_a_video_carries_the_graph_it_comes_from(server, graph):
    prompt = {"mini": node("LongLiveLoadMini"), "red": schedule(RED), "a": stream("red", 1.0)}
    prompt["save"] = node("SaveVideo", video=["a", 0], filename_prefix="graph", format="auto", codec="auto")
    data = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": graph}}}
    name = server.post("/prompt", data)["prompt_id"]
    deadline = time.monotonic() + 60
    while not (history := server.get(f"/history/{name}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.get("/longlive/runs")["runs"][0]["workflow"] == graph["id"]
    outputs = history[name]["outputs"]
    for entry in (outputs["a"]["longlive_video"][0], outputs["save"]["images"][0]):
        with av.open(str(server.path_of(entry))) as container:
            assert json.loads(container.metadata["workflow"]) == graph
            carried = json.loads(container.metadata["prompt"])
            for part in carried.values():
                part.pop("is_changed", None)  # where the host notes a node's fingerprint
            assert carried == prompt
            assert json.loads(container.metadata["longlive"])["seed"] == 21
    assert index_comes_first(server.path_of(outputs["a"]["longlive_video"][0]))


def index_comes_first(path: Path) -> bool:
    """The page reads the graph from a file's beginning."""
    data = path.read_bytes()
    return data.index(b"moov") < data.index(b"mdat")
