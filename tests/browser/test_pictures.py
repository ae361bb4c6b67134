"""A template with footage in a real page: drawn, run, and run again with Source muted or bypassed."""

import json
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "workflows" / "8 Transform footage.json"
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
QUEUE = "async () => { await app.queuePrompt(0, 1) }"
AS_PROMPT = "async () => (await app.graphToPrompt()).output"
LINKED = "() => app.graph.nodes.find(node => node.type === 'LongLiveSource').outputs[0].links?.length"
MODE = "mode => { app.graph.nodes.find(node => node.type === 'LongLiveSource').mode = mode }"
MUTED, BYPASSED = 2, 4
STREAM = "946"  # that transforms
WAIT_SECONDS = 60


def template() -> dict:
    """A second of footage, transformed, in streams of numbers of their own: the server remembers runs."""
    loaded = json.loads(TEMPLATE.read_text())
    for node in loaded["nodes"]:
        node["id"] += 940
        if node["type"] == "LongLiveStream":
            node["widgets_values"][2] = 1.0
    for link in loaded["links"]:
        link[1], link[3] = link[1] + 940, link[3] + 940
    return loaded | {"last_node_id": loaded["last_node_id"] + 940}


def newest_run(server, after: set[str]) -> dict:
    """The newest run, once the two streams or the one that was not cached have ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        runs = [run for run in server.get("/longlive/runs")["runs"] if run["run"] not in after]
        if runs and runs[0]["node"] == STREAM and runs[0]["state"] == "done":
            return runs[0]
        time.sleep(0.2)
    raise AssertionError(server.get("/longlive/runs")["runs"][:2])


@pytest.mark.newest
def test_footage_is_transformed_and_without_source_the_prompt_alone_makes_the_video(server, page):
    page.evaluate(LOAD, template())
    assert page.evaluate(LINKED) == 1, "the page takes a VIDEO where VIDEO or IMAGE may be"
    known: set[str] = set()
    for mode, is_used in ((0, True), (MUTED, False)):
        page.evaluate(MODE, mode)
        assert ("source" in page.evaluate(AS_PROMPT)[STREAM]["inputs"]) == is_used
        page.evaluate(QUEUE)
        run = newest_run(server, known)
        known |= {run["run"] for run in server.get("/longlive/runs")["runs"]}
        assert run["error"] is None and run["num_frames"] == 16
    page.evaluate(MODE, BYPASSED)
    assert "source" not in page.evaluate(AS_PROMPT)[STREAM]["inputs"]
    assert page.errors == []
