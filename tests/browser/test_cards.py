"""Prompt cards in a real page: added, pressed, moved, undone, saved, copied; keys, notes; and a clip."""

import io
import json
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

import av
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STREAM_ID = 910
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
SERIALISED = "() => app.graph.serialize()"
QUEUE = "async () => { await app.queuePrompt(0, 1) }"
VUE = "async on => { await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on) }"
TELL = """async snapshot => {
  const { api } = await import("/scripts/api.js");
  api.dispatchEvent(new CustomEvent("longlive.run", { detail: snapshot }));
}"""
COPY = """() => {
  const stream = app.graph.nodes.find(node => node.type === "LongLiveStream");
  app.canvas.selectItems ? app.canvas.selectItems([stream]) : app.canvas.selectNodes([stream]);
  app.canvas.copyToClipboard();
  app.canvas.pasteFromClipboard();
}"""
PASTED = """() => app.graph.nodes.filter(node => node.type === "LongLiveStream")
  .map(node => node.properties["Prompt cards"])"""
OWN = """() => [["LongLiveStream", "live"], ["LongLivePromptSchedule", "timeline"]].map(([type, name]) => {
  const { widgets } = app.graph.nodes.find(node => node.type === type);
  return widgets.find(widget => widget.name === name).element.isConnected;
})"""
# A MIDI device that a test plays with `play(note)`; `asked` counts how often the page asked for one.
DEVICE = """() => {
  const input = {};
  window.asked = 0;
  window.play = note => input.onmidimessage({ data: [0x91, note, 90] });
  navigator.requestMIDIAccess = async () => {
    window.asked += 1;
    return { inputs: new Map([["pads", input]]) };
  };
}"""
SNAPSHOT = {
    **{"run": "abc", "node": str(STREAM_ID), "state": "running", "block": 9, "num_blocks": None},
    **{"seconds": 7.3, "fps": 16.0, "pace": "real time", "pending": None, "error": None, "num_frames": 0},
    **{"video": "/longlive/runs/abc/video", "width": 64, "height": 64, "cues": []},
}
RAIN = {"prompt": "it rains", "name": "rain"}
SEA = {"prompt": "a wide sea at night", "policy": "cut"}
NIGHT = {"prompt": "the night falls", "policy": "blend", "blend": 3}
WAIT_MS = 120_000
RUNS = (f"made-up-{number}" for number in count())


def workflow(*cards: dict, seconds: float = 0) -> dict:
    """mini_live with these cards on its stream, which alone is in view."""
    loaded = json.loads((ROOT / "workflows" / "3 Direct a video live.json").read_text())
    stream = next(node for node in loaded["nodes"] if node["type"] == "LongLiveStream")
    for link in loaded["links"]:
        link[1], link[3] = (STREAM_ID if end == stream["id"] else end for end in (link[1], link[3]))
    stream["id"] = loaded["last_node_id"] = STREAM_ID
    stream["widgets_values"][2] = seconds
    stream["size"] = [520, 900]
    if cards:
        stream["properties"]["Prompt cards"] = list(cards)
    x, y = stream["pos"]
    loaded["extra"]["ds"] = {"scale": 1, "offset": [150 - x, 100 - y]}
    return loaded


class Cards:
    """The cards of the first stream of a page."""

    def __init__(self, page):
        self.page = page
        self.panel = page.get_by_role("group", name="LongLive: live").first
        self._row = self.panel.get_by_role("toolbar", name="Prompt cards")

    def button(self, name: str):
        return self._row.get_by_role("button", name=name, exact=True)

    @property
    def labels(self) -> list[str]:
        return self._row.locator("[draggable]").all_text_contents()

    @property
    def saved(self) -> list[dict] | None:
        nodes = self.page.evaluate(SERIALISED)["nodes"]
        return next(node for node in nodes if node["id"] == STREAM_ID)["properties"].get("Prompt cards")

    def form(self):
        return self.panel.get_by_role("dialog", name="Prompt card")

    def write(self, prompt: str, name: str = "", policy: str = "auto", blend: float | None = None) -> None:
        """Fill the form that is open and save it."""
        self.form().get_by_label("Name").fill(name)
        self.form().get_by_label("Prompt").fill(prompt)
        self.form().get_by_label("Change").select_option(policy)
        if blend:
            self.form().get_by_label("Seconds of the blend").fill(str(blend))
        self.form().get_by_role("button", name="save").click()


@pytest.fixture(params=["classic", "vue"])
def drawn(request, page, server):
    """The page with the nodes drawn in one of two ways."""
    is_vue = request.param == "vue"
    if is_vue and server.version.startswith("0.3."):
        pytest.skip("the Vue nodes of ComfyUI 0.3.64 show no DOM widgets of anyone")
    page.evaluate(VUE, is_vue)
    yield page
    page.evaluate(VUE, False)
    assert page.errors == []


