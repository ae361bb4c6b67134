"""Runs steered over HTTP while they last, in a real ComfyUI: prompts, pause, stop, watchers, and abuse."""

import hashlib
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from longlive_core import PromptSchedule
from longlive_core.cli import main
from longlive_core.geometry import FRAME_RATE
from longlive_core.output.video import read_settings
from longlive_training.judge import read

PROMPTS = "0 a red circle drifts right over navy\n"
SECONDS = 6.75
ACKNOWLEDGED_SECONDS = 0.2
VISIBLE_FRAMES = 24  # 1.5 s
FLOOD_SECONDS = 3.0
FLOOD_CLIENTS = 4
GROWTH_MB = 60


def graph(prompts: str = PROMPTS, node: str = "3", **stream) -> dict:
    """Mini, a schedule, a stream of that id; its video and its latents saved."""
    settings = {"width": 64, "height": 64, "seconds": SECONDS, "seed": 3, "pace": "real time", **stream}
    links = {"model": ["1", 0], "schedule": ["2", 0], "vae": ["1", 2]}
    return {
        "1": {"class_type": "LongLiveLoadMini", "inputs": {}},
        "2": {"class_type": "LongLivePromptSchedule", "inputs": {"clip": ["1", 1], "prompts": prompts}},
        node: {"class_type": "LongLiveStream", "inputs": links | settings},
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": [node, 0], "filename_prefix": "live", "format": "auto", "codec": "auto"},
        },
        "5": {"class_type": "SaveLatent", "inputs": {"samples": [node, 1], "filename_prefix": "live"}},
    }


class Client:
    """One connection to the routes of live runs."""

    def __init__(self, server):
        self._connection = http.client.HTTPConnection(server.address, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, headers: dict | None = None) -> tuple[int, Any]:
        """Status and JSON of the answer; a body that is not text is sent as JSON."""
        data = body if isinstance(body, str | bytes | None) else json.dumps(body)
        headers = {"Content-Type": "application/json"} if headers is None else headers
        self._connection.request(method, f"/longlive/runs{path}", data, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text

    def snapshot(self, name: str = "current") -> dict:
        status, snapshot = self.ask("GET", f"/{name}")
        return snapshot if status == 200 else {}

    def until(self, is_met, name: str = "current", seconds: float = 60.0) -> dict:
        """The first snapshot that meets a condition."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (snapshot := self.snapshot(name)) and is_met(snapshot):
                return snapshot
            time.sleep(0.02)
        raise AssertionError(f"waited in vain: {snapshot}")

    def settled(self, name: str, seconds: float = 1.0) -> dict:
        """The snapshot that has stayed the same for a while: the block that was being made is out."""
        newest, since = self.snapshot(name), time.monotonic()
        while time.monotonic() < since + seconds:
            time.sleep(0.05)
            if (snapshot := self.snapshot(name)) != newest:
                newest, since = snapshot, time.monotonic()
        return newest

    def send(self, prompt: str, name: str = "current", **fields) -> tuple[dict, float]:
        """Send a prompt: the answer, and how long it took in seconds."""
        start = time.monotonic()
        status, answer = self.ask("POST", f"/{name}/prompt", {"prompt": prompt, **fields})
        assert status == 202, answer
        return answer, time.monotonic() - start


@pytest.fixture
def client(server):
    return Client(server)


@contextmanager
def running(server, prompt: dict):
    """A run of a graph in the background; its end is in `.result()`. It does not outlast the test."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.run, prompt)
        try:
            yield future
        finally:
            while not future.done():
                server.post("/interrupt", {})
                time.sleep(0.2)


@pytest.mark.newest
def test_a_prompt_with_an_image_of_the_input_folder_begins_a_new_scene(server, client):
    """Others are refused at once; what was played is in the settings with its SHA-256."""
    folder = server.base / "input"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (0, 90, 40)).save(folder / "forest.png")
    Image.new("RGB", (64, 64), (0, 90, 40)).save(server.base / "outside.png")
    refused = {
        "lost.png": "is not in ComfyUI's input folder",
        "../outside.png": "without .. and , :",
        str(server.base / "outside.png"): "without .. and , :",
        7: "the image 7 is not possible",
    }
    with running(server, graph(seconds=0)) as future:
        client.until(lambda run: run["state"] == "running")
        for image, words in refused.items():
            body = {"prompt": "it rests", "image": image}
            status, answer = client.ask("POST", "/current/prompt", body)
            assert status == 400 and words in answer["error"], answer
        body = {"prompt": "it rests", "policy": "keep", "image": "forest.png"}
        assert client.ask("POST", "/current/prompt", body)[0] == 400
        assert (
            main(["live", "--server", f"http://{server.address}", "it rests", "--image", "forest.png"]) == 0
        )
        client.until(lambda run: run["cues"][-1]["image"] == "forest.png" and run["cues"][-1]["latency"])
        client.ask("POST", "/current/stop")
        done = future.result()
    settings = read_settings(server.path_of(done.outputs["4"]["images"][0]))
    assert "=> cut, image forest.png: it rests\n" in settings["schedule"]
    digest = hashlib.sha256((folder / "forest.png").read_bytes()).hexdigest()
    assert settings["made_from"]["images"]["forest.png"]["sha256"] == digest


