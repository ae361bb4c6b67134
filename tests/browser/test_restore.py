"""A video dropped on the page restores its graph: the finished file, and one that a kill left."""

import base64
import json
import time
from pathlib import Path

import numpy as np

from longlive_core.output.video import VideoWriter

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "workflows" / "4 Continue a video.json"
SECONDS = 0.75
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
SHORTEN = """seconds => app.graph.nodes.filter(n => n.type === 'LongLiveStream').forEach(n => {
    n.widgets.find(w => w.name === 'seconds').value = seconds })"""
ONE_PROMPT = """() => app.graph.nodes.filter(n => n.type === 'LongLivePromptSchedule').forEach(n => {
    n.widgets.find(w => w.name === 'prompts').value = 'a red circle drifts right over navy' })"""
AS_PROMPT = "async () => (await app.graphToPrompt()).output"
SERIALISED = "async () => (await app.graphToPrompt()).workflow"
NUM_NODES = "() => app.graph.nodes.length"
DROP = """async encoded => {
    const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
    await app.handleFile(new File([bytes], 'video.mp4', {type: 'video/mp4'}));
}"""


def restored(page, data: bytes) -> dict:
    """The graph, as a prompt, of a page that was empty when the file was dropped on it."""
    page.evaluate("() => app.graph.clear()")
    assert page.evaluate(NUM_NODES) == 0
    page.evaluate(DROP, base64.b64encode(data).decode())
    page.wait_for_function(f"() => ({NUM_NODES})() > 0", timeout=10_000)
    return page.evaluate(AS_PROMPT)


def test_a_video_dropped_on_the_page_restores_its_graph(server, page, tmp_path):
    page.evaluate(LOAD, json.loads(WORKFLOW.read_text()))
    page.evaluate(SHORTEN, SECONDS)
    page.evaluate(ONE_PROMPT)
    asked, workflow = page.evaluate(AS_PROMPT), page.evaluate(SERIALISED)
    before = set(server.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1) }")
    deadline = time.monotonic() + 120
    while not (new := set(server.get("/history")) - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    outputs = server.get("/history")[new.pop()]["outputs"]
    save = next(key for key, node in asked.items() if node["class_type"] == "SaveVideo")
    streamed, saved = outputs["3"]["longlive_video"][0], outputs[save]["images"][0]
    assert restored(page, server.path_of(streamed).read_bytes()) == asked
    assert restored(page, server.path_of(saved).read_bytes()) == asked
    with VideoWriter(tmp_path / "v.mp4", 64, 64, {}, {"workflow": json.dumps(workflow)}) as writer:
        writer.append(np.zeros((12, 64, 64, 3), np.uint8))
        writer.flush()
        assert restored(page, writer.path.read_bytes()) == asked
