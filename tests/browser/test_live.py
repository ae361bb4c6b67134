"""The live panel in a real page: a video watched and steered while it is made, by two tabs and over HTTP."""

import io
import json
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from longlive_core import PromptSchedule
from longlive_core.geometry import FRAME_RATE
from longlive_training.judge import read

ROOT = Path(__file__).parents[2]
READY = "!!(window.app?.vueAppReady && LiteGraph.registered_node_types['LongLiveStream'])"
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
QUEUE = "async () => { await app.queuePrompt(0, 1) }"
AS_PROMPT = "async () => (await app.graphToPrompt()).output"
SAVED = "() => app.graph.serialize().nodes.find(node => node.type === 'LongLiveStream').widgets_values"
PROMPTS = """() => app.graph.nodes.find(node => node.type === "LongLivePromptSchedule")
  .widgets.find(widget => widget.name === "prompts").value"""
SET_PROMPTS = """text => { app.graph.nodes.find(node => node.type === "LongLivePromptSchedule")
  .widgets.find(widget => widget.name === "prompts").value = text }"""
VUE = "async on => { await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on) }"
TELL = """async snapshot => {
  const { api } = await import("/scripts/api.js");
  api.dispatchEvent(new CustomEvent("longlive.run", { detail: snapshot }));
}"""
MARKS = "() => [...document.querySelectorAll('.longlive-live-strip li')].map(mark => mark.textContent)"
STATUS = "document.querySelector('.longlive-live [role=status]')"
PLAYER = "document.querySelector('.longlive-live video')"
LAG = f"() => {PLAYER}.buffered.end({PLAYER}.buffered.length - 1) - {PLAYER}.currentTime"
# the share of red and of blue in the picture that the player shows
SHOWS = f"""colour => {{
  const canvas = Object.assign(document.createElement("canvas"), {{ width: 64, height: 64 }});
  const pen = canvas.getContext("2d");
  pen.drawImage({PLAYER}, 0, 0, 64, 64);
  const {{ data }} = pen.getImageData(0, 0, 64, 64);
  const strong = {{ red: 0, blue: 0 }};
  for (let at = 0; at < data.length; at += 4) {{
    if (data[at] > 150 && data[at + 2] < 120) strong.red += 1;
    if (data[at + 2] > 180 && data[at] < 120) strong.blue += 1;
  }}
  return strong[colour] > 200;
}}"""
# counts pictures of the page in which the player has none, and no last one over it
WATCH = f"""() => {{
  window.blank = 0;
  const look = () => {{
    const isCovered = document.querySelector(".longlive-live-screen canvas");
    if (!isCovered && {PLAYER}.readyState < 2) window.blank += 1;
    requestAnimationFrame(look);
  }};
  look();
}}"""
MAX_BLANK_PICTURES = 1  # the first of a new source may come between two pictures of the page
WAIT_MS = 120_000
GOING_ON = ("running", "paused")
MAX_LAG_SECONDS = 1.5
SEEN_SECONDS = 1.5  # after which a prompt must be visible
SEED = 5
STREAM_ID = 900
PLAYED = "a red circle drifts right over navy"  # what mini_live has
CHOOSE = "Begin a new scene with an image: choose one, or drop it here"
DROP_IMAGE = """async name => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 64, height: 64 })
  canvas.getContext('2d').fillRect(9, 9, 20, 20)
  const blob = await new Promise(done => canvas.toBlob(done))
  const dataTransfer = new DataTransfer()
  dataTransfer.items.add(new File([blob], name, { type: 'image/png' }))
  const event = new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true })
  document.querySelector('.longlive-live textarea').dispatchEvent(event)
}"""
SNAPSHOT = {
    **{"run": "abc", "node": str(STREAM_ID), "state": "running", "block": 9, "num_blocks": None},
    "seconds": 7.3,
    **{"fps": 16.0, "pace": "real time", "pending": None, "error": None, "num_frames": 0},
    **{"video": "/longlive/runs/abc/video", "width": 64, "height": 64},
    "cues": [
        {
            **{"block": 0, "seconds": 0, "prompt": PLAYED, "policy": None, "blend": None},
            **{"origin": "schedule", "ticket": None, "latency": None},
        }
    ],
}


