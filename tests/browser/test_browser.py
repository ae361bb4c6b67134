"""The workflows in a real page: loaded, compared, queued, watched."""

import io
import json
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
AS_PROMPT = "async () => (await app.graphToPrompt()).output"
UNKNOWN = "() => app.graph.nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
SLOTS = """() => Object.fromEntries(app.graph.nodes.filter(n => n.type.startsWith('LongLive'))
  .map(n => [n.id, n.inputs.map(i => i.name)]))"""
PREVIEW = "() => Object.values(app.nodePreviewImages ?? {}).flat().length > 0"
STREAM = "app.graph.nodes.find(n => n.type === 'LongLiveStream')"
SHOWN = f"() => {STREAM}.imgs?.[0]?.src"
OTHER_SEED = f"() => {{ {STREAM}.widgets.find(w => w.name === 'seed').value += 1 }}"
TEXTS = "() => app.graph.nodes.flatMap(n => n.widgets ?? []).map(w => String(w.value ?? ''))"


def load_workflow(file: Path) -> dict:
    return json.loads(file.read_text())


def without_titles(prompt: dict) -> dict:
    return {key: {"class_type": n["class_type"], "inputs": n["inputs"]} for key, n in prompt.items()}


def edited(workflow: dict, prompts: str, seconds: float) -> dict:
    """The workflow with another schedule and length."""
    for node in workflow["nodes"]:
        if node["type"] == "LongLivePromptSchedule":
            node["widgets_values"] = [prompts]
        if node["type"] == "LongLiveStream":
            node["widgets_values"][2] = seconds
    return workflow


def finish(server, num_runs: int) -> dict:
    """Wait for the end of the run after so many; its outputs by node."""
    deadline = time.monotonic() + 120
    while len(history := server.get("/history")) == num_runs:
        assert time.monotonic() < deadline, "the prompt did not end"
        time.sleep(0.2)
    newest = list(history.values())[-1]
    assert newest["status"]["status_str"] == "success"
    return newest["outputs"]


def run_and_watch(server, page, screenshot: Path) -> str:
    """Queue what is loaded, see a live preview, wait for the end; the picture that the stream shows then."""
    num_runs = len(server.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1) }")
    page.wait_for_function(PREVIEW, timeout=60_000)
    page.screenshot(path=screenshot)
    finish(server, num_runs)
    page.locator(".longlive-live [role=status]").filter(has_text="done").wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    return page.evaluate(SHOWN)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_the_page_reads_a_workflow_as_we_do(server, page, comfy, file):
    page.evaluate(LOAD, load_workflow(file))
    assert page.evaluate(UNKNOWN) == []
    ours = comfy.as_prompt(load_workflow(file), server.get("/object_info"))
    assert without_titles(page.evaluate(AS_PROMPT)) == ours
    slots = {str(node["id"]): [named["name"] for named in node["inputs"]] for node in of_ours(file)}
    assert page.evaluate(SLOTS) == slots, "the page has to add none"
    assert page.errors == []


def of_ours(file: Path) -> list[dict]:
    return [node for node in load_workflow(file)["nodes"] if node["type"].startswith("LongLive")]


def test_a_workflow_saved_before_there_was_sound_keeps_its_values_and_links(page):
    workflow = load_workflow(ROOT / "workflows" / "1 Start here - four prompts.json")
    page.evaluate(LOAD, workflow)
    asked = page.evaluate(AS_PROMPT)
    stream = next(node for node in workflow["nodes"] if node["type"] == "LongLiveStream")
    stream["inputs"] = [named for named in stream["inputs"] if named["name"] != "audio"]
    names = [named["name"] for named in stream["inputs"]]
    stream["inputs"][names.index("seconds")]["link"] = 90
    workflow["links"].append([90, 91, 0, stream["id"], names.index("seconds"), "FLOAT"])
    output = {"name": "FLOAT", "type": "FLOAT", "links": [90]}
    source = {"id": 91, "type": "PrimitiveFloat", "inputs": [], "outputs": [output], "widgets_values": [7.5]}
    workflow["nodes"].append(source | {"pos": [0, 900], "size": [200, 60]})
    page.evaluate(LOAD, workflow | {"last_node_id": 91, "last_link_id": 90})
    old = page.evaluate(AS_PROMPT)
    assert old.pop("91")["inputs"] == {"value": 7.5}
    asked[str(stream["id"])]["inputs"]["seconds"] = ["91", 0]
    assert old == asked and page.errors == []


