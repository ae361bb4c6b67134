// The timeline on LongLive: Prompt Schedule. The node's `prompts` text stays its only value: the timeline
// shows that text and writes it, so a workflow looks the same with and without this page.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { showOwn } from "./drawn.js";
import { showFailures } from "./errors.js";
import { Client, RUN_EVENT } from "./live/client.js";
import { heldBy, modelQuery, nodeAt, noteChange, onSwitch, openGraph } from "./live/graph.js";
import { setWidget, soundFile, widgetOf } from "./live/graph.js";
import { isLive, isOf } from "./live/runs.js";
import { t } from "./texts.js";
import { LATENT_FRAMES } from "./timeline/blocks.js";
import { TimelineView } from "./timeline/view.js";

const NODE = "LongLivePromptSchedule";
const STREAM = "LongLiveStream";
const BEATS = "Beats"; // a property of the node: so others see them who have no librosa
const TEXT_SHOWN = "Show schedule text"; // a property of the node
const MIN_HEIGHT = 250;
const WIDTH = 480; // of a new node: its tools are one row
const TEXT_HEIGHT = 130;
const ROW_HEIGHT = 20; // of the folded text
const WATCH_MILLISECONDS = 500;
const REST_MILLISECONDS = 400;

const views = new Map(); // node -> its timeline
const lengths = new WeakMap(); // stream -> seconds of its last run
const client = new Client((path, options) => api.fetchApi(path, options));

/** The nodes that the schedule goes into. */
function streamsOf(node) {
  const links = node.outputs?.[0]?.links ?? [];
  const targets = links.map((id) => node.graph?.getNodeById(node.graph.links[id]?.target_id));
  return targets.filter((target) => target?.comfyClass === STREAM);
}

/** How long a stream's video is: where another node says so, as long as that of the last run. */
function lengthOf(stream) {
  const { widget } = heldBy(stream, "seconds");
  return widget ? Number(widget.value) || 0 : (lengths.get(stream) ?? 0);
}

function endSecondsOf(node) {
  return Math.max(0, ...streamsOf(node).map(lengthOf));
}

/** What cues that name no change do, as far as the streams' nodes say it; undefined where they differ. */
function onSwitchOf(node) {
  const known = new Set(streamsOf(node).map(onSwitch));
  return known.size === 1 ? [...known][0] : undefined;
}

/** Latent frames in a block of a model, if it is known: see modelQuery. */
async function latentFramesOf(query) {
  if (!query) return LATENT_FRAMES;
  try {
    return await client.latentFrames(query);
  } catch (error) {
    console.warn(`LongLive: the blocks of ${query} are not known: ${error.message}`);
    return LATENT_FRAMES;
  }
}

/** Let a timeline have the blocks of its model; of several models the longest, which all of them have edges of. */
function followModel(node, view) {
  let asked = "";
  return async () => {
    const queries = streamsOf(node).map(modelQuery);
    const now = queries.join(" ");
    if (now === asked) return;
    asked = now;
    const known = await Promise.all(queries.map(latentFramesOf));
    if (now === asked) view.latentFrames = known.length ? Math.max(...known) : LATENT_FRAMES;
  };
}

/** Set the text. The host notes the change once edits rest: it can be undone there too, and the tab is marked. */
function writerOf(node, prompts) {
  let timer = null;
  return (text) => {
    const held = heldBy(node, "prompts");
    if (held.widget === prompts) prompts.value = text;
    else setWidget(held.node, held.widget, text);
    clearTimeout(timer);
    timer = setTimeout(() => noteChange(app), REST_MILLISECONDS);
  };
}

function showText(node, isShown) {
  const change = Number(isShown) - Number(node.properties[TEXT_SHOWN] === true);
  if (change) node.setSize([node.size[0], node.size[1] + change * TEXT_HEIGHT]);
  node.properties[TEXT_SHOWN] = isShown;
  node.setDirtyCanvas?.(true, true);
}

/**
 * Fold the text to a row of its name on the classic node (style.js does so on the new nodes). A hidden widget would be
 * hidden from subgraphs, side panel and links as well. Pages before 1.49 ask it for its copies on subgraph nodes too.
 */
function foldText(node, prompts, isFolded) {
  const { computeLayoutSize, isVisible } = prompts;
  const row = { minHeight: ROW_HEIGHT, maxHeight: ROW_HEIGHT, minWidth: 0 };
  const isRow = () => isFolded() && app.canvas.graph === node.graph;
  prompts.computeLayoutSize = (on) => (isRow() && on === node ? row : computeLayoutSize.call(prompts, on));
  prompts.isVisible = () => !isRow() && isVisible.call(prompts);
  after(node, "onDrawForeground", (pen, canvas) => {
    if (isFolded() && !node.flags.collapsed && !canvas?.low_quality) drawName(pen, prompts);
  });
}

