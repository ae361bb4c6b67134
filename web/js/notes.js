// What our nodes say in a run stays on them: pages from 1.58 on take it off when the run ends, and with it the
// warnings of a schedule and of a loader. A node that has nothing more to say shows nothing: pages ignore that.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { nodeAt, openGraph, widgetOf } from "./live/graph.js";

const TEXT = "progress_text"; // the page's own event: the page writes it on the node
const WIDGET = "$$node-text-preview"; // in this widget
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const texts = new Map(); // node -> { nodeId, text }

api.addEventListener(TEXT, ({ detail: { nodeId, text } }) => {
  const node = nodeAt(openGraph(app), nodeId);
  if (node?.comfyClass?.startsWith("LongLive")) texts.set(node, { nodeId, text });
});

api.addEventListener("executed", ({ detail: { display_node: id, node: inner, output } }) => {
  const node = output?.text?.[0] === "" ? nodeAt(openGraph(app), id ?? inner) : undefined;
  const shown = node?.comfyClass?.startsWith("LongLive") && widgetOf(node, WIDGET);
  if (shown) shown.value = "";
  texts.delete(node);
});

function writeAgain() {
  for (const [node, detail] of [...texts]) {
    const isOpen = nodeAt(openGraph(app), detail.nodeId) === node;
    if (isOpen) api.dispatchEvent(new CustomEvent(TEXT, { detail }));
    else texts.delete(node);
  }
}

for (const end of ENDS) api.addEventListener(end, () => setTimeout(writeAgain)); // once the page is done with it