def latents_of(server, run) -> torch.Tensor:
    (saved,) = run.outputs["5"]["latents"]
    return load_file(server.path_of(saved))["latent_tensor"]


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def listen(server) -> Any:
    import websocket

    return websocket.create_connection(f"ws://{server.address}/ws?clientId={time.monotonic()}", timeout=10)


def events_of(listener) -> list[dict]:
    """All snapshots a listener has been sent so far."""
    import websocket

    listener.settimeout(0.5)
    events = []
    try:
        while True:
            message = listener.recv()
            if isinstance(message, str) and (event := json.loads(message))["type"] == "longlive.run":
                events.append(event["data"])
    except websocket.WebSocketTimeoutException:
        return events


@pytest.mark.newest
def test_prompts_take_effect_at_the_next_block_and_can_be_replayed(server, client):
    base = server.run(graph(pace="full speed"))
    listeners = [listen(server), listen(server)]
    with running(server, graph()) as future:
        name = client.until(lambda s: s["block"] is not None)["run"]
        sent = []
        for prompt, fields in (("it turns blue", {}), ("it turns into a green star", {"policy": "keep"})):
            before = client.snapshot(name)["block"]
            answer, took = client.send(prompt, name, **fields)
            assert took < ACKNOWLEDGED_SECONDS
            taken = client.until(lambda s: len(s["cues"]) == len(sent) + 2, name)["cues"][-1]
            assert taken["ticket"] == answer["ticket"] and taken["prompt"] == prompt
            assert before < taken["block"] <= before + 3, "the block being made, and one that is decoded"
            sent.append(taken["block"])
            client.until(lambda s: s["block"] > sent[-1], name)
        live = future.result()
    assert live.has_succeeded, live.history["status"]
    ended = client.snapshot(name)
    assert ended["state"] == "done" and ended["num_frames"] == SECONDS * FRAME_RATE
    assert all(0 < cue["latency"] < 3 for cue in ended["cues"][1:])

    one, other = (events_of(listener) for listener in listeners)
    assert one == other and one[-1]["state"] == "done" and one[-1] == ended
    assert {"running", "done"} <= {event["state"] for event in one}

    ours, plain = latents_of(server, live), latents_of(server, base)
    first = sent[0] * 3
    assert torch.equal(ours[:, :, :first], plain[:, :, :first]) and not torch.equal(ours, plain)

    video = server.path_of(live.outputs["4"]["images"][0])
    seen = read(torch.from_numpy(frames_of(video)).permute(0, 3, 1, 2) / 255)
    begins = [round(cue["seconds"] * FRAME_RATE) for cue in ended["cues"][1:]]
    for colour, begin, end in zip(("blue", "green"), begins, [*begins[1:], len(seen.colour)], strict=True):
        assert seen.names(min(begin + VISIBLE_FRAMES, end) - 1)["colour"] == colour

    status, frozen = client.ask("GET", f"/{name}/schedule")
    assert status == 200 and frozen["seed"] == 3 and frozen["settings"]["seconds"] == SECONDS
    assert live.outputs["3"]["longlive_schedule"] == [frozen["text"]]
    assert read_settings(video)["schedule"] == frozen["text"]
    assert PromptSchedule.parse(frozen["json"]) == PromptSchedule.parse(frozen["text"])
    again = server.run(graph(frozen["text"], pace="full speed"))
    assert torch.equal(latents_of(server, again), ours)