def workflow(seconds: float, pace: str = "real time") -> dict:
    """3 Direct a video live, of another length and pace; 0 seconds are until stopped."""
    loaded = json.loads((ROOT / "workflows" / "3 Direct a video live.json").read_text())
    renumber(loaded, STREAM_ID)
    stream = next(node for node in loaded["nodes"] if node["type"] == "LongLiveStream")
    stream["widgets_values"][2:6] = [seconds, SEED, "fixed", pace]
    x, y = stream["pos"]
    loaded["extra"]["ds"] = {
        "scale": 0.75,
        "offset": [150 - x, 150 - y],
    }  # only it: two tabs are drawn at once
    return loaded


def renumber(loaded: dict, number: int) -> None:
    """Give the stream another id: the server remembers runs of other tests by theirs."""
    stream = next(node for node in loaded["nodes"] if node["type"] == "LongLiveStream")
    for link in loaded["links"]:
        link[1], link[3] = (number if end == stream["id"] else end for end in (link[1], link[3]))
    stream["id"] = loaded["last_node_id"] = number


@pytest.fixture
def tabs(server, page):
    """Opens tabs of one browser, ours alone. Their pages may play media from memory, as ComfyUI's pages may
    unless it is started with --disable-api-nodes, as it is for tests."""
    context = page.context.browser.new_context(bypass_csp=True, viewport={"width": 700, "height": 900})

    def open_tab(loaded: dict):
        tab = context.new_page()
        tab.set_default_timeout(WAIT_MS)
        tab.goto(f"http://{server.address}")
        tab.wait_for_function(READY, timeout=120_000)
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.evaluate(LOAD, loaded)
        return tab

    yield open_tab
    context.close()


class Panel:
    """The live panel of the only stream of a page."""

    def __init__(self, page):
        self.page = page
        self._panel = page.get_by_role("group", name="LongLive: live")

    def button(self, name: str):
        return self._panel.get_by_role("button", name=name, exact=True)

    def send(self, prompt: str) -> None:
        """Type a prompt and press Enter."""
        box = self._panel.get_by_label("Live prompt")
        box.fill(prompt)
        box.press("Enter")

    @property
    def status(self) -> str:
        return self._panel.get_by_label("State of the run").text_content()

    @property
    def marks(self) -> list[str]:
        return self.page.evaluate(MARKS)

    def until(self, script: str, argument=None) -> None:
        self.page.wait_for_function(script, arg=argument, timeout=WAIT_MS, polling=50)

    def until_status(self, start: str) -> None:
        state = (
            "start => document.querySelector('.longlive-live [role=status]').textContent.startsWith(start)"
        )
        self.until(state, start)

    def until_marked(self, *prompts: str) -> None:
        self.until(f"prompts => JSON.stringify(({MARKS})()) === JSON.stringify(prompts)", list(prompts))


def frames_of(server, run: dict) -> torch.Tensor:
    """The frames [F, 3, H, W] in [0, 1] of a run's video."""
    with urllib.request.urlopen(f"http://{server.address}{run['video']}", timeout=30) as response:
        content = response.read()
    with av.open(io.BytesIO(content)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2) / 255


def colours_after(cues: list[dict], frames: torch.Tensor, seconds: float) -> list[str]:
    """What the judge sees so long after each cue took effect."""
    shown = read(frames)
    return [shown.names(round((cue["seconds"] + seconds) * FRAME_RATE))["colour"] for cue in cues]


def let_it_be_seen(server, page) -> None:
    """Wait until the newest prompt has been played long enough for the judge."""
    while True:
        run = server.get("/longlive/runs/current")
        if run["seconds"] > run["cues"][-1]["seconds"] + SEEN_SECONDS + 0.1:
            return
        page.wait_for_timeout(100)


