"""Where a schedule's text comes from: a link, a subgraph, the side panel; and what is then shown of it."""

import json
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOW = json.loads((ROOT / "workflows" / "2 Blend and cut on the timeline.json").read_text())
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
QUEUE = "async () => { await app.queuePrompt(0, 1) }"
VUE = "async isOn => { await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', isOn) }"
NODE = "app.graph.nodes.find(n => n.type === 'LongLivePromptSchedule')"
TEXT_NODE = """title => {
  const source = window.source = LiteGraph.createNode('PrimitiveStringMultiline');
  source.title = title;
  source.widgets[0].value = "0 a blue star\\n0.8s => it turns red";
  source.pos = [node.pos[0] - 420, node.pos[1] + 200];
  app.graph.add(source);
  app.canvas.ds.scale = 0.9;
  app.canvas.ds.offset = [520 - node.pos[0], 150 - node.pos[1]];
  app.canvas.setDirty(true, true);
}"""
CONNECT = "() => source.connect(0, node, node.inputs.findIndex(i => i.name === 'prompts'))"
LINKED = "() => node.inputs.filter(i => i.link !== null).map(i => i.name)"
OUTPUT_AT = """() => {
  const slot = document.querySelector(`[data-node-id='${source.id}'] [data-slot-key*=out]`);
  if (slot) {
    const { x, y, width, height } = slot.getBoundingClientRect();
    return [x + width / 2, y + height / 2];
  }
  const { ds, canvas } = app.canvas;
  const [box, place] = [canvas.getBoundingClientRect(), source.getConnectionPos(false, 0)];
  return [0, 1].map(i => (place[i] + ds.offset[i]) * ds.scale + (i ? box.y : box.x));
}"""
TO_SUBGRAPH = """() => {
  const { subgraph, node } = app.graph.convertToSubgraph(new Set([window.node]));
  window.inner = subgraph.nodes.find(n => n.type === 'LongLivePromptSchedule');
  const slot = inner.inputs.find(i => i.name === 'prompts');
  subgraph.addInput('prompts', 'STRING').connect(slot, inner);
  [window.host, window.subgraph] = [node, subgraph];
  node.size = [420, 260];
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200 - node.pos[0], 150 - node.pos[1]];
  app.canvas.select?.(node);
  app.canvas.setDirty(true, true);
}"""
LINK_SECONDS = """() => {
  const source = LiteGraph.createNode('PrimitiveFloat');
  app.graph.add(source);
  source.widgets[0].value = 1.5;
  const stream = app.graph.nodes.find(n => n.type === 'LongLiveStream');
  source.connect(0, stream, stream.inputs.findIndex(i => i.name === 'seconds'));
}"""
LOAD_SUBGRAPH = """async () => {
  await app.loadGraphData(app.graph.serialize());
  window.host = app.graph.nodes.find(n => n.subgraph);
  window.subgraph = host.subgraph;
}"""
OPEN_SUBGRAPH = "() => app.canvas.openSubgraph(subgraph, host)"
SENT = """async () => Object.values((await app.graphToPrompt()).output)
  .find(n => n.class_type === 'LongLivePromptSchedule').inputs.prompts"""
WORDS = "() => [...document.querySelectorAll('.ll-words')].map(words => words.textContent)"
SIDE_PANEL = "async on => { await app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', on) }"
NOT_OURS = "textarea:visible:not(.longlive-timeline *):not(.longlive-live *)"
OTHER = "0 a green square\n3s => it rests"
SEEDS = count(1000)
WAIT_MS = 120_000


@pytest.fixture(params=["classic", "vue"])
def rendering(request, server, page):
    """How the page draws nodes."""
    is_vue = request.param == "vue"
    if is_vue and server.version.startswith("0.3."):
        pytest.skip("the page of ComfyUI 0.3.64 draws nodes the classic way only")
    page.errors.clear()
    page.evaluate(VUE, is_vue)
    yield request.param
    page.evaluate(VUE, False)
    assert page.errors == []


def load(page, seconds: float = 2.0) -> None:
    """The timeline's workflow, with a seed that no test had before: what is cached is not run."""
    workflow = json.loads(json.dumps(WORKFLOW))
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] != "MarkdownNote"]  # a text too
    stream = next(node for node in workflow["nodes"] if node["type"] == "LongLiveStream")
    stream["widgets_values"][2:4] = [seconds, next(SEEDS)]
    page.evaluate(LOAD, workflow)
    page.wait_for_selector(".longlive-timeline .ll-cue")
    page.evaluate(f"() => {{ window.node = {NODE} }}")
    page.wait_for_timeout(700)  # the page lays nodes out, the timeline learns where the video ends


def until_words(page, *words: str) -> None:
    page.wait_for_function(f"words => JSON.stringify(({WORDS})()) === JSON.stringify(words)", arg=list(words))