@pytest.mark.newest
def test_pause_holds_stop_finalises_and_nobody_need_watch(server, client, tmp_path, capsys):
    with running(server, graph(seconds=0.0, seed=21, pace="full speed")) as future:
        name = client.until(lambda s: (s["block"] or 0) >= 2)["run"]
        made = client.snapshot(name)
        assert made["num_blocks"] is None and made["block_latent_frames"] == 3
        at = ["--server", f"http://{server.address}", "--run", name]
        for _ in range(2):
            assert client.ask("POST", f"/{name}/pause")[1]["state"] == "paused"
        held = client.settled(name)
        memory = resident_mb(server)
        time.sleep(0.5)
        assert client.snapshot(name) == held and abs(resident_mb(server) - memory) < 5
        client.send("it turns yellow", name)
        assert client.until(lambda s: s["pending"]["state"] == "ready", name)["block"] == held["block"]
        assert main(["live", *at, "--resume"]) == 0 and client.snapshot(name)["state"] == "running"
        taken = client.until(lambda s: len(s["cues"]) == 2, name)["cues"][-1]
        assert taken["block"] <= held["block"] + 2
        client.until(lambda s: s["block"] > taken["block"], name)
        assert main(["live", *at, "--blend", "1.5", "it turns pink"]) == 0
        client.until(lambda s: s["cues"][-1]["blend"] == 1.5, name)
        assert main(["live", *at, "--status"]) == 0
        assert main(["live", *at, "--freeze", str(tmp_path / "frozen.txt")]) == 0
        assert client.ask("POST", f"/{name}/stop")[1]["state"] == "stopping"
        run = future.result()
    assert main(["live", *at, "it turns red"]) == 2 and "has ended (stopped)" in capsys.readouterr().err
    assert run.has_succeeded, run.history["status"]
    ended = client.snapshot(name)
    assert ended["state"] == "stopped" and ended["pending"] is None
    video = server.path_of(run.outputs["4"]["images"][0])
    assert len(frames_of(video)) == ended["num_frames"] == 12 * (ended["block"] + 1) - 3
    settings = read_settings(video)
    assert (tmp_path / "frozen.txt").read_text() == settings["schedule"]
    assert settings["seconds"] == ended["num_frames"] / FRAME_RATE and "yellow" in settings["schedule"]
    again = graph(settings["schedule"], seconds=settings["seconds"], seed=21, pace="full speed")
    again["3"]["inputs"]["window"] = ["6", 0]
    endless = {"window": 12, "sink": 3, "on_switch": "recache", "positions": "endless"}
    again["6"] = {"class_type": "LongLiveFrameSink", "inputs": endless}
    assert torch.equal(latents_of(server, server.run(again)), latents_of(server, run))


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_run_that_was_stopped_is_made_anew_and_others_come_from_the_cache(server, client, seconds):
    prompt = graph(seconds=seconds, seed=24, pace="full speed")
    for _ in range(2):
        with running(server, prompt) as future:
            name = client.until(lambda s: s["block"] is not None)["run"]
            client.ask("POST", f"/{name}/stop")
            run = future.result()
        assert run.has_succeeded and "3" not in run.event("execution_cached")["nodes"]
    plain = graph(seconds=1.0, seed=25, pace="full speed")
    assert "3" not in server.run(plain).event("execution_cached")["nodes"]
    assert "3" in server.run(plain).event("execution_cached")["nodes"]


def test_an_interrupt_ends_a_paused_run(server, client):
    with running(server, graph(seconds=0.0, seed=22)) as future:
        name = client.until(lambda s: s["block"] is not None)["run"]
        client.ask("POST", f"/{name}/pause")
        server.post("/interrupt", {})
        assert future.result().event("execution_interrupted")
    assert client.snapshot(name)["state"] == "interrupted"
    status, answer = client.ask("POST", f"/{name}/prompt", {"prompt": "it turns blue"})
    assert status == 409 and "has ended (interrupted)" in answer["error"]


