"""The pack in a real ComfyUI, over HTTP and WebSocket."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from longlive_core import load_pipeline
from longlive_core.geometry import FRAME_RATE
from longlive_core.output.video import read_settings

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("[0-9]* *.json"))  # of Mini: the others need a download
NODES = (
    "LongLiveLoadMini",
    "LongLiveLoadModel",
    "LongLiveUseModel",
    "LongLiveLoadVAE",
    "LongLivePromptSchedule",
    "LongLiveFrameSink",
    "LongLiveSource",
    "LongLiveControl",
    "LongLiveStream",
    "LongLiveDecode",
)
PROMPTS = "0 a red circle drifts right over navy\n1s => it turns into a blue star\n"
SECONDS = 2.0


def small_prompt(prompts: str = PROMPTS, **stream) -> dict:
    """Mini, a schedule, a stream, saved: the shortest graph that makes a video."""
    settings = {"width": 64, "height": 64, "seconds": SECONDS, "seed": 3, **stream}
    links = {"model": ["1", 0], "schedule": ["2", 0], "vae": ["1", 2]}
    save = {"video": ["3", 0], "filename_prefix": "small", "format": "auto", "codec": "auto"}
    return {
        "1": {"class_type": "LongLiveLoadMini", "inputs": {}},
        "2": {"class_type": "LongLivePromptSchedule", "inputs": {"clip": ["1", 1], "prompts": prompts}},
        "3": {"class_type": "LongLiveStream", "inputs": links | settings},
        "4": {"class_type": "SaveVideo", "inputs": save},
    }


def frames_of(path: Path) -> tuple[int, float]:
    """Frames of a video, counted by decoding them all, and frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sum(1 for _ in container.decode(stream)), float(stream.average_rate)


def pictures_of(server, images: list[dict]) -> np.ndarray:
    """The pictures that a preview node wrote, [F, H, W, 3] uint8."""
    return np.stack([np.asarray(Image.open(server.path_of(image)).convert("RGB")) for image in images])


def headless(prompts: str, seconds: float, seed: int) -> np.ndarray:
    """The same frames from the Python package, as PreviewImage rounds them."""
    with torch.inference_mode():
        frames = torch.cat(list(load_pipeline().stream(prompts, seconds, seed=seed)))
    return (frames * 255).byte().numpy()


def test_pack_loads_without_a_warning(server):
    lines = [line for line in server.start_log.splitlines() if "longlive" in line.lower()]
    assert lines and all("seconds: " in line for line in lines), lines
    assert "IMPORT FAILED" not in server.start_log and "Traceback" not in server.start_log


TYPED = {  # what people type into the search -> nodes that are found
    "LongLiveStream": ["long video", "infinite video", "text to video", "realtime", "real time", "live"],
    "LongLivePromptSchedule": ["timeline", "prompt travel", "prompt timeline", "storyboard", "keyframes"],
    "LongLiveUseModel": ["wan", "self forcing", "causal"],
    "LongLiveLoadModel": ["wan", "self forcing", "causal"],
}


def test_nodes_are_found_by_the_words_people_type(server, object_info):
    has_aliases = any(info.get("search_aliases") for info in object_info.values())
    assert has_aliases or server.version.startswith("0.3.6"), "all but the oldest know them"
    for name in NODES:
        info = object_info[name]
        assert "video" in info["description"].lower(), name
        assert bool(info.get("search_aliases")) == has_aliases, name
        assert not has_aliases or {*TYPED.get(name, [])} <= {*info["search_aliases"]}, name


def test_every_node_is_there_and_explains_itself(server, object_info):
    assert {name for name in object_info if name.startswith("LongLive")} == set(NODES)
    for name in NODES:
        info = object_info[name]
        assert info["category"] == "video/LongLive" and info["description"], name
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        for input_name, declared in inputs.items():
            assert declared[1].get("tooltip"), (name, input_name)
        assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), name
        assert server.status_of(f"/extensions/ComfyUI-LongLive/docs/{name}.md") == 200, name
    assert (
        server.status_of("/api/workflow_templates/ComfyUI-LongLive/3%20Direct%20a%20video%20live.jpg") == 200
    )


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_makes_the_video_asked_for(server, object_info, comfy, file):
    prompt = comfy.shortened(comfy.as_prompt(json.loads(file.read_text()), object_info), SECONDS)
    run = server.run(prompt)
    assert run.has_succeeded, run.history["status"]
    saves = [key for key, node in prompt.items() if node["class_type"] == "SaveVideo"]
    assert saves
    for key in saves:
        path = server.path_of(run.outputs[key]["images"][0])
        stream = prompt[prompt[key]["inputs"]["video"][0]]["inputs"]
        parts = 2 if stream["whole_video"] else 1
        assert frames_of(path) == (round(parts * SECONDS * FRAME_RATE), FRAME_RATE)
        assert read_settings(path)["seconds"] == SECONDS
    assert len(run.previews) >= 3 * len(saves)
    assert {Image.open(io.BytesIO(preview)).format for preview in run.previews} == {"JPEG"}
    lines = [line for text in run.texts for line in text.splitlines()]
    assert all("takes effect at" in line for line in lines), "the panel says how far a video is"