@pytest.mark.parametrize(
    "behind", [[], [None, "15.0 s of video"]], ids=["saved", "saved by 0.3.64 after a run"]
)
def test_a_workflow_saved_before_there_were_steps_takes_them_all(page, behind):
    workflow = load_workflow(ROOT / "workflows" / "1 Start here - four prompts.json")
    stream = next(node for node in workflow["nodes"] if node["type"] == "LongLiveStream")
    assert [stream["inputs"].pop()["name"] for _ in range(3)] == ["resume", "whole_video", "steps"]
    stream["widgets_values"][-3:] = behind
    page.evaluate(LOAD, workflow)
    assert page.evaluate(AS_PROMPT)[str(stream["id"])]["inputs"]["steps"] == 4
    assert page.errors == []


@pytest.mark.newest
def test_choices_that_were_replaced_are_kept_and_queued(server, models, page):
    """No combo has them any more; neither the page nor the server refuses them."""
    old = {"attention": "sdpa-cudnn", "speed": "graphs"}
    loader = {"checkpoint": "longlive_base.pt", "lora": "none", "lora_strength": 1.0, "second_lora": "none"}
    loader |= {"second_strength": 1.0, "precision": "fp32", "family": "auto", "accept_licence": False, **old}
    sizes = {"width": 16, "height": 16, "seconds": 0.5, "seed": 3, "pace": "full speed", "steps": 2}
    links = {"model": ["1", 0], "schedule": ["3", 0], "vae": ["4", 0]}
    nodes = {
        "1": ("LongLiveLoadModel", loader),
        "2": ("TestSmallClip", {}),
        "3": ("LongLivePromptSchedule", {"clip": ["2", 0], "prompts": "a red star"}),
        "4": ("LongLiveLoadVAE", {"vae_name": "taew2_1.safetensors", "tiled": False}),
        "5": ("LongLiveStream", sizes | links | {"keep_state": False}),
        "6": ("TestDump", {"name": "old", "latent": ["5", 1]}),
    }
    prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    page.evaluate("async prompt => { await app.loadApiJson(prompt, 'old') }", prompt)
    sent = next(n for n in page.evaluate(AS_PROMPT).values() if n["class_type"] == "LongLiveLoadModel")
    assert {name: sent["inputs"][name] for name in old} == old
    num_runs = len(server.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1) }")
    (note,) = finish(server, num_runs)["1"]["text"]
    assert "speed graphs was replaced by compiled" in note
    assert page.errors == []


def test_a_workflow_is_queued_and_watched(server, page, tmp_path):
    prompts = "0 a red circle drifts right over navy\n5.2s => it turns into a blue star\n"
    workflow = edited(load_workflow(ROOT / "workflows" / "1 Start here - four prompts.json"), prompts, 15.0)
    page.evaluate(LOAD, workflow)
    first = run_and_watch(server, page, tmp_path / "running.png")
    assert any("takes effect at 5.8s" in text for text in page.evaluate(TEXTS))
    page.evaluate(OTHER_SEED)
    second = run_and_watch(server, page, tmp_path / "running_again.png")
    assert first and second and first != second, "live previews must come in every run"
    screenshot = page.screenshot(path=tmp_path / "done.png")
    print(f"screenshots: {tmp_path}")
    colours = Image.open(io.BytesIO(screenshot)).convert("RGB").getcolors(1 << 24)
    assert len(colours) > 1000, "the page is empty"
    assert page.errors == []