@pytest.mark.newest
def test_a_video_is_watched_and_steered_from_two_tabs_and_over_http(server, tabs):
    first = tabs(workflow(seconds=0))
    one = Panel(first)
    assert one.button("send").is_disabled() and "Press Run" in one.page.inner_text(".longlive-live")
    first.evaluate(QUEUE)
    one.until(SHOWS, "red")
    assert first.evaluate(LAG) < MAX_LAG_SECONDS
    second = tabs(workflow(seconds=0))  # opened in mid-run
    two = Panel(second)
    red = "a red circle drifts right over navy"
    two.until_marked(red)
    one.send("it turns blue")
    one.until_marked(red, "it turns blue")
    two.until_marked(red, "it turns blue")
    one.until(SHOWS, "blue")
    assert first.evaluate(LAG) < MAX_LAG_SECONDS
    let_it_be_seen(server, first)
    two.send("it turns yellow")
    one.until_marked(red, "it turns blue", "it turns yellow")
    second.close()
    let_it_be_seen(server, first)
    assert server.post("/longlive/runs/current/prompt", {"prompt": "it turns green"})["ticket"] == 3
    one.until_marked(red, "it turns blue", "it turns yellow", "it turns green")
    let_it_be_seen(server, first)
    check_pause_and_stop(server, one)
    check_what_was_made(server, one)
    assert first.errors == second.errors == []


def check_pause_and_stop(server, panel: Panel) -> None:
    """Paused, nothing is made; stopped, the node shows the finished file from end to end."""
    panel.button("pause").click()
    panel.until_status("paused")
    panel.page.wait_for_timeout(800)
    held = server.get("/longlive/runs/current")["block"]
    panel.page.wait_for_timeout(800)
    assert server.get("/longlive/runs/current")["block"] == held
    panel.until(f"() => {PLAYER}.paused")  # a video that waits has a spinner over it
    panel.button("resume").click()
    panel.until_status("running")
    panel.until(f"() => !{PLAYER}.paused")
    panel.page.evaluate(WATCH)
    panel.button("stop and keep").click()
    panel.until_status("stopped")
    panel.page.locator(".longlive-live-screen button").wait_for(state="hidden")  # nothing is to come
    seconds = server.get("/longlive/runs")["runs"][0]["seconds"]
    panel.until(f"() => {PLAYER}.src.endsWith('/video') && {PLAYER}.currentTime > 1 && !{PLAYER}.seeking")
    assert abs(panel.page.evaluate(f"() => {PLAYER}.duration") - seconds) < 0.05
    # before the jump below: a player that seeks keeps its picture, and says that it has none
    assert panel.page.evaluate("() => blank") <= MAX_BLANK_PICTURES
    panel.page.evaluate(f"() => {{ {PLAYER}.currentTime = 0.5 }}")
    panel.until(f"() => !{PLAYER}.seeking && {PLAYER}.readyState >= 2")
    assert panel.page.evaluate(SHOWS, "red")


def check_what_was_made(server, panel: Panel) -> None:
    """The judge sees every prompt; frozen, the schedule has them; the page saves and sends no panel."""
    run = server.get("/longlive/runs")["runs"][0]
    frames = frames_of(server, run)
    assert len(frames) == run["num_frames"]
    assert colours_after(run["cues"], frames, SEEN_SECONDS) == ["red", "blue", "yellow", "green"]
    assert [cue["origin"] for cue in run["cues"]] == ["schedule", "live", "live", "live"]
    panel.button("freeze to schedule").click()
    panel.until(f"() => ({PROMPTS})().includes('it turns green')")
    schedule = PromptSchedule.parse(panel.page.evaluate(PROMPTS))
    assert [(cue.seconds, cue.prompt) for cue in schedule.cues] == [
        (cue["seconds"], cue["prompt"]) for cue in run["cues"]
    ]
    saved = panel.page.evaluate(SAVED)
    assert saved[2] == pytest.approx(run["num_frames"] / 16, abs=0.05), "as long as what was played"
    assert [*saved[:2], *saved[3:9]] == [64, 64, SEED, "fixed", "real time", False, 4, False]
    assert saved[9] == "unfinished run"
    assert saved[10:11] in (
        [],
        [None],
    )  # 0.3.64 saves its own status text behind the panel, which has no value
    sent = panel.page.evaluate(AS_PROMPT)[str(STREAM_ID)]["inputs"]
    assert sorted(sent) == sorted(
        [
            *("width", "height", "seconds", "seed", "pace", "keep_state", "steps", "whole_video", "resume"),
            *("model", "schedule", "vae"),
        ]
    )


