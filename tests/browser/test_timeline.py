"""The timeline in a real page: a schedule drawn with mouse and keyboard, saved, loaded, exported and run."""

import io
import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from longlive_core.schedule.schedule import PromptSchedule

ROOT = Path(__file__).parents[2]
WORKFLOW = json.loads((ROOT / "workflows" / "2 Blend and cut on the timeline.json").read_text())
READY = "!!(window.app?.vueAppReady && LiteGraph.registered_node_types['LongLiveStream'])"
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
AS_PROMPT = "async () => (await app.graphToPrompt()).output"
SAVED = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
NODE = "app.graph.nodes.find(n => n.type === 'LongLivePromptSchedule')"
TEXT = f"() => {NODE}.widgets.find(w => w.name === 'prompts').value"
SET_TEXT = f"text => {{ {NODE}.widgets.find(w => w.name === 'prompts').value = text }}"
LOADER = "app.graph.getNodeById(90)"  # of two_models
STREAM = "app.graph.nodes.find(n => n.type === 'LongLiveStream')"
CONNECT_MODEL = f"() => {LOADER}.connect(0, {STREAM}, 'model')"
SET_FAMILY = f"name => {{ {LOADER}.widgets.find(w => w.name === 'family').value = name }}"
TITLE_SAYS = "words => document.querySelectorAll('.ll-cue')[1].title.includes(words)"
PASTE = """text => { const clipboardData = new DataTransfer(); clipboardData.setData('text/plain', text);
  document.activeElement.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true })) }"""
VUE = "async isOn => { await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', isOn) }"
THEME = "async name => { await app.extensionManager.setting.set('Comfy.ColorPalette', name) }"
RAW_TEXT = "textarea.comfy-multiline-input[placeholder=prompts], [data-node-id='2'] textarea.flex"
NODE_BOXES = """() => [...document.querySelectorAll('[data-node-id]')].map(node => {
  const { left, top, right, bottom } = node.getBoundingClientRect(); return [left, top, right, bottom] })"""
NUM_DRAWN = "number => document.querySelectorAll('[data-node-id]').length === number"
ONE = "0:00 a red circle drifts right over navy\n"
SECONDS = 12.0
NUM_EDITS = 12  # of draw_three_cues
RESTORED_MILLISECONDS = 2000  # in which a new page loads the draft that it kept of the last one
BLOCK = 3  # latent frames
PICTURES = os.environ.get("LONGLIVE_PICTURES")  # a folder to keep pictures of the timeline in


def workflow_with(prompts: str) -> dict:
    """The timeline's workflow with another schedule, for a short video."""
    workflow = json.loads(json.dumps(WORKFLOW))
    for node in workflow["nodes"]:
        if node["type"] == "LongLivePromptSchedule":
            node["widgets_values"] = [prompts]
        if node["type"] == "LongLiveStream":
            node["widgets_values"][2] = SECONDS
    return workflow


