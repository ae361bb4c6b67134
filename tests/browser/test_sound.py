"""Sound in the live panel: while the video is made, and in the finished file; muted at first."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest

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
WAIT_MS = 60_000


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
    loaded = json.loads((ROOT / "workflows" / "mini_live.json").read_text())
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
    assert tab.evaluate(f"{PLAYER}.src").startswith("blob:"), "it still grows"
    assert tab.evaluate(HEARD) > 0 and tab.evaluate(f"{PLAYER}.muted")
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
