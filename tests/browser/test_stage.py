"""The stage in a real browser: on a phone's screen, next to the panel that opened it, and without its box."""

import importlib.util
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PHONE = {"width": 390, "height": 844}
READY = "!!(window.app?.vueAppReady && LiteGraph.registered_node_types['LongLiveStream'])"
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
QUEUE = "async () => { await app.queuePrompt(0, 1) }"
QR = "QR code of the link"
HEIGHT = "() => app.graph.nodes.find(node => node.type === 'LongLiveStream').size[1]"
AT = "document.querySelector('video').currentTime"
PLAYS = f"() => document.querySelector('video').readyState > 2 && {AT} > 0.3"
FROM_MEMORY = "() => document.querySelector('video').src.startsWith('blob:')"
SMALL = """() => [...document.querySelectorAll('textarea, button, label span, div')]
  .filter(element => element.offsetParent && parseFloat(getComputedStyle(element).fontSize) < 16).length"""
SCROLLS = """() => [document.documentElement, document.body]
  .some(({ scrollHeight, scrollWidth }) => scrollHeight > innerHeight || scrollWidth > innerWidth)"""
COLOURS = """() => ["html", "body", "#stage"]
  .map(name => getComputedStyle(document.querySelector(name)).backgroundColor)"""
# the only media source of an iPhone, which takes nothing while the video may be sent to a television
ONLY_MANAGED = """window.ManagedMediaSource = window.MediaSource; delete window.MediaSource"""
CLEAR = "rgba(0, 0, 0, 0)"
NODE = 950
WAIT_MS = 120_000
WITH_SEGNO = importlib.util.find_spec("segno") is not None


def workflow(pace: str) -> dict:
    """mini_live with a stream of its own number, until stopped."""
    loaded = json.loads((ROOT / "workflows" / "3 Direct a video live.json").read_text())
    stream = next(node for node in loaded["nodes"] if node["type"] == "LongLiveStream")
    for link in loaded["links"]:
        link[1], link[3] = (NODE if end == stream["id"] else end for end in (link[1], link[3]))
    stream["id"] = loaded["last_node_id"] = NODE
    stream["widgets_values"][2:6] = [0.0, 5, "fixed", pace]
    x, y = stream["pos"]
    loaded["extra"]["ds"] = {"scale": 1, "offset": [20 - x, 20 - y]}
    return loaded


@pytest.fixture
def tabs(server, page):
    """Opens tabs; those of ComfyUI's server may play from memory, which it forbids as it is started here."""
    contexts = []

    def open_tab(address: str, viewport: dict, **options):
        options = {"bypass_csp": True, "viewport": viewport, **options}
        context = page.context.browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.goto(address)
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    server.post("/longlive/door", {"is_open": False})
    server.post("/interrupt", {})


def panel_of(server, tabs, pace: str = "real time"):
    """ComfyUI's page with the workflow, and the panel."""
    tab = tabs(f"http://{server.address}", {"width": 760, "height": 1000})
    tab.wait_for_function(READY, timeout=120_000)
    tab.evaluate(LOAD, workflow(pace))
    return tab, tab.get_by_role("group", name="LongLive: live")


def on_loopback(link: str) -> str:
    """The link as this machine reaches it whatever network it is in."""
    parts = urlsplit(link)
    return parts._replace(netloc=f"127.0.0.1:{parts.port}").geturl()


