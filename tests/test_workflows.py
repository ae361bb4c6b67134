"""Every node, input, widget and prompt named in workflows/ exists; no host needed."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from longlive_core import PromptSchedule
from longlive_core.config import WindowConfig
from longlive_training.world import vocabulary

ROOT = Path(__file__).parent.parent


def load_schemas():
    spec = importlib.util.spec_from_file_location("node_schemas", ROOT / "tests/fixtures/node_schemas.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


schemas = load_schemas()
Socket = schemas.Socket
STOCK = {
    "SaveVideo": schemas.NodeSchema(
        (
            Socket("video", "VIDEO"),
            *(Socket(name, kind) for name, kind in (("filename_prefix", "STRING"), ("format", "COMBO"))),
            Socket("codec", "COMBO"),
        ),
        (),
    ),
    "CLIPLoader": schemas.NodeSchema(
        tuple(Socket(name, "COMBO") for name in ("clip_name", "type", "device")), (Socket("CLIP", "CLIP"),)
    ),
    "VAELoader": schemas.NodeSchema((Socket("vae_name", "COMBO"),), (Socket("VAE", "VAE"),)),
    "LoadImage": schemas.NodeSchema(
        (Socket("image", "COMBO"),), (Socket("IMAGE", "IMAGE"), Socket("MASK", "MASK"))
    ),
    "LoadVideo": schemas.NodeSchema((Socket("file", "COMBO"),), (Socket("VIDEO", "VIDEO"),)),
    "ImageFromBatch": schemas.NodeSchema(
        (Socket("image", "IMAGE"), Socket("batch_index", "INT"), Socket("length", "INT")),
        (Socket("IMAGE", "IMAGE"),),
    ),
    "ImageToMask": schemas.NodeSchema(
        (Socket("image", "IMAGE"), Socket("channel", "COMBO")), (Socket("MASK", "MASK"),)
    ),
    "ThresholdMask": schemas.NodeSchema(
        (Socket("mask", "MASK"), Socket("value", "FLOAT")), (Socket("MASK", "MASK"),)
    ),
    "MaskToImage": schemas.NodeSchema((Socket("mask", "MASK"),), (Socket("IMAGE", "IMAGE"),)),
}
KNOWN = schemas.declared() | STOCK
NOTE = "MarkdownNote"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NUMBERED = [file for file in WORKFLOWS if file.stem[0].isdigit()]
MINI = sorted(NUMBERED, key=lambda file: int(file.stem.split()[0]))  # nothing to download, in this order
DOWNLOADED = [file for file in WORKFLOWS if "(download)" in file.stem]
APPS = [file for file in WORKFLOWS if file.stem.endswith(".app")]
MODELS = {"LongLive-1.3B", "SGF+"}
CANVAS = (1366, 768)  # pixels of a laptop
FILLED = 0.75  # of the canvas, when a page fits a graph into it
TITLE, MARGIN = 30, 10  # above a node, and around all of them
MIN_ZOOM, FIRST_ZOOM = 0.6, 0.75  # pages draw no labels below 0.58
LOADERS = {"LongLiveLoadModel", "LongLiveLoadVAE", "CLIPLoader", "VAELoader"}
FOLDERS = {"diffusion_models", "loras", "text_encoders", "vae", "vae_approx"}


@pytest.fixture(params=WORKFLOWS, ids=lambda file: file.stem)
def workflow(request) -> dict:
    return json.loads(request.param.read_text())


def working(workflow: dict) -> list[dict]:
    """The nodes that do something."""
    return [node for node in workflow["nodes"] if node["type"] != NOTE]


def values_of(node: dict) -> dict:
    """Widget values by name."""
    values = iter(node["widgets_values"])
    named = {}
    for declared in KNOWN[node["type"]].inputs:
        if declared.is_widget:
            named[declared.name] = next(values)
            if declared.has_control:
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
    assert not list(values), f"{node['type']} has more values than widgets"
    return named


def test_the_promised_workflows_are_there():
    assert [int(file.stem.split()[0]) for file in MINI] == [*range(1, 11)] and "Start here" in MINI[0].stem
    for model in MODELS:
        of_model = {file.stem.removeprefix(model) for file in DOWNLOADED}
        assert of_model >= {f" {what} (download)" for what in ("one prompt", "six prompts", "four minutes")}
    assert len(APPS) == 2 and set(MINI) | set(DOWNLOADED) | set(APPS) == set(WORKFLOWS)


@pytest.mark.parametrize("file", APPS, ids=lambda file: file.stem)
def test_an_app_shows_the_video_its_box_and_the_timeline(file: Path) -> None:
    app = json.loads(file.read_text())
    kinds = {str(node["id"]): node["type"] for node in working(app)}
    assert app["extra"]["linearMode"] is True
    shown = [(kinds[node], widget) for node, widget in app["extra"]["linearData"]["inputs"]]
    assert shown == [
        *(("LongLiveStream", "live"), ("LongLivePromptSchedule", "timeline"), ("LongLiveStream", "seconds")),
    ]
    assert [kinds[str(node)] for node in app["extra"]["linearData"]["outputs"]] == ["LongLiveStream"]


def test_every_workflow_has_its_own_id_and_one_short_note(workflow):
    """Ids tell runs apart; in the new nodes inline code cannot be read on the ground of a note."""
    ids = [json.loads(file.read_text())["id"] for file in WORKFLOWS]
    assert len(set(ids)) == len(ids)
    (note,) = (node for node in workflow["nodes"] if node["type"] == NOTE)
    text = re.sub(r"\(https.*?\)", "", note["widgets_values"][0])
    assert len(text) < 900 and "`" not in text and note["title"] != "Read me"
    assert not re.search(r"\b(lines?|polic(y|ies))\b", text), "a timeline has none"


def zoom(workflow: dict) -> float:
    """At what a page opens a template: LiteGraph's fitToBounds."""
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes) - TITLE
    right, bottom = max(x + width for x, _, width, _ in boxes), max(y + height for _, y, _, height in boxes)
    sides = right - left + 2 * MARGIN, bottom - top + 2 * MARGIN
    return min(FILLED * pixels / side for pixels, side in zip(CANVAS, sides, strict=True))


