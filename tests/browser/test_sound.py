"""Sound in the live panel: while the video is made, and in the finished file; muted at first."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest

from longlive_core import PromptSchedule

ROOT = Path(__file__).parents[2]
READY = "!!(window.app?.vueAppReady && LiteGraph.registered_node_types['LongLiveStream'])"
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
QUEUE = "async () => { await app.queuePrompt(0, 1) }"
ADD_SOUND = """() => {
  const sound = LiteGraph.createNode("LoadAudio");
  app.graph.add(sound);
  sound.widgets.find(widget => widget.name === "audio").value = "tone.wav";
  const stream = app.graph.nodes.find(node => node.type === "LongLiveStream");
  sound.connect(0, stream, stream.inputs.findIndex(input => input.name === "audio"));
}"""
PLAYER = "document.querySelector('.longlive-live video')"
STATUS = "document.querySelector('.longlive-live [role=status]')"
HEARD = f"() => {PLAYER}.webkitAudioDecodedByteCount"
RATE, SECONDS, STREAM_ID = 44_100, 6, 910
WAIT_MS = 120_000
SCHEDULE = "LongLivePromptSchedule"
TWO_CUES = "0 a red circle drifts right over navy\n5s => it turns blue\n"
TIMES = [2.0, 8.5, 12.0]
TEXT = f"""() => app.graph.nodes.find(node => node.type === "{SCHEDULE}")
  .widgets.find(widget => widget.name === "prompts").value"""
PIXELS = "parseFloat(document.querySelectorAll('.ll-beat')[1].style.left) / 8.5"


@pytest.fixture
def tab(server, page):
    """A tab whose page may play media from memory."""
    folder = server.base / "input"
    folder.mkdir(exist_ok=True)
    times = np.arange(SECONDS * RATE) / RATE
    with wave.open(str(folder / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((9_000 * np.sin(2764 * times)).astype("<i2").tobytes())
    context = page.context.browser.new_context(bypass_csp=True, viewport={"width": 900, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(WAIT_MS)
    tab.errors = []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("console", lambda line: "broke off" in line.text and tab.errors.append(line.text))
    tab.goto(f"http://{server.address}")
    tab.wait_for_function(READY, timeout=120_000)
    tab.errors.clear()
    yield tab
    context.close()


def workflow() -> dict:
    """mini_live of SECONDS in real time, its stream by a number of its own: the server remembers runs."""
    loaded = json.loads((ROOT / "workflows" / "3 Direct a video live.json").read_text())
    stream = next(node for node in loaded["nodes"] if node["type"] == "LongLiveStream")
    for link in loaded["links"]:
        link[1], link[3] = (STREAM_ID if end == stream["id"] else end for end in (link[1], link[3]))
    stream["id"] = loaded["last_node_id"] = STREAM_ID
    stream["widgets_values"][2:6] = [SECONDS, 5, "fixed", "real time"]
    return loaded


@pytest.mark.newest
def test_the_panel_plays_the_sound_while_the_video_is_made_and_after(server, tab):
    tab.evaluate(LOAD, workflow())
    tab.evaluate(ADD_SOUND)
    tab.evaluate(QUEUE)
    tab.wait_for_function(f"{PLAYER}?.currentTime > 1", timeout=WAIT_MS)
    tab.wait_for_function(f"({HEARD})() > 0", timeout=WAIT_MS)
    assert tab.evaluate(f"{PLAYER}.src").startswith("blob:"), "it still grows"
    assert tab.evaluate(f"{PLAYER}.muted")
    tab.evaluate(f"() => {{ {PLAYER}.muted = false; {PLAYER}.volume = 0.2 }}")
    tab.wait_for_function(f"{STATUS}.textContent.startsWith('done')", timeout=WAIT_MS)
    tab.wait_for_function(f"{PLAYER}.src.endsWith('/video') && {PLAYER}.readyState >= 2", timeout=WAIT_MS)
    assert abs(tab.evaluate(f"{PLAYER}.duration") - SECONDS) < 1 / 16
    tab.evaluate(f"() => {{ {PLAYER}.currentTime = 1; return {PLAYER}.play() }}")
    tab.wait_for_function(f"{PLAYER}.currentTime > 2 && ({HEARD})() > 0", timeout=WAIT_MS)
    assert not tab.evaluate(f"{PLAYER}.muted") and tab.evaluate(f"{PLAYER}.volume") == 0.2, (
        "as the user left it"
    )
    assert tab.errors == []


@pytest.mark.newest
def test_a_dragged_edge_snaps_to_a_beat_and_the_workflow_keeps_the_beats(server, tab):
    tab.route("**/longlive/beats?file=tone.wav", lambda route: route.fulfill(json={"times": TIMES}))
    loaded = json.loads((ROOT / "workflows" / "2 Blend and cut on the timeline.json").read_text())
    next(node for node in loaded["nodes"] if node["type"] == SCHEDULE)["widgets_values"] = [TWO_CUES]
    next(node for node in loaded["nodes"] if node["type"] == "LongLiveStream")["widgets_values"][2] = 20
    tab.evaluate(LOAD, loaded)
    tab.evaluate(ADD_SOUND)
    timeline = tab.locator(".longlive-timeline")
    timeline.get_by_role("button", name="Show the beats of a sound file", exact=False).click()
    tab.wait_for_function("document.querySelectorAll('.ll-beat').length === 3")
    assert "3 beats of tone.wav" in timeline.locator(".ll-status").text_content()
    saved = tab.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    schedule = next(node for node in saved["nodes"] if node["type"] == SCHEDULE)
    assert schedule["properties"]["Beats"] == {"file": "tone.wav", "times": TIMES}
    for keys, begins in (
        ([], 8.8125),
        (["Alt"], 8.0625),
    ):  # the blocks nearest to the beat, and to the pointer
        drag_edge(tab, 8.25, keys)
        assert begin_of_second(tab) == begins
        tab.evaluate(LOAD, saved)
        tab.wait_for_function("document.querySelectorAll('.ll-beat').length === 3")
    assert tab.errors == []


def drag_edge(tab, seconds: float, keys: list[str]) -> None:
    """Drag the beginning of the second cue to a time, with keys held."""
    edge = tab.locator(".longlive-timeline .ll-edge").nth(1).bounding_box()
    lane = tab.locator(".longlive-timeline .ll-lane").bounding_box()
    length = tab.evaluate("document.querySelector('.ll-lane').offsetWidth") / tab.evaluate(PIXELS)
    for key in keys:
        tab.keyboard.down(key)
    tab.mouse.move(edge["x"] + edge["width"] / 2, edge["y"] + edge["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(lane["x"] + lane["width"] * seconds / length, edge["y"] + edge["height"] / 2, steps=5)
    tab.mouse.up()
    for key in keys:
        tab.keyboard.up(key)


def begin_of_second(tab) -> float:
    return PromptSchedule.parse(tab.evaluate(TEXT)).cues[1].seconds