@pytest.mark.newest
def test_a_phone_watches_and_steers_and_the_panel_shows_it(server, tabs):
    tab, panel = panel_of(server, tabs)
    network, height = panel.get_by_role("button", name="network", exact=True), tab.evaluate(HEIGHT)
    network.click()
    panel.get_by_text("Nobody is connected yet.").wait_for()
    assert panel.get_by_text("segno").is_visible() != WITH_SEGNO == panel.get_by_alt_text(QR).is_visible()
    link = panel.get_by_label("Link of the stage").input_value()
    assert link == server.get("/longlive/door")["link"]
    assert link.partition("token=")[2] not in json.dumps(tab.evaluate("() => app.graph.serialize()"))

    phone = tabs(on_loopback(link), PHONE, has_touch=True, is_mobile=True, bypass_csp=False)
    phone.get_by_text("Waiting for the next run").wait_for()
    panel.get_by_text("this machine since").wait_for()
    box, send = phone.get_by_label("Live prompt"), phone.get_by_role("button", name="send")
    assert box.is_disabled() and "token" not in phone.url
    tab.evaluate(QUEUE)
    phone.wait_for_function(PLAYS, timeout=WAIT_MS)
    assert phone.evaluate(FROM_MEMORY)
    for part in (box, send, phone.locator("video")):
        seen = part.bounding_box()
        assert seen["y"] >= 0 and seen["y"] + seen["height"] <= PHONE["height"], part
    assert not phone.evaluate(SCROLLS) and phone.evaluate(SMALL) == 0
    box.fill("it turns into a blue star")
    phone.get_by_text("cut", exact=True).tap()
    send.tap()
    phone.get_by_text("took effect at").wait_for(timeout=WAIT_MS)
    taken = server.get("/longlive/runs/current")["cues"][-1]
    assert (taken["prompt"], taken["policy"], taken["origin"]) == ("it turns into a blue star", "cut", "live")
    assert box.input_value() == "" and phone.get_by_role("button", name="pause").is_hidden()

    panel.get_by_role("button", name="stop and keep").click()
    phone.get_by_text("Waiting for the next run").wait_for(timeout=WAIT_MS)
    tab.evaluate(QUEUE)
    phone.get_by_text("running").wait_for(timeout=WAIT_MS)
    phone.wait_for_function(PLAYS, timeout=WAIT_MS)
    network.click()
    phone.get_by_text("Connecting").wait_for()
    panel.get_by_label("Link of the stage").wait_for(state="hidden")
    assert tab.evaluate(HEIGHT) == height, "what the open stage needed is given back"
    network.click()
    assert panel.get_by_label("Link of the stage").input_value() != link
    phone.get_by_text("running").wait_for(timeout=WAIT_MS)  # by itself; one elsewhere needs the new link
    phone.wait_for_function(PLAYS, timeout=WAIT_MS)
    assert not tab.errors and not phone.errors


@pytest.mark.newest
def test_the_page_opens_here_joins_late_and_shows_the_video_alone(server, tabs):
    tab, panel = panel_of(server, tabs, "full speed")
    tab.evaluate(QUEUE)
    late = 16 * 0.75 + 3
    while not (run := current(server)) or run["seconds"] < late:
        tab.wait_for_timeout(200)
    with tab.context.expect_page() as opening:
        panel.get_by_role("button", name="stage", exact=True).click()
    stage = opening.value
    stage.wait_for_function(PLAYS, timeout=WAIT_MS)
    assert stage.evaluate(AT) > 2, "it begins with the newest frames"
    stage.get_by_label("Live prompt").fill("it turns green")
    stage.keyboard.press("Enter")
    stage.get_by_text("took effect at").wait_for(timeout=WAIT_MS)
    stage.get_by_role("button", name="pause").click()
    stage.get_by_role("button", name="resume").wait_for()
    stage.get_by_role("button", name="resume").click()

    scene = tabs(f"{stage.url}&box=off&background=transparent", {"width": 1280, "height": 720})
    scene.wait_for_function(PLAYS, timeout=WAIT_MS)
    assert scene.get_by_role("textbox").count() == 0 and scene.get_by_role("button").count() == 0
    assert scene.locator("video").bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 720}
    assert set(scene.evaluate(COLOURS)) == {CLEAR}
    phone = tabs("about:blank", PHONE)
    phone.add_init_script(ONLY_MANAGED)
    phone.goto(stage.url)
    phone.wait_for_function(PLAYS, timeout=WAIT_MS)
    assert phone.evaluate(FROM_MEMORY)
    assert not (*tab.errors, *scene.errors, *phone.errors)


def current(server) -> dict | None:
    runs = server.get("/longlive/runs")["runs"]
    return next((run for run in runs if run["node"] == str(NODE) and run["state"] == "running"), None)
