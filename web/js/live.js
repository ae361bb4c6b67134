/** The live panel of LongLiveStream: finds its runs, through the host's page and the server's events. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { showOwn } from "./drawn.js";
import { showFailures } from "./errors.js";
import { BACK_STYLE } from "./live/back.js";
import { STYLE as CARDS_STYLE } from "./live/cards.js";
import { Client, RUN_EVENT } from "./live/client.js";
import { displayId, nodeAt, noteChange, openGraph, promptsWidget, setWidget, widgetOf } from "./live/graph.js";
import { Panel } from "./live/panel.js";
import { Runs, Seen, isLive, isOf } from "./live/runs.js";
import { STAGE_EVENT, STAGE_STYLE } from "./live/stage.js";
import { STYLE } from "./live/style.js";
import { isShown, isStrange, replayed } from "./live/view.js";
import { loadTexts, t } from "./texts.js";

const NODE = "LongLiveStream";
const CARDS = "Prompt cards"; // a property of the node: in the workflow, its copies and the video's metadata
const SIZE = [520, 800]; // of a new node
const STILL = "$$canvas-image-preview";
const REVOKE_MS = 60_000; // until the browser has surely taken a download
const panels = new WeakMap(); // node -> Panel
const runs = new Runs();
let seenRuns;
let staged; // the Panel of the node that is on the stage
const client = new Client((path, options) => api.fetchApi(path, options));

/** Show every node of the page what is known about its run. */
function show() {
  const graph = openGraph(app);
  for (const snapshot of runs.of(graph?.id)) {
    const node = nodeAt(graph, snapshot.node);
    const panel = node && panels.get(node);
    if (!panel || !(panel.run === snapshot.run || isShown(snapshot, textOf(node), seen().has(snapshot)))) continue;
    panel.take(snapshot);
  }
}

/** The schedule text of a stream; undefined if it is not known here. */
function textOf(node) {
  return promptsWidget(node)?.widget?.value;
}

/** The runs that this tab of the browser has seen, before a reload too. */
function seen() {
  return (seenRuns ??= new Seen(sessionStorage));
}

/** The server's news of a run. */
function takeNews(snapshot) {
  seen().add(snapshot);
  if (runs.take(snapshot)) show();
}

/** Hide the host's still picture of the newest block (classic nodes), before it makes the node larger. */
function hideStill(node) {
  const { addCustomWidget } = node;
  node.addCustomWidget = function (widget) {
    if (widget.name === STILL) widget.hidden = true;
    return addCustomWidget.call(this, widget);
  };
}

/** Ask the server: after a reload, in a second tab, after a lost connection. */
async function refresh() {
  try {
    const snapshots = await client.runs();
    snapshots.filter(isLive).forEach((snapshot) => seen().add(snapshot));
    snapshots.reverse().forEach((snapshot) => runs.take(snapshot)); // they come newest first
    show();
  } catch (error) {
    console.warn(`LongLive: the runs of the server are not known: ${error.message}`);
  }
}

/** Show on the node whose runs are on the stage who is connected there, and on no other. */
async function showDoor() {
  const graph = openGraph(app);
  const state = await client.door().catch(() => ({ is_open: false })); // the server is away
  const node = state.is_open && isOf(state, graph?.id) ? nodeAt(graph, state.node) : undefined;
  const panel = node && panels.get(node);
  if (staged !== panel) staged?.stage.take({ is_open: false });
  staged = panel;
  panel?.stage.take(state);
}

/** Whose runs the stage shows: the node by its display id, and the workflow. */
function placeOf(node) {
  return { node: displayId(openGraph(app), node), workflow: openGraph(app)?.id ?? null };
}

/** Open the page of the stage on this machine. */
function showStage(node) {
  const place = Object.entries(placeOf(node)).filter(([, value]) => value !== null);
  open(api.apiURL(`/longlive/stage?${new URLSearchParams(place)}`), "_blank", "noopener");
}

function replaceQuestion() {
  return t("This run was made from other prompts than those of the schedule here. Replace these?");
}