function drawName(pen, { label, name, y }) {
  pen.save();
  const font = `${LiteGraph.NODE_SUBTEXT_SIZE}px ${LiteGraph.NODE_FONT}`;
  Object.assign(pen, { font, textAlign: "left", textBaseline: "middle", fillStyle: LiteGraph.NODE_TEXT_COLOR });
  pen.fillText(label ?? name, ROW_HEIGHT, y + ROW_HEIGHT / 2);
  pen.restore();
}

/** Call `then` after every call of a method that others may have set already. */
function after(target, name, then) {
  const before = target[name];
  target[name] = function (...details) {
    const result = before?.apply(this, details);
    then(...details);
    return result;
  };
}

/** Show the text where it is held, in a subgraph too; of another node the one that ran last. */
function followText(node, view) {
  let place;
  return () => {
    const { node: holder, widget } = heldBy(node, "prompts");
    const now = `${holder?.graph?.id} ${holder?.id} ${widget?.name} ${widget ? "" : holder?.title}`;
    if (now !== place && widget) view.reset(widget.value);
    else if (now !== place) view.showSource(holder?.title ?? t("another node"));
    else if (widget) view.show(widget.value);
    place = now;
  };
}

/** What the host tells nobody: a stream's length and model, and where the text comes from. */
function watch(node, view) {
  let known, timer;
  const [followsModel, followsText] = [followModel(node, view), followText(node, view)];
  const look = () => {
    followsModel();
    followsText();
    const now = `${endSecondsOf(node)} ${onSwitchOf(node)}`;
    if (now !== known) view.draw();
    known = now;
  };
  // Not before: a node that is only made to be copied is never added, and so never removed.
  after(node, "onAdded", () => {
    clearInterval(timer);
    timer = setInterval(look, WATCH_MILLISECONDS);
    views.set(node, view);
    view.attach();
  });
  after(node, "onRemoved", () => {
    clearInterval(timer);
    views.delete(node);
    view.remove();
  });
}

function beatsOf(node) {
  return {
    files: () => client.sounds(),
    times: (file) => client.beats(file),
    connected: () => streamsOf(node).map(soundFile).find(Boolean) ?? "",
    save: (beats) => {
      node.properties[BEATS] = beats;
      noteChange(app);
    },
  };
}

function addTimeline(node) {
  const prompts = widgetOf(node, "prompts");
  const view = new TimelineView({
    onEdit: writerOf(node, prompts),
    endSeconds: () => endSecondsOf(node),
    onSwitch: () => onSwitchOf(node),
    onToggleText: (isShown) => showText(node, isShown),
    beats: beatsOf(node),
    upload: (file) => client.upload(file),
  });
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT, getValue: () => "" };
  options.hideInPanel = true; // the side panel would take it out of the node, at a width of its own
  // After the text: values of a saved node are read by their number among its widgets.
  const widget = node.addDOMWidget("timeline", "longlive_timeline", view.element, options);
  widget.serialize = false;
  foldText(node, prompts, () => !view.isTextShown);
  node.setSize([WIDTH, Math.max(node.size[1], node.computeSize()[1])]);
  after(prompts, "callback", () => heldBy(node, "prompts").widget === prompts && view.show(prompts.value));
  after(node, "onConfigure", () => {
    showOwn(app, node, view.element);
    view.reset(prompts.value);
    view.beats.restore(node.properties[BEATS]);
    view.setTextShown(node.properties[TEXT_SHOWN] === true || view.error !== null);
  });
  view.reset(prompts.value);
  view.setTextShown(false);
  watch(node, view);
}

/** A run's news (the server's RUN_EVENT), on the timelines of its schedule. */
function showRun(run) {
  const graph = openGraph(app);
  if (!isOf(run, graph?.id)) return;
  const stream = nodeAt(graph, run.node);
  if (stream) lengths.set(stream, run.length);
  for (const [node, view] of views) {
    if (!streamsOf(node).includes(stream)) continue;
    view.showRunText(run.schedule);
    view.showRun({ ...run, isLive: isLive(run) });
  }
}

api.addEventListener(RUN_EVENT, ({ detail }) => showRun(detail));
showFailures(NODE, (node, sentence) => views.get(node)?.fail(sentence));

app.registerExtension({
  name: "LongLive.Timeline",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addTimeline(node);
  },
});