def test_prompts_are_shown_as_they_are_and_unknown_words_are_named(server):
    """The host's pages read a node's text as HTML."""
    run = server.run(small_prompt("0 a red <b>dog</b>\n0.1 a <b>star</b>", seconds=1.5))
    (shown,) = run.texts
    assert '0.1s "a &lt;b&gt;star&lt;/b&gt;" takes effect at 0.6s (block 1)' in shown and "<" not in shown
    assert "takes effect at 0s" not in shown, "the first prompt is on time"
    assert "Mini does not know b, dog in" in shown
    assert "a red <b>dog</b>" in run.outputs["2"]["text"][0], "this is no HTML"


def test_same_inputs_are_served_from_the_cache_and_another_seed_is_not(server):
    first = server.run(small_prompt(seed=11))
    assert first.has_succeeded and "3" not in first.event("execution_cached")["nodes"]
    assert "3" in server.run(small_prompt(seed=11)).event("execution_cached")["nodes"]
    other = server.run(small_prompt(seed=12))
    cached = other.event("execution_cached")["nodes"]
    assert "3" not in cached and {"1", "2"} <= set(cached) and other.previews


@pytest.mark.newest
def test_fewer_steps_are_counted_and_written_down(server, comfy):
    for steps in (2, 3):
        run = server.run(small_prompt(seed=13, steps=steps))
        assert run.has_succeeded, run.history["status"]
        done = [data for kind, data in run.events if kind == "progress" and data["node"] == "3"]
        assert done[-1]["value"] == done[-1]["max"] == 3 * steps, "three blocks"
        assert read_settings(server.path_of(run.outputs["4"]["images"][0]))["steps"] == steps
    with pytest.raises(comfy.PromptRefused, match="smaller than min"):
        server.run(small_prompt(steps=1))


def notes_of_newest(server) -> list[str]:
    """What the panel says of the newest run."""
    return server.get("/longlive/runs")["runs"][0]["notes"]


def test_interrupt_keeps_what_was_made_and_the_server_goes_on(server):
    folder = server.base / "output" / "longlive"
    before = set(folder.glob("stream_*"))
    run = server.run(small_prompt(seconds=900.0, seed=5), interrupt_after=3)
    assert run.event("execution_interrupted") and not run.has_succeeded
    (kept,) = set(folder.glob("stream_*")) - before
    frames, rate = frames_of(kept)
    assert 33 <= frames < 900 * FRAME_RATE and rate == FRAME_RATE
    assert read_settings(kept)["seed"] == 5
    assert f"kept as output/longlive/{kept.name}" in notes_of_newest(server)[-1]
    after = server.run(small_prompt(seed=6))
    assert after.has_succeeded
    assert set(folder.glob("stream_*")) - before == {kept}, "a finished stream leaves nothing behind"


def test_three_nodes_run_and_the_video_is_kept_and_listed(server):
    """A stream is an output of its own: what nobody saves belongs to output/."""
    prompt = small_prompt(seed=14)
    del prompt["4"]
    run = server.run(prompt)
    assert run.has_succeeded, run.event("execution_error")
    (listed,) = run.outputs["3"]["longlive_video"]
    assert (listed["type"], listed["subfolder"]) == ("output", "longlive")
    assert frames_of(server.path_of(listed)) == (round(SECONDS * FRAME_RATE), FRAME_RATE)
    assert server.path_of(listed).parent == server.base / "output" / "longlive"
    if server.status_of("/api/jobs") == 200:  # 0.3.64 has none
        job = next(job for job in server.get("/api/jobs")["jobs"] if job["id"] == run.prompt_id)
        assert job["preview_output"]["filename"] == listed["filename"]