def until_run(server, is_so) -> None:
    """Until a run that goes on is so; Playwright would not wait for what a page fetches."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not any(is_so(run) for run in server.get("/longlive/runs")["runs"] if run["state"] in GOING_ON):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def take_back(server, panel: Panel, presses: int, seconds: float) -> None:
    """Move the scrubber to a block by keys and press the button; wait for the file to end there."""
    place = panel.page.get_by_role("slider", name="Where to go back to")
    place.press("Home")
    for _ in range(presses):
        place.press("ArrowRight")
    assert place.get_attribute("aria-valuetext") == f"{seconds:.1f} s"
    panel.button("take back to here").click()
    until_run(server, lambda run: run["seconds"] == run["num_frames"] / FRAME_RATE == seconds)


@pytest.mark.newest
@pytest.mark.parametrize("is_vue", [False, True], ids=["classic", "vue"])
def test_a_run_is_taken_back_in_the_page_twice_and_made_again(server, tabs, is_vue):
    tab = tabs(workflow(seconds=0, pace="full speed"))
    tab.evaluate(VUE, is_vue)
    panel = Panel(tab)
    try:
        assert panel.button("take back").is_disabled()
        tab.evaluate(QUEUE)
        until_run(server, lambda run: run["seconds"] >= 20)
        panel.button("pause").click()
        panel.until_status("paused")
        panel.button("take back").click()
        tab.get_by_label("Live prompt").fill("it turns blue")
        tab.get_by_label("keep as version").check()
        take_back(server, panel, 11, 8.0625)
        panel.until_marked(PLAYED)
        panel.until(f"() => {PLAYER}.buffered.length && Math.abs({PLAYER}.buffered.end(0) - 8.0625) < 0.1")
        tab.get_by_label("keep as version").uncheck()
        panel.button("resume").click()
        panel.until_marked(PLAYED, "it turns blue")
        let_it_be_seen(server, tab)
        panel.until(SHOWS, "blue")
        panel.button("pause").click()
        panel.button("A new random seed").click()
        take_back(server, panel, 0, 0.0)
        panel.until("() => !document.querySelectorAll('.longlive-live-strip li').length")
        panel.button("resume").click()
        until_run(server, lambda run: run["seconds"] >= 2)
        panel.button("stop and keep").click()
        panel.until_status("stopped")
        check_it_is_made_again(server, panel)
    finally:
        tab.evaluate(VUE, False)
    assert tab.errors == []


def check_it_is_made_again(server, panel: Panel) -> None:
    """Frozen, the run makes the same file; what was taken back first is a file next to it."""
    run = server.get("/longlive/runs")["runs"][0]
    assert run["taken_back"] == 2 and [cue["prompt"] for cue in run["cues"]] == [PLAYED]
    panel.button("freeze to schedule").click()
    panel.until(f"() => ({PROMPTS})().includes('seed')")
    panel.page.evaluate(QUEUE)
    panel.until_status("done")
    again = server.get("/longlive/runs")["runs"][0]
    frames, made = frames_of(server, run), frames_of(server, again)
    assert again["run"] != run["run"] and abs(len(made) - len(frames)) <= 1, "seconds have one decimal there"
    shared = min(len(frames), len(made), 93)
    difference = (made[:shared] - frames[:shared]).abs()
    assert difference[:45].max() == 0
    # from then on the sink's keys turn with the window in a run until stopped: other last bits, ever more
    assert difference.mean() < 0.01
    (version,) = (server.base / "output" / "longlive").glob(f"*{run['run']}_v1.mp4")
    with av.open(str(version)) as container:
        assert container.streams.video[0].frames >= 20 * FRAME_RATE


def test_a_page_shows_runs_of_its_own_nodes_and_nothing_of_others(page):
    page.evaluate(LOAD, workflow(seconds=2))
    panel = Panel(page)
    before = panel.status
    page.evaluate(TELL, SNAPSHOT | {"node": "99"})
    page.evaluate(TELL, SNAPSHOT | {"node": f"{STREAM_ID}:1"})
    assert panel.status == before and panel.button("pause").is_disabled()
    page.evaluate(TELL, SNAPSHOT)
    assert panel.status == "running · block 10 · 7.3 s · 16 fps · real time"
    assert panel.marks == [PLAYED] and panel.button("pause").is_enabled()
    page.evaluate(TELL, SNAPSHOT | {"state": "failed", "error": "memory ran out"})
    assert page.get_by_role("alert").filter(has_text="memory ran out").is_visible()
    assert panel.button("send").is_disabled()
    assert page.errors == []


def test_a_page_shows_no_run_of_another_workflow(page):
    loaded = workflow(seconds=2)
    page.evaluate(LOAD, loaded)
    panel = Panel(page)
    assert page.evaluate("async () => (await app.graphToPrompt()).workflow.id") == loaded["id"]
    before = panel.status
    page.evaluate(TELL, SNAPSHOT | {"run": "theirs", "workflow": "another", "seconds": 3.1})
    assert panel.status == before
    page.evaluate(TELL, SNAPSHOT | {"run": "theirs", "workflow": "another", "seconds": 3.1, "state": "done"})
    page.evaluate(TELL, SNAPSHOT | {"run": "ours", "workflow": loaded["id"], "seconds": 4.2})
    assert " 4.2 s " in panel.status
    page.evaluate(LOAD, loaded | {"id": "another"})
    assert " 3.1 s " in panel.status
    page.evaluate(LOAD, loaded)
    assert " 4.2 s " in panel.status
    page.evaluate(TELL, SNAPSHOT | {"run": "ours", "workflow": loaded["id"], "state": "done"})
    assert page.errors == []


@pytest.mark.newest
def test_a_live_prompt_of_unknown_words_warns_as_a_scheduled_one_does(page):
    page.evaluate(LOAD, workflow(seconds=0))
    page.evaluate(QUEUE)
    panel = Panel(page)
    panel.until_status("running")
    try:
        panel.send("a dragon breathes fire")
        panel.until("() => document.querySelector('.longlive-live').innerText.includes('does not know')")
        panel.until_marked(PLAYED, "a dragon breathes fire")
        widths = "() => [...document.querySelectorAll('.longlive-live-strip li')].map(m => m.offsetWidth)"
        first, newest = page.evaluate(widths)
        assert newest > first
    finally:
        panel.button("stop and keep").click()
        panel.until_status("stopped")


@pytest.mark.newest
def test_a_prompt_begins_a_new_scene_with_an_image_that_is_chosen_or_dropped(server, page):
    image = io.BytesIO()
    Image.new("RGB", (64, 64), (0, 90, 40)).save(image, "PNG")
    page.evaluate(LOAD, workflow(seconds=0))
    page.evaluate(QUEUE)
    panel = Panel(page)
    panel.until_status("running")
    try:
        with page.expect_file_chooser() as chooser:
            panel.button(CHOOSE).click()
        named = {"name": "a: green, one.png", "mimeType": "image/png", "buffer": image.getvalue()}
        chooser.value.set_files(named)
        panel.button("Send without a_ green_ one.png").click()
        page.evaluate(DROP_IMAGE, "dropped.png")
        panel.button("Send without dropped.png").wait_for()
        panel.send("it turns blue")
        panel.until_marked(PLAYED, "it turns blue")
        panel.button(CHOOSE).wait_for()
        cue = server.get("/longlive/runs/current")["cues"][-1]
        assert (cue["image"], cue["policy"], cue["origin"]) == ("dropped.png", "cut", "live")
        assert (server.base / "input" / "a_ green_ one.png").exists() and page.errors == []
    finally:
        panel.button("stop and keep").click()
        panel.until_status("stopped")


@pytest.mark.newest
def test_a_fresh_graph_shows_no_run_of_other_prompts(page):
    loaded = workflow(seconds=2)
    page.evaluate(LOAD, loaded)
    panel = Panel(page)
    before = panel.status
    cues = [SNAPSHOT["cues"][0] | {"prompt": "a white circle over the sea"}]
    page.evaluate(TELL, SNAPSHOT | {"run": "script", "cues": cues})
    assert panel.status == before, "an API run of a node with the same number"
    page.evaluate(TELL, SNAPSHOT | {"run": "script", "cues": cues, "state": "done"})
    page.evaluate(TELL, SNAPSHOT | {"run": "copy", "workflow": loaded["id"], "cues": cues})
    assert panel.status.startswith("running"), "its prompts may have been edited since"
    page.evaluate(TELL, SNAPSHOT | {"run": "copy", "workflow": loaded["id"], "cues": cues, "state": "done"})
    assert panel.status.startswith("done")
    page.evaluate(LOAD, loaded)
    assert panel.status == "", "the run was made in another copy of the workflow"
    assert page.errors == []


@pytest.mark.newest
def test_an_answer_that_comes_after_the_end_of_the_run_changes_nothing(page):
    page.evaluate(LOAD, workflow(seconds=2))
    panel, held = Panel(page), []
    page.evaluate(TELL, SNAPSHOT)
    page.route("**/longlive/runs/abc/stop", lambda route: held.append(route))
    with page.expect_request("**/longlive/runs/abc/stop"):
        panel.button("stop and keep").click()
    page.evaluate(TELL, SNAPSHOT | {"state": "stopped"})
    with page.expect_response("**/longlive/runs/abc/stop"):
        held[0].fulfill(json=SNAPSHOT | {"state": "stopping"})
    page.wait_for_timeout(200)
    assert panel.status.startswith("stopped") and page.errors == []


@pytest.mark.newest
def test_freezing_a_run_of_other_prompts_asks_first(page):
    page.evaluate(LOAD, workflow(seconds=2))
    panel, asked = Panel(page), []
    page.evaluate(TELL, SNAPSHOT | {"run": "strange", "state": "done"})
    page.evaluate(SET_PROMPTS, "0 something else")
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    before = page.evaluate(PROMPTS)
    panel.button("freeze to schedule").click()
    panel.until("() => document.body.innerText.includes('The schedule was left as it is.')")
    assert len(asked) == 1 and page.evaluate(PROMPTS) == before
    assert page.errors == []


def test_the_panel_is_drawn_in_vue_nodes_too(server, page):
    if server.version.startswith("0.3."):
        pytest.skip("the Vue nodes of ComfyUI 0.3.64 show no DOM widgets of anyone")
    page.evaluate(LOAD, workflow(seconds=2))
    page.evaluate(VUE, True)
    try:
        page.wait_for_selector(".lg-node .longlive-live", timeout=20_000)
        page.evaluate(TELL, SNAPSHOT | {"run": "def"})
        assert page.locator(".lg-node .longlive-live").bounding_box()["height"] > 100
        box = page.locator(".lg-node .longlive-live textarea")
        box.fill("it rests")
        assert Panel(page).button("send").is_enabled()
    finally:
        page.evaluate(VUE, False)
    assert page.errors == []


@pytest.mark.newest
def test_where_pages_forbid_media_from_memory_the_finished_file_plays(server, page):
    page.evaluate(LOAD, workflow(seconds=2, pace="full speed"))
    page.evaluate(QUEUE)
    panel = Panel(page)
    panel.until_status("done")
    panel.until(f"() => Math.abs({PLAYER}.duration - 2) < 0.05")
    page.reload()
    page.wait_for_function(READY, timeout=120_000)
    page.evaluate(LOAD, workflow(seconds=2))
    panel.until_status("done")
    panel.until(f"() => Math.abs({PLAYER}.duration - 2) < 0.05")