class Timeline:
    """What a user sees and does."""

    def __init__(self, page):
        self.page = page
        self.root = page.locator(".longlive-timeline")
        self.status = self.root.locator(".ll-status")
        self.prompt = self.root.locator("textarea")

    def load(self, workflow: dict) -> None:
        self.page.evaluate(LOAD, workflow)
        self.page.wait_for_function("() => document.querySelectorAll('.longlive-timeline .ll-cue').length")
        self.page.wait_for_timeout(700)  # the page lays nodes out, the timeline learns where the video ends

    @property
    def text(self) -> str:
        return self.page.evaluate(TEXT)

    @property
    def schedule(self) -> PromptSchedule:
        return PromptSchedule.parse(self.text)

    def cue(self, index: int):
        return self.root.locator(".ll-cue").nth(index)

    def click(self, label: str) -> None:
        self.root.get_by_role("button", name=label, exact=True).click()

    def change(self, policy: str) -> None:
        """Choose what happens at the selected cue; the list of sound files has a label of its own."""
        self.root.locator("select:not([aria-label])").select_option(policy)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def press_until_done(self, key: str, label: str) -> int:
        """Press a key while the button for the same can be pressed; how often."""
        button = self.root.get_by_role("button", name=label, exact=True)
        presses = 0
        while button.is_enabled() and presses < 50:
            self.press(key)
            presses += 1
        return presses

    def type(self, words: str) -> None:
        self.page.keyboard.type(words)

    def drag(self, start: tuple[float, float], seconds: float) -> None:
        """Drag from a point of the page by so many seconds of video."""
        x, y = start
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 3, y)
        self.page.mouse.move(x + seconds * self.pixels, y, steps=4)
        self.page.mouse.up()

    def drag_edge(self, index: int, seconds: float) -> None:
        box = self.cue(index).bounding_box()
        self.drag((box["x"] + 2, box["y"] + box["height"] / 2), seconds)

    def drag_cue(self, index: int, seconds: float) -> None:
        box = self.cue(index).bounding_box()
        self.drag((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), seconds)

    @property
    def pixels(self) -> float:
        """Of the page for a second of video: the end mark says it."""
        lane, end = self.root.locator(".ll-lane").bounding_box(), self.root.locator(".ll-end").bounding_box()
        return (end["x"] - lane["x"]) / SECONDS

    def drawn(self) -> list[tuple[float, str, str]]:
        """When each cue begins by its place on the ruler, its policy and its words."""
        left = self.root.locator(".ll-lane").bounding_box()["x"]
        cues = [self.cue(index) for index in range(self.root.locator(".ll-cue").count())]
        return [
            (
                (cue.bounding_box()["x"] - left) / self.pixels,
                cue.locator(".ll-policy").text_content(),
                cue.locator(".ll-words").text_content(),
            )
            for cue in cues
        ]


def assert_drawn_as_written(timeline: Timeline) -> None:
    """The blocks on the ruler are the schedule that Python reads from the text."""
    segments = timeline.schedule.resolve(BLOCK, SECONDS).segments
    drawn = timeline.drawn()
    assert [words for _, _, words in drawn] == [segment.cue.prompt for segment in segments]
    for (seconds, policy, _), segment in zip(drawn, segments, strict=True):
        assert seconds == pytest.approx(segment.seconds, abs=0.15)
        assert policy.split(" ")[0] == (segment.cue.policy.value if segment.cue.policy else "")


@pytest.fixture
def rendering(request, server, page):
    """How the page draws nodes: the classic way, unless a test asks for both."""
    is_vue = getattr(request, "param", "classic") == "vue"
    if is_vue and server.version.startswith("0.3."):
        pytest.skip("the page of ComfyUI 0.3.64 draws nodes the classic way only")
    page.evaluate(VUE, is_vue)
    yield "vue" if is_vue else "classic"
    page.evaluate(VUE, False)


in_both_renderings = pytest.mark.parametrize("rendering", ["classic", "vue"], indirect=True)


@pytest.fixture
def timeline(page, rendering):
    page.errors.clear()
    yield Timeline(page)
    assert page.errors == []


def draw_three_cues(timeline: Timeline) -> list[str]:
    """With mouse and keyboard; the text after each step."""
    timeline.click("Add a cue at the end")
    timeline.type("it turns into a blue star")  # over the words of the cue before, which are selected
    texts = [ONE, timeline.text]
    timeline.press("Escape")
    timeline.drag_edge(1, -1.4)
    texts.append(timeline.text)
    timeline.press("Insert")
    timeline.type("a green square rests over slate")
    texts.append(timeline.text)
    timeline.press("Enter")
    timeline.press("p", "p", "p", "p")  # recache, refresh, keep, cut
    timeline.press("ArrowLeft", "Alt+ArrowRight")
    timeline.change("blend")
    timeline.root.locator("input[type=number]").fill("1.5")
    timeline.root.locator("input[type=number]").press("Enter")
    return [*texts, timeline.text]