def test_labels_can_be_read_on_a_laptop(workflow):
    assert zoom(workflow) >= MIN_ZOOM


def test_the_first_template_is_large_on_a_laptop():
    assert zoom(json.loads(MINI[0].read_text())) >= FIRST_ZOOM


def test_workflow_is_in_the_format_of_the_page(workflow):
    assert workflow["version"] == 0.4
    assert any(node["type"] == NOTE and node["widgets_values"][0] for node in workflow["nodes"])
    ids = [node["id"] for node in workflow["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) == workflow["last_node_id"]


def test_every_node_and_input_exists(workflow):
    for node in working(workflow):
        schema = KNOWN[node["type"]]
        declared = {socket.name: socket for socket in schema.inputs}
        for named in node["inputs"]:
            assert declared[named["name"]].type == named["type"], (node["type"], named["name"])
            assert declared[named["name"]].is_widget == ("widget" in named), (node["type"], named["name"])
        slots = sorted(schema.inputs, key=lambda socket: socket.is_widget)  # pages list widgets last
        assert [named["name"] for named in node["inputs"]] == [socket.name for socket in slots]
        outputs = [(named["name"], named["type"]) for named in node["outputs"]]
        assert outputs == [(socket.name, socket.type) for socket in schema.outputs]


def test_every_required_input_is_connected_and_links_agree(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, slot, target, index, kind in workflow["links"]:
        output, named = nodes[source]["outputs"][slot], nodes[target]["inputs"][index]
        assert output["type"] == kind and kind in named["type"].split(",")
        assert link in output["links"] and named["link"] == link
    for node in working(workflow):
        linked = {named["name"] for named in node["inputs"] if named["link"] is not None}
        needed = {s.name for s in KNOWN[node["type"]].inputs if not s.is_optional and not s.is_widget}
        assert needed <= linked, node["type"]


def test_widget_values_are_possible(workflow):
    values = [(node["type"], values_of(node)) for node in working(workflow)]
    named_by_id = {node["id"]: values_of(node) for node in working(workflow)}
    links = [(source, target) for _, source, _, target, _, kind in workflow["links"] if "SCHEDULE" in kind]
    for node in working(workflow):
        kind, named = node["type"], named_by_id[node["id"]]
        seconds = [named_by_id[target]["seconds"] for source, target in links if source == node["id"]]
        if kind == "LongLiveFrameSink":
            WindowConfig(sink_latent_frames=named["sink"], window_latent_frames=named["window"])
        if kind == "LongLivePromptSchedule":
            schedule = PromptSchedule.parse(named["prompts"])
            assert not schedule.resolve(3, min(seconds)).warnings
            words = {word for cue in schedule.cues for word in cue.prompt.split()}
            is_mini = "LongLiveLoadMini" in dict(values)
            assert not is_mini or words <= set(vocabulary()), "LongLive Mini does not know these words"


def test_every_file_is_offered_and_explained(workflow):
    """The page's missing-model dialog reads `properties.models`; a name must be one of the node's values."""
    notes = "".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == NOTE)
    for node in working(workflow):
        models = node["properties"].get("models", [])
        assert (node["type"] in LOADERS) == bool(models), node["type"]
        chosen = [v for v in values_of(node).values() if str(v).endswith((".safetensors", ".pt"))]
        assert [model["name"] for model in models] == chosen
        for model in models:
            assert model["directory"] in FOLDERS and f"models/{model['directory']}" in notes
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/" in model["url"]
            assert model["name"] in notes and model["url"] in notes


def test_the_promised_settings_are_in_the_workflows():
    named = {file.stem: json.loads(file.read_text()) for file in WORKFLOWS}

    def values(workflow: str, kind: str) -> dict:
        return values_of(next(node for node in named[workflow]["nodes"] if node["type"] == kind))

    for model in MODELS:
        minute = f"{model} six prompts (download)"
        schedule = PromptSchedule.parse(values(minute, "LongLivePromptSchedule")["prompts"])
        assert len(schedule.cues) == 6 and values(minute, "LongLiveStream")["seconds"] == 60
        assert values(f"{model} four minutes (download)", "LongLiveStream")["seconds"] == 240
    assert values("4 Continue a video", "LongLiveStream")["whole_video"] is False, "the first of two"
    assert values("LongLive-1.3B for 8 GB (download)", "LongLiveLoadModel")["precision"] == "fp8"
    assert values("LongLive-1.3B for 8 GB (download)", "LongLiveLoadVAE")["vae_name"].startswith("taew2_1")


def test_nodes_do_not_overlap(workflow):
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    title = 30
    for i, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[i + 1 :]:
            apart = x + width <= other_x or other_x + other_width <= x
            assert apart or y + height <= other_y - title or other_y + other_height <= y - title


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_square_picture_is_on_its_card(file: Path) -> None:
    """The page of templates shows it; `python docs/thumbnails.py` makes them."""
    picture = file.with_suffix(".jpg")
    assert Image.open(picture).size == (480, 480) and picture.stat().st_size < 40_000
