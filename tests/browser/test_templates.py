"""From a fresh page to the first frames, with clicks as a person makes them; an App that is prompted."""

import pytest

WAIT_MS = 120_000
PACK = "ComfyUI-LongLive"
FIRST, APP = "1 Start here - four prompts", "Direct a video live.app"
MOST_CLICKS = 5
PLAYS = "() => document.querySelector('.longlive-live video')?.readyState >= 2"
SHORT = """() => { app.graph.nodes.find(node => node.type === 'LongLiveStream')
  .widgets.find(widget => widget.name === 'seconds').value = 2 }"""
SIZES = "() => app.graph.nodes.map(node => [node.type, node.size[0], node.size[1]])"
TEXTS = "() => app.graph.nodes.flatMap(node => node.widgets ?? []).map(widget => String(widget.value ?? ''))"
PUT = """([type, x, y]) => {
  const node = LiteGraph.createNode(type);
  node.pos = [x, y];
  app.graph.add(node);
  return node.id;
}"""
LINK = """([from, slot, to, name]) => {
  const target = app.graph.getNodeById(to);
  app.graph.getNodeById(from).connect(slot, target, target.inputs.findIndex(input => input.name === name));
}"""
FITS = """() => {
  const panel = document.querySelector('.longlive-live');
  return panel.scrollHeight <= panel.clientHeight && panel.firstChild.clientHeight > 110;
}"""
VUE = "async on => { await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on) }"
TOOLS = """() => new Set([...document.querySelectorAll('.ll-bar button')]
  .filter(button => button.checkVisibility())
  .map(button => Math.round(button.getBoundingClientRect().top))).size"""


@pytest.fixture
def fresh(server, page):
    """A page as somebody opens it for the first time, and a function that clicks in it and counts."""
    context = page.context.browser.new_context(bypass_csp=True, viewport={"width": 1366, "height": 768})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(f"http://{server.address}")
    ready = "!!(window.app?.vueAppReady && LiteGraph.registered_node_types['LongLiveStream'])"
    page.wait_for_function(ready, timeout=120_000)
    page.errors, page.clicks = [], 0
    page.on("pageerror", lambda error: page.errors.append(str(error)))

    def click(where) -> None:
        where.first.click(timeout=WAIT_MS)
        page.clicks += 1

    yield page, click
    context.close()


def open_template(page, click, name: str) -> None:
    """Templates, the pack, the template."""
    click(page.get_by_role("button", name="Templates"))
    click(page.get_by_text(PACK, exact=True))
    click(page.get_by_test_id(f"template-workflow-{name}"))


@pytest.mark.newest
def test_five_clicks_from_a_fresh_page_to_the_first_frames(fresh):
    page, click = fresh
    open_template(page, click, FIRST)
    page.wait_for_function(
        "() => app.graph.nodes.some(node => node.type === 'LongLiveStream')", timeout=WAIT_MS
    )
    page.wait_for_function("() => app.canvas.ds.scale >= 0.75", timeout=WAIT_MS)
    page.evaluate(SHORT)
    before = page.evaluate(SIZES)
    click(page.get_by_test_id("queue-button"))
    page.wait_for_function(PLAYS, timeout=WAIT_MS)
    assert page.clicks <= MOST_CLICKS
    page.locator(".longlive-live [role=status]").filter(has_text="done").wait_for(timeout=WAIT_MS)
    assert page.evaluate(SIZES)[:3] == before[:3], "no node of ours grows while it runs"
    assert not any("takes effect" in text for text in page.evaluate(TEXTS)), "every prompt is on time"
    assert page.errors == []


@pytest.mark.newest
def test_three_nodes_and_four_links_on_an_empty_canvas_make_a_video(fresh):
    page, click = fresh
    page.evaluate("() => app.graph.clear()")
    nodes = (("LongLiveLoadMini", 100), ("LongLivePromptSchedule", 300), ("LongLiveStream", 800))
    mini, schedule, stream = (page.evaluate(PUT, [kind, x, 100]) for kind, x in nodes)
    links = [[mini, 0, stream, "model"], [mini, 1, schedule, "clip"], [mini, 2, stream, "vae"]]
    for link in [*links, [schedule, 0, stream, "schedule"]]:
        page.evaluate(LINK, link)
    page.evaluate(SHORT)
    page.wait_for_function(f"() => ({TOOLS})() === 1", timeout=WAIT_MS)
    click(page.get_by_test_id("queue-button"))
    page.locator(".longlive-live [role=status]").filter(has_text="done").wait_for(timeout=WAIT_MS)
    page.wait_for_function(PLAYS, timeout=WAIT_MS)
    page.get_by_role("note", name="Warnings").filter(has_text="2 cues after 0:02 are not played").wait_for()
    assert page.evaluate(FITS), "at its first size the panel has room for all, and a picture"
    assert page.errors == []


@pytest.mark.newest
def test_an_app_runs_and_takes_a_prompt(server, fresh):
    page, click = fresh
    page.add_locator_handler(
        page.get_by_role("button", name="Skip"), lambda tour: tour.click()
    )  # of the page
    open_template(page, click, APP)
    page.wait_for_function(f"() => ({TOOLS})() === 1", timeout=WAIT_MS)
    page.get_by_test_id("linear-run-button").get_by_role("button").filter(has_text="Run").click()
    box = page.get_by_label("Live prompt")
    page.wait_for_function(
        "() => !document.querySelector('.longlive-live textarea').disabled", timeout=WAIT_MS
    )
    box.fill("it turns blue")
    box.press("Enter")
    marks = page.locator(".longlive-live-strip li")
    marks.filter(has_text="it turns blue").wait_for(timeout=WAIT_MS)
    page.get_by_role("button", name="stop and keep").click()
    page.locator(".longlive-live [role=status]").filter(has_text="stopped").wait_for(timeout=WAIT_MS)
    run = server.get("/longlive/runs")["runs"][0]
    assert [cue["prompt"] for cue in run["cues"]][-1] == "it turns blue"
    page.locator(
        "[data-testid=linear-outputs] video, [data-testid=linear-center-panel] video"
    ).first.wait_for(timeout=WAIT_MS)
    assert page.errors == []


@pytest.mark.newest
def test_inputs_that_few_people_change_are_folded(server, page):
    page.evaluate(VUE, True)
    try:
        page.evaluate("() => app.graph.clear()")
        page.evaluate(PUT, ["LongLiveStream", 100, 100])
        node = page.locator(".lg-node").filter(has=page.locator(".longlive-live"))
        node.get_by_text("seconds", exact=True).wait_for(timeout=WAIT_MS)
        assert not node.get_by_text("keep_state", exact=True).count()
        declared = server.get("/object_info")["LongLiveLoadModel"]["input"]
        folded = [
            name
            for part in declared.values()
            for name, (_, *options) in part.items()
            if any(option.get("advanced") for option in options)
        ]
        assert len(folded) == 6
    finally:
        page.evaluate(VUE, False)


def test_slots_and_links_of_ours_have_colours(page):
    page.evaluate("() => app.loadGraphData(app.graph.serialize())")
    colour = "() => app.canvas.default_connection_color_byType.LONGLIVE_SCHEDULE"
    page.wait_for_function(f"() => ({colour})()", timeout=WAIT_MS)