def test_where_metadata_is_disabled_no_file_tells_how_it_was_made(server, client):
    """The video that was saved, the one that a steered run put out, and what an interrupted run left."""
    disable_metadata(server, True)
    try:
        with running(server, graph(seconds=0.0, seed=26)) as future:
            name = client.until(lambda s: s["block"] is not None)["run"]
            client.send("it turns blue", name)
            client.until(lambda s: len(s["cues"]) == 2, name)
            client.ask("POST", f"/{name}/stop")
            made = future.result().outputs
        with running(server, graph(seconds=0.0, seed=27)) as future:
            interrupted = client.until(lambda s: (s["block"] or 0) > 1)["run"]
            server.post("/interrupt", {})
            future.result()
    finally:
        disable_metadata(server, False)
    (left,) = (server.base / "output" / "longlive").glob(f"*{interrupted}.mp4")
    videos = [made["4"]["images"][0], made["3"]["longlive_video"][0]]
    for path in (left, *map(server.path_of, videos)):
        data = path.read_bytes().lower()
        assert len(frames_of(path)) > 9
        assert not any(word in data for word in (b"circle", b"blue", b"longlive", b"seed")), path


def disable_metadata(server, is_disabled: bool) -> None:
    node = {"class_type": "TestDisableMetadata", "inputs": {"is_disabled": is_disabled}}
    assert server.run({"1": node}).has_succeeded


BAD = {
    "unknown run": ("POST", "/zzz/prompt", {"prompt": "a"}, None, 404),
    "unknown run paused": ("POST", "/zzz/pause", None, None, 404),
    "not JSON": ("POST", "/{run}/prompt", '{"prompt": "a"', None, 400),
    "nested too deep": ("POST", "/{run}/prompt", "[" * 60_000, None, 400),
    "no object": ("POST", "/{run}/prompt", [1], None, 400),
    "no prompt": ("POST", "/{run}/prompt", {}, None, 400),
    "empty prompt": ("POST", "/{run}/prompt", {"prompt": " "}, None, 400),
    "prompt of a wrong type": ("POST", "/{run}/prompt", {"prompt": ["a"]}, None, 400),
    "unknown policy": ("POST", "/{run}/prompt", {"prompt": "a", "policy": "jump"}, None, 400),
    "blend of nothing": ("POST", "/{run}/prompt", {"prompt": "a", "policy": "blend", "blend": 0}, None, 400),
    "unknown field": ("POST", "/{run}/prompt", {"prompt": "a", "polcy": "cut"}, None, 400),
    "20,001 characters": ("POST", "/{run}/prompt", {"prompt": "a" * 20_001}, None, 400),
    "1 MB": ("POST", "/{run}/prompt", {"prompt": "a" * 1_000_000}, None, 413),
    "a form": ("POST", "/{run}/prompt", "prompt=a", {"Content-Type": "text/plain"}, 415),
    "another origin": (
        *("POST", "/{run}/prompt", {"prompt": "a"}),
        *({"Content-Type": "application/json", "Origin": "http://elsewhere.example"}, 403),
    ),
}


@pytest.mark.newest
def test_bad_requests_and_floods_leave_server_and_run_healthy(server):
    with running(server, graph(seconds=0.0, seed=23)) as future:
        name = Client(server).until(lambda s: s["block"] is not None)["run"]
        for case, (method, path, body, headers, expected) in BAD.items():
            status, answer = Client(server).ask(method, path.format(run=name), body, headers)
            assert status == expected, (case, status, answer)
            assert expected == 403 or len(answer["error"]) > 20, case
        before = resident_mb(server)
        with ThreadPoolExecutor(FLOOD_CLIENTS) as pool:
            floods = list(pool.map(lambda _: flood(server, name), range(FLOOD_CLIENTS)))
        statuses = [status for flooded in floods for status in flooded]
        rate = len(statuses) / FLOOD_SECONDS
        print(f"{rate:.0f} prompts a second")
        assert set(statuses) == {202, 429} or (set(statuses) == {202} and rate < 25), "a machine at its limit"
        assert statuses.count(202) <= 20 * (FLOOD_SECONDS + 2)
        client = Client(server)
        block = client.snapshot(name)["block"]
        client.until(lambda s: s["block"] > block + 1, name)
        assert resident_mb(server) - before < GROWTH_MB
        client.ask("POST", f"/{name}/stop")
        assert future.result().has_succeeded
    assert "Error handling request" not in server.log


def flood(server, name: str) -> list[int]:
    """Prompts one after the other, as fast as they are answered: the statuses."""
    client, statuses, end = Client(server), [], time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        statuses.append(
            client.ask("POST", f"/{name}/prompt", {"prompt": f"it turns blue {len(statuses)}"})[0]
        )
    return statuses


