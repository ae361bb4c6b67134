"""Sound under the videos of a real ComfyUI: the file that it loads is heard in those that it saves."""

import io
import json
import wave
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import av
import numpy as np
import pytest

from longlive_core.output.video import read_settings

RATE, CLICKS = 44_100, (0.25, 1.5)
RED = "a red circle drifts right over navy"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(**stream) -> dict:
    """Mini, a prompt and a second of video with the sound of a file; saved."""
    parts = {"model": ["mini", 0], "schedule": ["red", 0], "vae": ["mini", 2], "audio": ["sound", 0]}
    size = {"width": 64, "height": 64, "seconds": 1.0, "seed": 41}
    save = {"filename_prefix": "sound", "format": "auto", "codec": "auto"}
    return {
        "mini": node("LongLiveLoadMini"),
        "red": node("LongLivePromptSchedule", clip=["mini", 1], prompts=RED),
        "sound": node("LoadAudio", audio="clicks.wav"),
        "a": node("LongLiveStream", **parts, **(size | stream)),
        "save": node("SaveVideo", video=["a", 0], **save),
    }


@pytest.fixture(scope="module")
def clicks(server) -> None:
    """Puts a file into the input folder that clicks at CLICKS."""
    samples = np.zeros((3 * RATE, 2), "<i2")
    for click in CLICKS:
        samples[round(click * RATE) :][:200] = 30_000
    folder = server.base / "input"
    folder.mkdir(exist_ok=True)
    with wave.open(str(folder / "clicks.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def run(server, prompt: dict):
    done = server.run(prompt)
    assert done.has_succeeded, done.event("execution_error")["exception_message"]
    return done


def heard(path: Path) -> tuple[list[float], float]:
    """Seconds at which it clicks, and how long the sound is."""
    with av.open(io.BytesIO(path.read_bytes())) as container:
        frames = list(container.decode(audio=0))
        rate, start = frames[0].sample_rate, float(frames[0].pts * frames[0].time_base)
        assert abs(container.streams.video[0].start_time or 0) < 0.02 * 16_384
    samples = np.abs(np.concatenate([frame.to_ndarray() for frame in frames], axis=1)[0])
    loud = np.flatnonzero(samples > 0.3)
    return [at / rate + start for at in loud[np.diff(loud, prepend=-rate) > rate // 2]], len(samples) / rate


def test_save_video_keeps_the_sound_and_the_graph(server, clicks):
    done = run(server, graph())
    for key, listing in (("a", "longlive_video"), ("save", "images")):
        path = server.path_of(done.outputs[key][listing][0])
        at, seconds = heard(path)
        assert at == pytest.approx(CLICKS[:1], abs=0.005) and seconds == pytest.approx(1, abs=1 / 16), key
        assert set(read_settings(path)["sound"]) == {"sha256", "sample_rate"}
        with av.open(str(path)) as container:
            assert json.loads(container.metadata["prompt"])["sound"]["inputs"]["audio"] == "clicks.wav"


@pytest.mark.newest
def test_the_sound_begins_with_the_new_part_or_with_the_whole_video(server, clicks):
    for whole_video, expected in ((False, CLICKS[:1]), (True, CLICKS)):
        prompt = graph(continue_from=["before", 1], whole_video=whole_video, seed=42)
        before = {name: link for name, link in prompt["a"]["inputs"].items() if name != "continue_from"}
        del before["audio"]
        prompt["before"] = node("LongLiveStream", **(before | {"whole_video": False}))
        at, seconds = heard(server.path_of(run(server, prompt).outputs["save"]["images"][0]))
        assert at == pytest.approx(expected, abs=0.005)
        assert seconds == pytest.approx(2 if whole_video else 1, abs=1 / 16)


@pytest.mark.newest
def test_a_run_that_is_interrupted_keeps_the_sound_of_what_it_made(server, clicks):
    done = server.run(graph(seconds=60.0, seed=43, pace="real time"), interrupt_after=3)
    assert not done.has_succeeded
    video = max((server.base / "output" / "longlive").glob("*.mp4"), key=lambda file: file.stat().st_mtime)
    at, seconds = heard(video)
    with av.open(str(video)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert at[0] == pytest.approx(CLICKS[0], abs=0.005) and seconds == pytest.approx(frames / 16, abs=1 / 16)


@pytest.mark.newest
def test_a_sound_that_is_shorter_than_the_video_is_noted(server, clicks):
    run(server, graph(seconds=4.0, seed=44))
    (newest, *_) = server.get("/longlive/runs")["runs"]
    assert any("audio ends after 3.0 s" in note for note in newest["notes"])


def test_beats_are_of_files_in_the_input_folder_alone(server, clicks):
    assert "clicks.wav" in server.get("/longlive/sounds")["files"]
    for name in ("../server.log", "/etc/passwd", "nowhere.wav", ""):
        assert server.status_of(f"/longlive/beats?file={quote(name)}") == 400
    status, answer = answer_of(server, "/longlive/beats?file=clicks.wav")
    is_answer = answer["times"] == sorted(answer["times"]) if status == 200 else "librosa" in answer["error"]
    assert is_answer, answer


def answer_of(server, path: str) -> tuple[int, dict]:
    try:
        return 200, server.get(path)
    except HTTPError as error:
        return error.code, json.load(error)