class Run:
    """A run that the page believes in: `start` it, and `sent` has what the page sends to it."""

    def __init__(self, page):
        self.page, self.sent = page, []
        self._snapshot = SNAPSHOT | {"run": next(RUNS)}

    def start(self) -> None:
        self.page.evaluate(TELL, self._snapshot)

    def end(self) -> None:
        self.page.evaluate(TELL, self._snapshot | {"state": "done"})

    def answer(self, route) -> None:
        self.sent.append(route.request.post_data_json)
        route.fulfill(status=202, json={"ticket": len(self.sent), "run": self._snapshot["run"]})


@pytest.fixture
def run(page):
    run = Run(page)
    page.route("**/longlive/runs/made-up-*/prompt", run.answer)
    yield run
    page.unroute("**/longlive/runs/made-up-*/prompt")
    run.end()


def until(page, condition, milliseconds: int = 10_000) -> None:
    """Wait for something that the page does not announce."""
    for _ in range(milliseconds // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    assert condition()


@pytest.mark.newest
def test_cards_are_added_pressed_edited_and_removed(drawn, run):
    drawn.evaluate(LOAD, workflow())
    cards = Cards(drawn)
    cards.button("Add a prompt card").click()
    cards.write("it rains", "rain")
    cards.button("Add a prompt card").click()
    cards.write("the night falls", policy="blend", blend=3)
    assert cards.labels == ["rain", "the night falls"] and cards.saved == [RAIN, NIGHT]
    cards.button("rain").click(force=True)  # it counts as disabled
    assert "press Run" in drawn.inner_text(".longlive-live") and run.sent == []
    run.start()
    assert "press Run" not in drawn.inner_text(".longlive-live")
    cards.button("the night falls").click()
    until(drawn, lambda: len(run.sent) == 1)
    drawn.keyboard.press("1")
    until(drawn, lambda: len(run.sent) == 2)
    assert run.sent == [{"prompt": "the night falls", "policy": "blend", "blend": 3}, {"prompt": "it rains"}]
    cards.panel.get_by_label("Live prompt").fill("")
    cards.panel.get_by_label("Live prompt").press_sequentially("12")
    assert cards.panel.get_by_label("Live prompt").input_value() == "12"
    cards.button("Edit prompt cards").click()
    cards.button("rain").click()
    assert cards.form().get_by_label("Prompt").input_value() == "it rains"
    cards.write("it pours", "rain")
    drawn.keyboard.press("1")
    until(drawn, lambda: len(run.sent) == 3)
    assert run.sent[-1] == {"prompt": "it pours"}, "the panel has the focus again"
    cards.button("the night falls").click()
    cards.form().get_by_role("button", name="remove").click()
    assert cards.saved == [{"prompt": "it pours", "name": "rain"}] and len(run.sent) == 3
    cards.button("rain").click()
    cards.form().get_by_label("Prompt").press("Escape")
    assert not cards.form().is_visible()
    cards.button("Edit prompt cards").click()


@pytest.mark.newest
def test_cards_are_moved_by_drag_and_by_keys(drawn):
    drawn.evaluate(LOAD, workflow(RAIN, NIGHT, SEA))
    cards = Cards(drawn)
    cards.button("rain").drag_to(cards.button("a wide sea at night"))
    assert cards.labels == ["the night falls", "a wide sea at night", "rain"]
    cards.button("rain").press("Shift+ArrowLeft")
    assert cards.labels == ["the night falls", "rain", "a wide sea at night"]
    drawn.keyboard.press("Shift+ArrowLeft")
    drawn.keyboard.press("Shift+ArrowLeft")
    assert cards.saved == [RAIN, NIGHT, SEA]


@pytest.mark.newest
def test_cards_are_saved_loaded_copied_and_undone(drawn):
    drawn.evaluate(LOAD, workflow())
    cards = Cards(drawn)
    assert cards.saved is None and cards.labels == []
    for prompt in ("it rains", "a wide sea at night"):
        cards.button("Add a prompt card").click()
        cards.write(prompt, policy="cut" if "sea" in prompt else "auto")
    with_both = drawn.evaluate(SERIALISED)
    cards.button("a wide sea at night").focus()
    drawn.keyboard.press("Control+z")
    until(drawn, lambda: Cards(drawn).labels == ["it rains"])
    assert drawn.evaluate(OWN) == [True, True], (
        "the panel and the timeline that are shown are those of the nodes"
    )
    drawn.keyboard.press("Control+y")
    until(drawn, lambda: Cards(drawn).labels == ["it rains", "a wide sea at night"])
    drawn.evaluate(LOAD, workflow())
    assert cards.labels == []
    drawn.evaluate(LOAD, with_both)
    assert cards.labels == ["it rains", "a wide sea at night"] and cards.saved[1] == SEA
    drawn.evaluate(COPY)
    original, copy = drawn.evaluate(PASTED)
    assert original == copy == cards.saved
    drawn.evaluate("""() => { const copy = app.graph.nodes.filter(n => n.type === "LongLiveStream")[1];
      copy.properties["Prompt cards"][0].prompt = "changed" }""")
    assert cards.saved[0]["prompt"] == "it rains", "a copy has cards of its own"


@pytest.mark.newest
def test_notes_press_cards_once_the_user_asked_for_midi(page, run):
    page.evaluate(DEVICE)
    page.evaluate(LOAD, workflow(RAIN | {"note": 60}, SEA))
    run.start()
    cards = Cards(page)
    assert page.evaluate("asked") == 0
    cards.button("MIDI").click()
    page.wait_for_function("asked === 1")
    page.evaluate("play(60)")
    until(page, lambda: len(run.sent) == 1)
    cards.button("Edit prompt cards").click()
    cards.button("a wide sea at night").click()
    cards.form().get_by_role("button", name="learn").click()
    page.evaluate("play(62)")
    assert cards.form().get_by_role("button", name="D4").is_visible()
    cards.form().get_by_role("button", name="save").click()
    assert [card.get("note") for card in cards.saved] == [60, 62] and len(run.sent) == 1
    page.evaluate("play(62)")
    until(page, lambda: len(run.sent) == 2)
    page.evaluate("play(61)")
    cards.button("MIDI").click()
    page.evaluate("play(60)")
    page.wait_for_timeout(200)
    assert [body["prompt"] for body in run.sent] == ["it rains", "a wide sea at night"]
    assert page.evaluate("asked") == 1 and page.errors == []


@pytest.mark.newest
def test_a_page_without_midi_says_so(page):
    page.evaluate("() => Object.defineProperty(navigator, 'requestMIDIAccess', { value: undefined })")
    page.evaluate(LOAD, workflow(RAIN | {"note": 60}))
    Cards(page).button("MIDI").click()
    page.wait_for_function("document.body.innerText.includes('This page has no MIDI')")
    page.evaluate("() => { delete navigator.requestMIDIAccess }")


@pytest.mark.newest
def test_a_card_steers_a_run_and_a_clip_of_it_is_downloaded(server, page):
    cards = [
        {"prompt": "it turns into a blue star", "name": "star"},
        {"prompt": "it turns green", "policy": "cut"},
    ]
    page.evaluate(LOAD, workflow(*cards))
    shown = Cards(page)
    page.evaluate(QUEUE)
    page.wait_for_function(
        "document.querySelector('.longlive-live [role=status]').textContent.startsWith('running')"
    )
    shown.button("star").click()
    until(page, lambda: len(server.get("/longlive/runs/current")["cues"]) == 2, WAIT_MS)
    shown.panel.press("2")
    until(page, lambda: len(server.get("/longlive/runs/current")["cues"]) == 3, WAIT_MS)
    page.wait_for_timeout(1000)
    shown.panel.get_by_role("button", name="stop and keep").click()
    until(page, lambda: server.get("/longlive/runs")["runs"][0]["state"] == "stopped", WAIT_MS)
    run = server.get("/longlive/runs")["runs"][0]
    assert [(cue["prompt"], cue["policy"]) for cue in run["cues"][1:]] == [
        ("it turns into a blue star", None),
        ("it turns green", "cut"),
    ]
    with page.expect_download(timeout=WAIT_MS) as download:
        shown.panel.get_by_role("button", name="share").click()
    assert download.value.suggested_filename == f"longlive_{run['run']}.mp4"
    with av.open(io.BytesIO(Path(download.value.path()).read_bytes())) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert len(frames) == min(run["num_frames"], 240) and frames[0].shape == (480, 480, 3)
    page.wait_for_function("document.body.innerText.includes('.mp4 was downloaded')")
    check_the_route(server, run["run"])
    with urllib.request.urlopen(f"http://{server.address}{run['video']}", timeout=30) as response:
        video = response.read()
    with av.open(io.BytesIO(video)) as container:
        graph = json.loads(container.metadata["workflow"])
    stream = next(node for node in graph["nodes"] if node["id"] == STREAM_ID)
    assert stream["properties"]["Prompt cards"][0]["name"] == "star"
    assert page.errors == []


def check_the_route(server, run: str) -> None:
    """A clip is made by POST alone, of a run that there is, as one of two formats."""
    with asking(server, run, "webp") as response:
        assert response.headers["Content-Type"] == "image/webp"
        assert response.headers["Content-Disposition"] == f'attachment; filename="longlive_{run}.webp"'
        with Image.open(io.BytesIO(response.read())) as clip:
            assert (clip.format, clip.info["loop"]) == ("WEBP", 0)
    for name, kind, status in ((run, "gif", 400), ("none", "mp4", 404), ("current", "mp4", 404)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            asking(server, name, kind)
        assert refused.value.code == status and json.loads(refused.value.read())["error"]
    assert server.status_of(f"/longlive/runs/{run}/clip") == 404  # by GET


def asking(server, run: str, kind: str):
    url = f"http://{server.address}/longlive/runs/{run}/clip?format={kind}"
    return urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=60)