@in_both_renderings
def test_three_cues_are_drawn_undone_saved_loaded_exported_and_run(timeline, server, page, rendering):
    timeline.load(workflow_with(ONE))
    texts = draw_three_cues(timeline)
    assert texts[-1] == (
        "0:00 a red circle drifts right over navy\n"
        "4.3125s => blend 1.5s: it turns into a blue star\n"
        "8.8125s => cut: a green square rests over slate\n"
    )
    assert_drawn_as_written(timeline)
    assert_undone_and_redone(timeline, page, texts)
    exported, saved = page.evaluate(AS_PROMPT), page.evaluate(SAVED)
    if rendering == "classic":  # in the other one a load without a new page must do
        page.reload()
        page.wait_for_function(READY, timeout=120_000)
        page.errors.clear()  # as the page fixture does
        page.wait_for_timeout(RESTORED_MILLISECONDS)
    timeline.load(saved)
    assert timeline.text == texts[-1]
    assert_drawn_as_written(timeline)
    assert page.evaluate(AS_PROMPT) == exported
    schedule = next(n for n in exported.values() if n["class_type"] == "LongLivePromptSchedule")
    assert schedule["inputs"].keys() == {"clip", "prompts"} and schedule["inputs"]["prompts"] == texts[-1]
    if rendering == "classic":
        run_to_the_end(server, page)


def assert_undone_and_redone(timeline: Timeline, page, texts: list[str]) -> None:
    """Every edit is taken back and made again by key, and the host takes back nothing of the graph."""
    page.evaluate(f"() => {{ window.before = {NODE} }}")
    timeline.cue(1).click()
    assert timeline.press_until_done("Control+z", "Undo") == NUM_EDITS
    assert timeline.text == texts[0]
    assert timeline.press_until_done("Control+Shift+z", "Redo") == NUM_EDITS
    assert timeline.text == texts[-1]
    page.wait_for_timeout(100)  # the host's own undo would load the graph anew
    assert page.evaluate(f"() => window.before === {NODE}")
    assert_drawn_as_written(timeline)


def run_to_the_end(server, page) -> None:
    num_runs = len(server.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1) }")
    deadline = time.monotonic() + 120
    while len(history := server.get("/history")) == num_runs:
        assert time.monotonic() < deadline, "the prompt did not end"
        time.sleep(0.2)
    assert list(history.values())[-1]["status"]["status_str"] == "success"


@pytest.mark.newest
def test_every_edit_has_a_key(timeline):
    timeline.load(workflow_with("0 => a\n3.5625s => cut: b\n7.3125s => c\n"))
    timeline.cue(0).focus()
    timeline.press("End", "Home", "ArrowRight", "Control+ArrowLeft")
    assert timeline.text == "0s => cut: b\n3.5625s => a\n7.3125s => c\n"
    timeline.press("s")
    assert [cue.prompt for cue in timeline.schedule.cues] == ["b", "b", "a", "c"]
    timeline.press("Delete", "d")
    assert [cue.prompt for cue in timeline.schedule.cues] == ["b", "b", "a", "c"]
    timeline.press("Backspace", "Alt+Shift+ArrowRight")
    assert timeline.schedule.resolve(BLOCK).segments[1].seconds > 3.6
    timeline.press("Enter")
    timeline.press("Control+a", "Delete")
    assert "prompt is empty" in timeline.status.text_content()
    timeline.press("Escape")
    assert timeline.prompt.input_value() == timeline.schedule.cues[0].prompt
    labels = [timeline.cue(index).get_attribute("aria-label") for index in range(3)]
    assert labels[0].startswith("Cue 1 of 3, 0:00 to 0:0") and labels[0].endswith("cut, b")


def two_models() -> dict:
    """The timeline's workflow, and Load Model with a file that is marked as frame-wise, not connected."""
    workflow = workflow_with("0 => a\n3s => b\n6s => c\n")
    model = {"type": "LongLiveLoadModel", "id": 90, "pos": [0, 900], "size": [300, 300]}
    model |= {"inputs": [], "outputs": [{"name": "model", "type": "LONGLIVE_MODEL", "links": []}]}
    values = ["small_ar.safetensors", "none", 1.0, "none", 1.0, "auto", "auto", "auto", False, "plain", ""]
    workflow["nodes"].append({**model, "widgets_values": values, "properties": {}})
    return workflow