def resident_mb(server) -> float:
    """Memory of the server's process."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


MADE, BACK, LONG = 20, 8, 300.0  # seconds
STAR = "it turns into a white star"
SMALL = {"seconds": 40.0, "steps": 2, "pace": "full speed", "width": 32, "height": 32}
REFUSED = ({"seconds": 99}, 409), ({}, 400), ({"block": -1}, 400), ({"block": 1, "at": 2}, 400)


def take_back_while_paused(server, client: Client, name: str) -> dict:
    """Back from 20 s to 8 s with another prompt, the rest kept; the snapshot of before."""
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(Client(server).ask, "GET", f"/{name}/video")
        client.ask("POST", f"/{name}/pause")
        made = client.settled(name)
        for body, status in REFUSED:
            assert client.ask("POST", f"/{name}/back", body)[0] == status
        back = {"seconds": BACK, "prompt": STAR, "policy": "cut", "keep": True}
        answer = {"run": name, "block": 11, "seconds": 8.0625, "ticket": 1}
        assert client.ask("POST", f"/{name}/back", back) == (202, answer)
        held = client.until(lambda s: s["taken_back"] == 1 and s["seconds"] == 8.0625, name, LONG)
        assert held["state"] == "paused" and held["block"] == 10 and len(held["cues"]) == 1
        assert watched.result(LONG)[0] == 200, "who watches is let go"
        client.ask("POST", f"/{name}/resume")
    return made


@pytest.mark.newest
def test_a_run_is_taken_back_and_its_next_run_begins_with_its_blocks(server, client, capsys):
    with running(server, graph(**SMALL)) as future:
        name = client.until(lambda s: s["seconds"] >= MADE, seconds=LONG)["run"]
        made = take_back_while_paused(server, client, name)
        client.until(lambda s: s["seconds"] > BACK + 3, name, LONG)
        at = ["live", "--server", f"http://{server.address}", "--run", name]
        assert main([*at, "--back", "1s", "--seed", "7"]) == 0 and "goes on at 0:" in capsys.readouterr().out
        client.until(lambda s: s["cues"][-1].get("seed") == 7, name, LONG)
        cue = client.snapshot(name)["cues"][-1]["block"]
        client.until(lambda s: s["block"] > cue, name, LONG)
        client.ask("POST", f"/{name}/stop")
        run = future.result()
    assert run.has_succeeded, run.history["status"]
    assert main([*at, "--to", "0:08"]) == 2 and "run it again" in capsys.readouterr().err
    frozen, ended = client.ask("GET", f"/{name}/schedule")[1], client.snapshot(name)
    assert ended["taken_back"] == 2
    settings, ours = frozen["settings"], latents_of(server, run)
    again = server.run(graph(frozen["text"], node="33", **SMALL | {"seconds": settings["seconds"]}))
    assert torch.equal(latents_of(server, again), ours)
    video = server.path_of(run.outputs["4"]["images"][0])
    assert len(frames := frames_of(video)) == ended["num_frames"]
    assert read_settings(video)["schedule"] == frozen["text"] and STAR in frozen["text"]
    (version,) = (server.base / "output" / "longlive").glob(f"*{name}_v1.mp4")
    assert read_settings(version)["schedule"] == PromptSchedule.parse(PROMPTS).to_text()
    kept = frames_of(version)
    assert len(kept) == made["num_frames"] and np.array_equal(kept[:129], frames[:129])
    check_another_take(server, client, frozen["text"].replace("seed 7", "seed 8"), ended["cues"][-1], ours)


def check_another_take(server, client: Client, text: str, cue: dict, ours: torch.Tensor) -> None:
    """The next run begins with the blocks before a cue that differs, and is what another node makes."""
    took = []
    for node in ("3", "34"):
        took.append(latents_of(server, server.run(graph(text, node=node, **SMALL | {"seconds": 16.0}))))
        notes = client.ask("GET", "")[1]["runs"][0]["notes"]
        assert any("are those of the run before" in note for note in notes) == (node == "3"), notes
    assert torch.equal(*took)
    first = cue["block"] * 3
    assert torch.equal(took[0][:, :, :first], ours[:, :, :first])
    assert not torch.equal(took[0][:, :, first : first + 3], ours[:, :, first : first + 3])
