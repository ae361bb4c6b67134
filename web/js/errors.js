// What stopped a run, on the node that it came from, until the next run: the page itself shows it only
// behind "View details".

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { nodeAt, openGraph } from "./live/graph.js";

const TEXT = "progress_text"; // the page's own event: the page writes it on the node, as HTML,
const WIDGET = "$$node-text-preview"; // in this widget
const places = new Map(); // type of node -> how it shows a sentence
let workflow, failure;

/** Nodes of a type show by `show(node, sentence)` what failed there; an empty sentence takes it off. */
export function showFailures(type, show) {
  places.set(type, show);
}

function write(node, sentence, nodeId) {
  const text = sentence.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  api.dispatchEvent(new CustomEvent(TEXT, { detail: { nodeId, text } }));
  const shown = node.widgets?.find((widget) => widget.name === WIDGET);
  if (shown && !sentence) shown.value = ""; // the page ignores an empty text
}

function show({ id, type, workflow: of }, sentence) {
  const graph = openGraph(app);
  const node = graph?.id === of ? nodeAt(graph, id) : undefined;
  if (node?.comfyClass === type) (places.get(type) ?? write)(node, sentence, id);
}

api.addEventListener("execution_start", () => {
  if (failure) show(failure, "");
  failure = null;
  workflow = openGraph(app)?.id;
});

api.addEventListener("execution_error", ({ detail }) => {
  const { node_id: id, node_type: type, exception_message: message } = detail;
  if (!type?.startsWith("LongLive")) return;
  const failed = (failure = { id, type, workflow });
  setTimeout(() => show(failed, message.trim())); // once the page is done with it
});