@pytest.mark.newest
def test_blocks_are_those_of_the_model_that_is_connected(timeline, page, models):
    timeline.load(two_models())
    usual, frame_wise = "takes effect at 0:03.6 (block 5)", "takes effect at 0:03.1 (block 13)"
    assert page.evaluate(TITLE_SAYS, usual)
    page.evaluate(CONNECT_MODEL)
    page.wait_for_function(TITLE_SAYS, arg=frame_wise)
    timeline.cue(1).click()
    timeline.press("Alt+ArrowRight")
    assert timeline.text.splitlines()[1] == "3.3125s => b"
    timeline.change("blend")
    assert timeline.root.locator("input[type=number]").get_attribute("step") == "0.25"
    timeline.drag_edge(2, 0.9)
    begins = timeline.schedule.cues[2].seconds
    assert begins == pytest.approx(6.9, abs=0.25)
    assert timeline.schedule.resolve(1).segments[2].seconds == begins
    page.evaluate(SET_FAMILY, "self-forcing")
    page.wait_for_function(TITLE_SAYS, arg="takes effect at 0:03.6 (block 5)")
    timeline.cue(1).click()
    timeline.press("Alt+ArrowRight")
    assert timeline.schedule.cues[1].seconds == 4.3125


@pytest.mark.newest
def test_what_is_typed_into_a_field_is_of_the_cue_it_was_typed_for(timeline):
    timeline.load(workflow_with("0 => a\n3.5625s => blend 3s: b\n7.3125s => blend 3s: c\n"))
    timeline.cue(1).click()
    timeline.root.get_by_label("Begins at").fill("5.0625s")
    timeline.cue(2).click()
    assert timeline.text == "0 => a\n5.0625s => blend 3s: b\n7.3125s => blend 3s: c\n"
    timeline.root.locator("input[type=number]").fill("1.5")
    timeline.cue(1).click()
    assert timeline.text == "0 => a\n5.0625s => blend 3s: b\n7.3125s => blend 1.5s: c\n"
    assert timeline.root.locator("input[type=number]").input_value() == "3"


@pytest.mark.newest
def test_a_cue_has_a_seed_and_another_take(timeline):
    timeline.load(workflow_with("0 a red circle\n5s cut: it turns blue\n8s it rests\n"))
    timeline.cue(1).click()
    field = timeline.root.get_by_label("seed", exact=True)
    assert field.input_value() == "" and field.get_attribute("placeholder") == "video's"
    field.fill("007")
    timeline.cue(0).click()
    assert timeline.text == "0 a red circle\n5s => cut, seed 7: it turns blue\n8s it rests\n"
    timeline.cue(2).click()
    assert field.get_attribute("placeholder") == "7", "which goes on"
    assert timeline.cue(1).locator(".ll-policy").text_content() == "cut, seed 7" and field.input_value() == ""
    timeline.cue(1).click()
    timeline.root.get_by_role("button", name="Another take").click()
    taken = timeline.schedule.cues[1].seed
    assert taken != 7 and field.input_value() == str(taken)
    field.fill("7s")
    field.press("Tab")
    assert "from 0 to 18446744073709551615" in timeline.status.text_content()
    assert timeline.schedule.cues[1].seed == taken and field.input_value() == str(taken)
    field.fill("")
    field.press("Tab")
    assert timeline.text == "0 a red circle\n5s => cut: it turns blue\n8s it rests\n"


