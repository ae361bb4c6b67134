"""The page in the language of the browser, which ComfyUI takes unless the user has set another."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOW = json.loads((ROOT / "workflows" / "1 Start here - four prompts.json").read_text("utf-8"))
READY = "!!(window.app?.vueAppReady && LiteGraph.registered_node_types['LongLiveStream'])"
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
WAIT_MS = 120_000
TITLE = "() => LiteGraph.registered_node_types['LongLiveStream'].title"
SECONDS = """() => {
  const { widgets } = app.graph.nodes.find(node => node.type === 'LongLiveStream');
  return widgets.find(widget => widget.name === 'seconds').label;
}"""
ADD = "Add a cue at the end (Insert)"


@contextmanager
def page_in(locale: str, page, server):
    """Another page of the same server, in a browser of that language."""
    context = page.context.browser.new_context(locale=locale, viewport={"width": 1500, "height": 1100})
    try:
        other = context.new_page()
        other.set_default_timeout(WAIT_MS)
        other.goto(f"http://{server.address}")
        other.wait_for_function(READY, timeout=120_000)
        other.evaluate(LOAD, WORKFLOW)
        yield other
    finally:
        context.close()


def check_texts(locale: str, page, server) -> None:
    """Those of nodes, timeline and panel."""
    folder = ROOT / "locales" / locale[:2]
    nodes = json.loads((folder / "nodeDefs.json").read_text("utf-8"))["LongLiveStream"]
    texts = json.loads((folder / "main.json").read_text("utf-8"))["longlive"]
    with page_in(locale, page, server) as other:
        assert other.evaluate(TITLE) == nodes["display_name"]
        assert other.evaluate(SECONDS) == nodes["inputs"]["seconds"]["name"]
        other.locator(f'[title="{texts[ADD]}"]').first.wait_for(state="attached", timeout=20_000)
        assert other.locator(f'[aria-label="{texts["LongLive: live"]}"]').count() == 1


def test_nodes_timeline_and_panel_are_in_chinese(page, server):
    check_texts("zh-CN", page, server)


@pytest.mark.newest
def test_nodes_timeline_and_panel_are_in_japanese(page, server):
    check_texts("ja-JP", page, server)