def test_a_link_dropped_on_the_node_goes_to_prompts(page, rendering):
    load(page)
    page.evaluate(TEXT_NODE, "My text")
    page.wait_for_timeout(700)
    x, y = page.evaluate(OUTPUT_AT)
    box = page.locator(".longlive-timeline").bounding_box()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 10, steps=3)
    page.mouse.move(box["x"] + 150, box["y"] + 100, steps=6)
    page.wait_for_timeout(200)
    page.mouse.up()
    page.wait_for_function(f"() => ({LINKED})().includes('prompts')", timeout=5000)
    places = page.evaluate("() => node.inputs.map((_, slot) => node.getConnectionPos(true, slot)[1])")
    assert places[1] > places[0] + 10, "the slot of prompts has a row of its own"


@pytest.mark.newest
def test_linked_prompts_are_named_and_shown_after_a_run(page, rendering):
    load(page)
    old = page.evaluate(WORDS)
    page.evaluate(TEXT_NODE, "My text")
    page.evaluate(CONNECT)
    until_words(page, "Prompts come from My text")
    status = page.locator(".longlive-timeline .ll-status")
    page.locator(".ll-cue").first.click()
    page.keyboard.press("Insert")
    assert status.text_content() == "Prompts come from My text; change them there"
    page.evaluate(QUEUE)
    page.wait_for_function(f"() => ({WORDS})().includes('it turns red')", timeout=WAIT_MS)
    until_words(page, "a blue star", "it turns red")
    assert status.text_content() == "Prompts come from My text"
    page.evaluate("() => node.disconnectInput(node.inputs.findIndex(i => i.name === 'prompts'))")
    until_words(page, *old)


@pytest.mark.newest
def test_a_linked_length_is_the_rulers_end_after_a_run(page, rendering):
    load(page, 20.0)
    page.evaluate(LINK_SECONDS)
    end = page.locator(".longlive-timeline .ll-end")
    end.wait_for(state="hidden")
    page.evaluate(QUEUE)
    page.wait_for_function(
        "() => document.querySelector('.longlive-timeline .ll-end').title.endsWith('0:01.5')", timeout=WAIT_MS
    )


def test_a_subgraph_shows_the_text_and_the_timeline_in_it_is_in_step(server, page, rendering):
    load(page)
    page.evaluate(TO_SUBGRAPH)
    if server.version.startswith("0.3."):  # its page shows a text, a stock one too, once it is loaded again
        page.evaluate(LOAD_SUBGRAPH)
    field = page.locator(NOT_OURS)
    field.first.wait_for()
    assert field.first.input_value() == page.evaluate(SENT)
    assert field.first.bounding_box()["height"] > 100
    field.first.fill(OTHER)
    page.wait_for_function(f"async text => await ({SENT})() === text", arg=OTHER)
    page.evaluate(OPEN_SUBGRAPH)
    until_words(page, "a green square", "it rests")
    page.locator(".longlive-timeline .ll-cue").nth(1).click()
    page.locator(".longlive-timeline textarea").fill("it turns blue")
    assert page.evaluate(SENT) == OTHER.replace("it rests", "it turns blue") + "\n"
    page.evaluate("() => app.canvas.setGraph(subgraph.rootGraph)")
    field.first.wait_for()
    assert "it turns blue" in field.first.input_value()


@pytest.mark.newest
def test_the_side_panel_shows_the_text_and_the_timeline_is_in_step(page, rendering):
    load(page)
    page.evaluate("() => app.canvas.processSelect(node)")
    page.evaluate(SIDE_PANEL, True)
    try:
        field = page.locator(f"[data-testid=properties-panel] {NOT_OURS}").first
        field.wait_for()
        assert field.input_value() == page.evaluate(SENT)
        field.fill(OTHER)
        until_words(page, "a green square", "it rests")
        assert page.evaluate(SENT) == OTHER
        page.locator(".longlive-timeline .ll-cue").nth(1).click()
        page.locator(".longlive-timeline textarea").fill("it turns blue")
        page.wait_for_function("field => field.value.includes('it turns blue')", arg=field.element_handle())
    finally:
        page.evaluate(SIDE_PANEL, False)


@pytest.mark.newest
def test_the_wheel_with_ctrl_zooms_the_timeline_and_not_the_canvas(page, rendering):
    load(page)
    page.evaluate("() => { app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]] }")
    page.evaluate("() => { app.canvas.ds.scale = 0.9; app.canvas.setDirty(true, true) }")
    page.wait_for_timeout(500)
    before = page.locator(".ll-lane").bounding_box()["width"]
    box = page.locator(".ll-scroll").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_timeout(300)
    assert page.evaluate("() => app.canvas.ds.scale") == pytest.approx(0.9)
    assert page.locator(".ll-lane").bounding_box()["width"] > 1.4 * before