@pytest.mark.newest
def test_a_cue_begins_with_an_image_that_is_chosen(timeline, page):
    timeline.load(workflow_with("0 a red circle\n5s blend: it turns blue\n"))
    timeline.cue(1).click()
    field = timeline.root.get_by_label("image", exact=True)
    assert field.is_hidden()
    with page.expect_file_chooser() as chooser:
        timeline.root.get_by_role("button", name="Begin a new scene with an image").click()
    image = io.BytesIO()
    Image.new("RGB", (64, 64), (0, 90, 40)).save(image, "PNG")
    named = {"name": "sea, two.png", "mimeType": "image/png", "buffer": image.getvalue()}
    chooser.value.set_files(named)
    field.wait_for()
    assert timeline.text == "0 a red circle\n5s => cut, image sea_ two.png: it turns blue\n"
    assert timeline.cue(1).locator(".ll-policy").text_content() == "cut, image sea_ two.png"
    assert field.input_value() == "sea_ two.png"
    field.fill("../sea.png")
    field.press("Tab")
    assert "name a file of ComfyUI's input folder" in timeline.status.text_content()
    field.fill("")
    field.press("Tab")
    assert timeline.text == "0 a red circle\n5s => cut: it turns blue\n" and field.is_hidden()


@in_both_renderings
@pytest.mark.newest
def test_what_is_in_every_prompt_has_a_field_and_labels_leave_out_what_is_shared(timeline):
    style = "Realistic film still, night."
    timeline.load(workflow_with(f"0 => {style} A fox runs\n5.0625s => {style} A bear rests\n"))
    assert [words for _, _, words in timeline.drawn()] == ["…fox runs", "…bear rests"]
    field = timeline.root.get_by_label("in every prompt")
    field.click()
    timeline.type("young  woman, red coat.")
    assert timeline.text.startswith(f"always: young woman, red coat.\n0 => {style} A fox runs\n")
    timeline.press("Control+z", "Escape")
    timeline.cue(1).click()
    assert timeline.prompt.input_value() == f"{style} A bear rests"
    timeline.load(workflow_with("# mine\nalways: film\n  still\n0 => a\n5.0625s => b\n"))
    assert field.input_value() == "film still"
    field.fill("")
    assert timeline.text == "# mine\n0 => a\n5.0625s => b\n"
    timeline.press("Escape", "Control+z")
    assert field.input_value() == "film still"


def test_the_hosts_commands_reach_it(timeline, page):
    timeline.load(workflow_with(ONE))
    page.evaluate(
        "() => { window.reached = []; window.addEventListener('keydown', e => window.reached.push(e.key)) }"
    )
    timeline.cue(0).click()
    timeline.press("Control+F8", "r", "Control+a", "Enter", "Control+F9", "x")
    assert page.evaluate("() => window.reached") == ["F8", "F9"]
    timeline.press("Escape")


@pytest.mark.newest
def test_cues_are_dragged_to_another_place_and_made_on_the_ruler(timeline):
    timeline.load(workflow_with("0 => a\n3.5625s => b\n7.3125s => c\n"))
    timeline.drag_cue(0, 6)
    assert [cue.prompt for cue in timeline.schedule.cues] == ["b", "a", "c"]
    ruler = timeline.root.locator(".ll-ruler").bounding_box()
    timeline.page.mouse.dblclick(ruler["x"] + 10.3 * timeline.pixels, ruler["y"] + 8)
    assert timeline.schedule.cues[-1].seconds == 10.3125
    assert_drawn_as_written(timeline)


@in_both_renderings
def test_the_text_and_the_timeline_agree_and_errors_are_shown(timeline, page):
    timeline.load(workflow_with(ONE))
    timeline.click("Show the schedule as text")
    page.wait_for_timeout(300)
    raw = page.locator(RAW_TEXT)
    raw.fill("0 a red circle\n5s => it turns blue")
    assert_drawn_as_written(timeline)
    raw.fill("0 a red circle\n5s => it turns blue\nsoon it rests")
    assert 'line 3, column 1: "soon" is not a time' in timeline.status.text_content()
    assert timeline.root.locator(".ll-cue").count() == 2, "the last good timeline stays"
    raw.fill("# mine\n0 a red circle\n5s => blend 3s: it turns blue")
    assert timeline.status.text_content() == ""
    assert_drawn_as_written(timeline)
    timeline.cue(1).click()
    timeline.press("Alt+ArrowLeft")
    expected = "# mine\n0 a red circle\n4.3125s => blend 3s: it turns blue\n"
    assert timeline.text == raw.input_value() == expected
    timeline.click("Show the schedule as text")