/** Put what was played where the next run reads it. -> what was done, in a sentence */
async function freeze(node, snapshot) {
  const prompts = promptsWidget(node);
  if (prompts?.widget && isStrange(snapshot, prompts.widget.value) && !confirm(replaceQuestion())) {
    return t("The schedule was left as it is.");
  }
  const schedule = await client.schedule(snapshot.run);
  if (!prompts?.widget) await copied(schedule.text);
  for (const [name, value] of Object.entries(replayed(schedule, isLive(snapshot)))) {
    const widget = widgetOf(node, name);
    if (widget) setWidget(node, widget, value);
  }
  if (prompts?.widget) {
    setWidget(prompts.node, prompts.widget, schedule.text);
    return t("What was played is now the schedule, and its seed is set: Run makes the same again.");
  }
  return t("No Prompt Schedule is to be written here: what was played is in the clipboard, and its seed is set.");
}

/** Put text into the clipboard, which pages have on https and on localhost only. */
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  throw new Error("this page may not write to the clipboard; use: longlive live --freeze played.txt");
}

/** Keep the prompt cards of a node; without any, nothing. */
function keepCards(node, cards) {
  if (cards.length) node.properties[CARDS] = cards;
  else delete node.properties[CARDS];
  noteChange(app);
}

/** Have the browser download a clip of a run. -> what was done, in a sentence */
async function share({ run }, format) {
  const clip = await client.clip(run, format);
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(clip), download: `longlive_${run}.${format}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), REVOKE_MS);
  return t("{file} was downloaded ({size} MB).", { file: link.download, size: (clip.size / 1e6).toFixed(1) });
}

/** Makes a node as high as its panel needs, and no higher than it was once the panel needs less. */
function grower(node) {
  let grown = 0;
  return () => {
    const height = node.size[1] - grown;
    grown = Math.max(0, node.computeSize()[1] - height);
    node.setSize([node.size[0], height + grown]);
  };
}

/** The panel of a node, as its last widget: neither saved with the workflow nor sent with the prompt. */
function addPanel(node) {
  const panel = new Panel({
    prompt: (run, message) => client.prompt(run, message),
    upload: (file) => client.upload(file),
    back: (run, body) => client.back(run, body),
    command: (run, name) => client.command(run, name),
    freeze: (snapshot) => freeze(node, snapshot),
    setDoor: (body) => client.setDoor({ ...placeOf(node), ...body }),
    showStage: () => showStage(node),
    share,
    keepCards: (cards) => keepCards(node, cards),
    videoUrl: (snapshot) => api.apiURL(snapshot.video),
    resized: grower(node),
  });
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => panel.height };
  options.hideInPanel = true; // the side panel would take it out of the node, at a width of its own
  node.addDOMWidget("live", "longlive.live", panel.element, options).serialize = false;
  node.setSize(SIZE);
  panels.set(node, panel);
  const { onConfigure, onRemoved } = node;
  node.onConfigure = function (...args) {
    panel.cards.show(node.properties[CARDS]);
    showOwn(app, node, panel.element);
    return onConfigure?.apply(this, args);
  };
  node.onRemoved = function (...args) {
    panel.close();
    return onRemoved?.apply(this, args);
  };
}

/**
 * Keep the default of every widget that a saved graph gives no value: ComfyUI 0.3.64 saves an empty place where
 * the panel was, and an input added since reads it.
 */
function keepDefaults(node) {
  const defaults = node.widgets.map((widget) => [widget, widget.value]);
  const { onConfigure } = node;
  node.onConfigure = function (...args) {
    for (const [widget, value] of defaults) widget.value ??= value;
    return onConfigure?.apply(this, args);
  };
}

api.addEventListener(RUN_EVENT, ({ detail }) => takeNews(detail));
api.addEventListener(STAGE_EVENT, showDoor);
showFailures(NODE, (node, sentence) => panels.get(node)?.fail(sentence));

app.registerExtension({
  name: "LongLive.Live",
  init: () => loadTexts(app, api), // before any node is made, those of timeline.js too
  setup() {
    const textContent = STYLE + CARDS_STYLE + STAGE_STYLE + BACK_STYLE;
    document.head.append(Object.assign(document.createElement("style"), { textContent }));
    api.addEventListener("reconnected", refresh);
    return refresh();
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    keepDefaults(node);
    hideStill(node);
    addPanel(node);
  },
  afterConfigureGraph() {
    show();
    return showDoor();
  },
});