def test_stock_nodes_take_the_clip_and_the_vae(server):
    prompt = small_prompt(seconds=2.8125)  # 45 frames: four whole blocks
    prompt |= {
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red circle"}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 1], "vae": ["1", 2]}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
        "9": {"class_type": "LongLiveDecode", "inputs": {"latent": ["3", 1], "vae": ["1", 2]}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}},
        "11": {"class_type": "VAEEncode", "inputs": {"pixels": ["7", 0], "vae": ["1", 2]}},
        "12": {
            "class_type": "LongLiveStream",
            "inputs": {**prompt["3"]["inputs"], "continue_from": ["11", 0]},
        },
        "13": {"class_type": "SaveVideo", "inputs": {**prompt["4"]["inputs"], "video": ["12", 0]}},
    }
    run = server.run(prompt)
    assert run.has_succeeded, run.history["status"]
    stock, ours = (pictures_of(server, run.outputs[key]["images"]) for key in ("8", "10"))
    assert np.array_equal(stock, ours)
    close = np.abs(stock.astype(int) - headless(PROMPTS, 2.8125, 3)) <= 1
    assert close.mean() > 0.999, "host and headless frames differ"
    assert frames_of(server.path_of(run.outputs["12"]["longlive_video"][0]))[0] == 45


def test_decode_knows_scene_cuts_and_a_stream_can_be_continued(server):
    prompts = "0 a red circle drifts right over navy\n1s => cut: a blue star rests over plum\n"
    prompt = small_prompt(prompts, seconds=2.8125)
    more = {**prompt["3"]["inputs"], "continue_from": ["3", 1], "schedule": ["7", 0], "seconds": 1.5}
    prompt |= {
        "5": {"class_type": "LongLiveDecode", "inputs": {"latent": ["3", 1], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
        "7": {
            "class_type": "LongLivePromptSchedule",
            "inputs": {"clip": ["1", 1], "prompts": "it turns red"},
        },
        "8": {"class_type": "LongLiveStream", "inputs": more},
        "9": {"class_type": "LongLiveDecode", "inputs": {"latent": ["8", 1], "vae": ["1", 2]}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}},
    }
    run = server.run(prompt)
    assert run.has_succeeded, run.history["status"]
    first, both = (pictures_of(server, run.outputs[key]["images"]) for key in ("6", "10"))
    close = np.abs(first.astype(int) - headless(prompts, 2.8125, 3)) <= 1
    assert close.mean() > 0.999, "host and headless frames differ"
    assert np.array_equal(both[:45], first) and len(both) == 45 + 24
    assert frames_of(server.path_of(run.outputs["8"]["longlive_video"][0]))[0] == 24


BAD = {
    "bad time": (small_prompt("0 a red circle\nsoon => a star"), "line 2, column 1"),
    "empty": (small_prompt("\n"), "the schedule is empty"),
    "late first cue": (small_prompt("5s => a red circle"), "line 1, column 1: the first cue is at 5s"),
    "size": (small_prompt(width=70), "multiples of 16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_sentence(server, name):
    prompt, sentence = BAD[name]
    error = server.run(prompt).event("execution_error")
    assert sentence in error["exception_message"] and error["exception_type"] == "ValueError"


def test_cues_beyond_the_end_are_reported_and_the_video_is_made(server):
    run = server.run(small_prompt("0 a red circle\n9s => a star\n12s => it rests", seconds=0.5))
    assert run.has_succeeded, run.event("execution_error")
    assert "2 cues after 0:00.5 are not played" in notes_of_newest(server)


def test_a_window_that_cannot_hold_sink_and_block_is_refused(server):
    prompt = small_prompt()
    sink = {"window": 4, "sink": 3, "on_switch": "recache", "positions": "auto"}
    prompt["5"] = {"class_type": "LongLiveFrameSink", "inputs": sink}
    prompt["3"]["inputs"]["window"] = ["5", 0]
    error = server.run(prompt).event("execution_error")
    assert error["node_id"] == "5" and "cannot hold the sink" in error["exception_message"]


@pytest.mark.newest
def test_a_long_schedule_and_other_scripts_pass(server):
    cues = "".join(f"{i * 0.0002:.4f} => a red circle ⭐ {i}\n" for i in range(1000))
    run = server.run(small_prompt("0 دائرة red circle 🔴\n" + cues, seconds=1.0))
    assert run.has_succeeded, run.event("execution_error")