@pytest.mark.newest
def test_what_cannot_run_is_said_and_what_cannot_be_read_is_not_drawn(timeline, page):
    timeline.load(workflow_with("0 a red circle\n9999s => it rests"))
    assert timeline.status.text_content() == "1 cue after 0:12 is not played"
    assert "ll-error" not in timeline.status.get_attribute("class")
    timeline.load(workflow_with("0 a red circle\n10.3125s => recahce: it rests"))
    assert "for the change write recache:" in timeline.status.text_content()
    titles = (
        timeline.root.get_by_label("change").locator("option").evaluate_all("all => all.map(o => o.title)")
    )
    assert len(set(titles)) == 6 and all(titles)
    timeline.cue(1).click()
    assert timeline.root.get_by_label("Begins at").input_value() == "10.3s"
    timeline.click("Add a cue at the end")
    assert timeline.schedule.cues[-1].seconds < 11.5 and "10.3125s => " in timeline.text
    timeline.load(workflow_with(""))
    assert "the schedule is empty" in timeline.status.text_content()
    assert [cue.text_content() for cue in timeline.root.locator(".ll-cue").all()] == [""]
    policy = timeline.root.get_by_label("change")
    policy.select_option("cut")
    assert policy.input_value() == "auto" and timeline.text == ""
    help_text = timeline.root.locator(".ll-help")
    timeline.click("Shortcuts")
    help_text.click()
    assert not help_text.is_visible()


def test_a_copied_node_leaves_nothing_behind(timeline, page):
    """The host makes a node for every copy, which is never added to a graph, and so never removed."""
    timeline.load(workflow_with(ONE))
    page.evaluate(
        "() => { window.timers = 0; window.plain = setInterval; window.setInterval = (...given) => { "
        "window.timers += 1; return window.plain(...given) } }"
    )
    try:
        page.evaluate(f"() => app.canvas.copyToClipboard([{NODE}])")
        assert page.evaluate("window.timers") == 0
    finally:
        page.evaluate("() => { window.setInterval = window.plain }")


@pytest.mark.newest
def test_pasted_schedules_and_unknown_fields(timeline, page):
    timeline.load(workflow_with(ONE))
    timeline.cue(0).focus()
    page.evaluate(PASTE, '{"prompts": ["a", "b"], "id": 3}')
    assert timeline.text == "0s => a\n9.8125s => b\n"
    page.evaluate(
        PASTE, '{"cues": [{"time": 0, "prompt": "a", "lane": {"row": 2}}], "zoom": 12345678901234567890}'
    )
    timeline.press("Insert")
    timeline.type("b")
    written = json.loads(timeline.text)
    assert written["cues"][0]["lane"] == {"row": 2} and written["cues"][1]["prompt"] == "b"
    assert written["zoom"] == 12345678901234567890
    timeline.press("Escape")
    page.evaluate(PASTE, "5s => too late")
    assert "first cue is at 5s" in timeline.status.text_content()
    assert json.loads(timeline.text) == written


@pytest.mark.newest
def test_three_thousand_cues_are_drawn_within_seconds(timeline, page):
    text = "".join(f"{second}s => a circle {second}\n" for second in range(3000))
    timeline.load(workflow_with(ONE))
    timeline.cue(0).focus()
    timed = (
        f"text => {{ const start = performance.now(); ({PASTE})(text); return performance.now() - start }}"
    )
    assert page.evaluate(timed, text) < 5000
    assert timeline.root.locator(".ll-cue").count() == 3000 and timeline.text == text
    timeline.load(workflow_with(ONE))


