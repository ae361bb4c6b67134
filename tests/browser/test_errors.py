"""What stops a run is written on the node that it came from, until the next run."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
QUEUE = "async () => { await app.queuePrompt(0, 1) }"
VUE = "async on => { await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on) }"
SET = """([type, name, value]) => {
  const node = app.graph.nodes.find(node => node.type === type);
  node.widgets.find(widget => widget.name === name).value = value;
}"""
FAIL = """async detail => {
  const { api } = await import("/scripts/api.js");
  const events = ["execution_start", "execution_error"].map(name => new CustomEvent(name, { detail }));
  events.forEach(event => api.dispatchEvent(event));
}"""
WRITTEN = """([type, sentence]) => app.graph.nodes.find(node => node.type === type)
  .widgets?.some(widget => String(widget.value ?? "").includes(sentence))"""
WAIT_MS = 120_000


@pytest.fixture(params=["classic", "vue"])
def rendering(request, server, page):
    is_vue = request.param == "vue"
    if is_vue and server.version.startswith("0.3."):
        pytest.skip("the page of ComfyUI 0.3.64 draws nodes the classic way only")
    page.evaluate(VUE, is_vue)
    yield request.param
    for _ in range(20):  # the page of 0.3.64 also shows a dialog, over whatever the next test does
        if page.locator(".p-dialog-mask").count():
            page.keyboard.press("Escape")
            page.wait_for_timeout(200)
    page.evaluate(VUE, False)


def load(page, name: str, **stream) -> None:
    page.evaluate(LOAD, json.loads((ROOT / "workflows" / f"{name}.json").read_text()))
    for widget, value in stream.items():
        page.evaluate(SET, ["LongLiveStream", widget, value])


def until_failed_no_more(page) -> None:
    page.wait_for_function(
        "() => document.querySelector('.longlive-live [role=alert]').hidden", timeout=WAIT_MS
    )


def test_a_stream_that_cannot_begin_says_why_in_its_panel(page, rendering):
    load(page, "3 Direct a video live", seconds=0.5, width=70)
    page.evaluate(QUEUE)
    alert = page.locator(".longlive-live").get_by_role("alert").filter(has_text="multiples of 16")
    alert.wait_for(timeout=WAIT_MS)
    assert page.get_by_label("State of the run").text_content() == "failed"
    page.evaluate(SET, ["LongLiveStream", "width", 64])
    page.evaluate(QUEUE)
    until_failed_no_more(page)
    page.wait_for_function(
        "() => document.querySelector('.longlive-live [role=status]').textContent.startsWith('done')",
        timeout=WAIT_MS,
    )
    assert page.errors == []


def test_a_schedule_shows_it_in_its_timeline_and_another_node_as_a_line(page, rendering):
    load(page, "5 A video without end", seconds=0.5)
    node = page.evaluate("() => app.graph.nodes.find(n => n.type === 'LongLivePromptSchedule').id")
    detail = {"node_id": str(node), "node_type": "LongLivePromptSchedule", "prompt_id": "x"}
    detail |= {"exception_message": "no <encoder> here\n", "exception_type": "ValueError", "traceback": []}
    page.evaluate(FAIL, detail | {"executed": [], "current_inputs": {}, "current_outputs": []})
    status = page.locator(".longlive-timeline .ll-status")
    status.filter(has_text="no <encoder> here").wait_for(timeout=WAIT_MS)
    page.evaluate(SET, ["LongLiveFrameSink", "window", 4])
    page.evaluate(SET, ["LongLiveFrameSink", "sink", 4])
    page.evaluate(QUEUE)
    sentence = ["LongLiveFrameSink", "cannot hold the sink"]
    page.wait_for_function(WRITTEN, arg=sentence, timeout=WAIT_MS)
    assert "encoder" not in status.text_content()
    page.evaluate(SET, ["LongLiveFrameSink", "window", 12])
    page.evaluate(SET, ["LongLiveFrameSink", "sink", 3])
    page.evaluate(QUEUE)
    page.wait_for_function(f"given => !({WRITTEN})(given)", arg=sentence, timeout=WAIT_MS)
    assert page.errors == []