def test_a_schedule_from_another_node_is_shown_and_left_alone(timeline, page):
    timeline.load(workflow_with(ONE))
    page.evaluate(
        f"""() => {{ const source = LiteGraph.createNode('PrimitiveStringMultiline'); app.graph.add(source);
        source.connect(0, {NODE}, {NODE}.inputs.findIndex(input => input.name === 'prompts')) }}"""
    )
    page.wait_for_function("() => document.querySelector('.longlive-timeline.ll-stale')")
    timeline.cue(0).click()
    timeline.press("Insert")
    assert timeline.text == ONE
    assert "change them there" in timeline.status.text_content()


def test_a_running_video_is_shown_on_the_timeline(timeline, page):
    timeline.load(workflow_with(ONE))
    stream = "app.graph.nodes.find(n => n.type === 'LongLiveStream').id"
    cues = [
        {"seconds": 0.0, "prompt": "a", "origin": "schedule"},
        {"seconds": 6, "prompt": "b", "origin": "live"},
    ]
    tell = """([node, state, cues, workflow]) => window.comfyAPI.api.api.dispatchEvent(
        new CustomEvent('longlive.run', { detail: { node, state, seconds: 9, cues, workflow } }))"""
    page.evaluate(tell, [page.evaluate(stream), "running", cues])
    left = timeline.root.locator(".ll-lane").bounding_box()["x"]
    mark, now = (timeline.root.locator(name).bounding_box() for name in (".ll-live", ".ll-now"))
    assert (mark["x"] + mark["width"] / 2 - left) / timeline.pixels == pytest.approx(6, abs=0.2)
    assert (now["x"] - left) / timeline.pixels == pytest.approx(9, abs=0.2)
    page.evaluate(tell, [page.evaluate(stream), "running", [], "another"])
    assert timeline.root.locator(".ll-live").count() == 1, "a run of another workflow is none of ours"
    page.evaluate(tell, [page.evaluate(stream), "done", cues, page.evaluate("() => app.graph.id")])
    assert timeline.root.locator(".ll-now").count() == 0 and timeline.root.locator(".ll-live").count() == 1


@in_both_renderings
def test_pictures_of_both_themes(timeline, page, rendering, tmp_path, request):
    folder = Path(PICTURES) if PICTURES else tmp_path
    timeline.load(json.loads(json.dumps(WORKFLOW)))
    timeline.cue(2).click()
    page.wait_for_timeout(300)
    assert page.evaluate(f"() => {NODE}.widgets.find(w => w.name === 'timeline').y") < 80, (
        "hidden text has room"
    )
    looks = {}
    for theme in ("dark", "light"):
        page.evaluate(THEME, theme)
        page.wait_for_timeout(700)
        box = timeline.root.bounding_box()
        clip = {
            "x": box["x"] - 16,
            "y": box["y"] - 50,
            "width": box["width"] + 32,
            "height": box["height"] + 70,
        }
        picture = folder / f"timeline_{request.node.callspec.id}_{theme}.png"
        looks[theme] = page.screenshot(path=picture, clip=clip)
    page.evaluate(THEME, "dark")
    assert looks["dark"] != looks["light"]


@pytest.mark.newest
@pytest.mark.parametrize("rendering", ["vue"], indirect=True)
def test_new_nodes_of_a_workflow_do_not_overlap(page, rendering):
    """They are as high as their widgets need, and those whose files are missing have a footer."""
    boxes_of = {}
    for file in sorted((ROOT / "workflows").glob("*.json")):
        workflow = json.loads(file.read_text())
        page.evaluate(LOAD, workflow)
        page.wait_for_function(NUM_DRAWN, arg=len(workflow["nodes"]))
        page.wait_for_timeout(500)
        boxes_of[file.stem] = page.evaluate(NODE_BOXES)
    for name, boxes in boxes_of.items():
        for i, (left, top, right, bottom) in enumerate(boxes):
            for other_left, other_top, other_right, other_bottom in boxes[i + 1 :]:
                is_apart = right <= other_left or other_right <= left
                assert is_apart or bottom <= other_top or other_bottom <= top, name
