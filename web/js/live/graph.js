/** Nodes of the page's graph, found by what the server calls them. No DOM. */

const REROUTE = "Reroute";
const SUBGRAPH_INPUT = -10; // the host's id of what stands for the inputs of a subgraph, inside it

/** The graph of the workflow that is open. */
export function openGraph(app) {
  return app.rootGraph ?? app.graph;
}

/**
 * The node that runs under a display id: "3", or "10:3" for node 3 inside the subgraph node 10.
 * undefined if the graph has none.
 */
export function nodeAt(graph, id) {
  const [outer, ...inner] = String(id).split(":");
  const node = graph?.getNodeById(Number(outer)) ?? graph?.getNodeById(outer) ?? undefined;
  return inner.length ? nodeAt(node?.subgraph, inner.join(":")) : node;
}

/** The display id of a node, the other way round of nodeAt; undefined if the graph has it nowhere. */
export function displayId(graph, node) {
  if (graph?.getNodeById(node.id) === node) return String(node.id);
  const groups = (graph?.nodes ?? []).filter(({ subgraph }) => subgraph);
  const inner = groups.map((group) => [group.id, displayId(group.subgraph, node)]).find(([, id]) => id !== undefined);
  return inner?.join(":");
}

/** A widget of a node by name, or undefined. */
export function widgetOf(node, name) {
  return node?.widgets?.find((widget) => widget.name === name);
}

/**
 * The widget that holds the text of the schedule that is connected to a stream, reroutes passed: as heldBy has it;
 * undefined without a schedule.
 */
export function promptsWidget(stream) {
  const node = connected(stream, "schedule");
  return node && heldBy(node, "prompts");
}

/**
 * Where the value of a widget is held: { node, widget } of the node itself, or of the subgraph's node that shows it
 * in its place; { node } alone where another node makes the value (none, if that is not known).
 */
export function heldBy(node, name) {
  const slot = node.inputs?.findIndex(({ widget }) => widget?.name === name) ?? -1;
  return slot < 0 ? { node, widget: widgetOf(node, name) } : heldAt(node, slot);
}

function heldAt(node, slot) {
  const { link, widget } = node.inputs[slot];
  if (link == null) return { node, widget: widget && widgetOf(node, widget.name) };
  const came = node.getInputLink?.(slot);
  if (Number(came?.origin_id) !== SUBGRAPH_INPUT) return { node: from(node, slot), widget: undefined };
  const shown = nodesWithin(node.graph.rootGraph).find(({ subgraph }) => subgraph === node.graph);
  return shown ? heldAt(shown, came.origin_slot) : { node: undefined, widget: undefined };
}

function nodesWithin(graph) {
  return graph.nodes.flatMap((node) => [node, ...(node.subgraph ? nodesWithin(node.subgraph) : [])]);
}

const NAMING = { LongLiveLoadModel: ["checkpoint", "family"], LongLiveUseModel: ["family"] };
const MINI = "LongLiveLoadMini";
const STOCK_FILE = "unet_name"; // the widget of the stock loader of a MODEL

/**
 * What names the model of a stream, as the query of the server's route about its blocks, reroutes passed; "" where
 * that is not known here, or is LongLive Mini. Of a MODEL it is the file of the stock loader, through LoRAs.
 */
export function modelQuery(stream) {
  let node = modelOf(stream);
  const names = NAMING[node?.comfyClass] ?? [];
  if (names.some((name) => isLinked(node, name))) return "";
  const values = names.map((name) => [name, widgetOf(node, name)?.value ?? ""]);
  while (node && names.length === 1 && !widgetOf(node, STOCK_FILE)) node = modelOf(node);
  if (node && names.length === 1) values.push(["stock", widgetOf(node, STOCK_FILE).value]);
  return new URLSearchParams(values).toString();
}

/** Where the model of a node comes from. */
function modelOf(node) {
  return connected(node, "model");
}

/** What cues that name no change do in a stream: what its Frame Sink says, or its model learned; else undefined. */
export function onSwitch(stream) {
  const chosen = widgetOf(connected(stream, "window"), "on_switch")?.value ?? "auto";
  if (chosen !== "auto") return chosen;
  return modelOf(stream)?.comfyClass === MINI ? "recache" : undefined;
}

function connected(node, name) {
  return from(node, node.inputs?.findIndex((input) => input.name === name) ?? -1);
}

/** Whether the value of a widget comes from another node. */
export function isLinked(node, name) {
  return node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false;
}

/** The file that Load Audio has for the sound of a stream, reroutes passed; "" where another node makes it. */
export function soundFile(stream) {
  const node = from(stream, stream.inputs?.findIndex((input) => input.name === "audio") ?? -1);
  return node?.type === "LoadAudio" && !isLinked(node, "audio") ? (widgetOf(node, "audio")?.value ?? "") : "";
}

/** The node that an input comes from, reroutes passed. */
function from(node, slot) {
  let source = origin(node, slot);
  while (source?.type === REROUTE) source = origin(source, 0);
  return source;
}

function origin(node, slot) {
  return slot < 0 ? undefined : (node.getInputNode(slot) ?? undefined);
}

/** Give a widget a value as a user would. */
export function setWidget(node, widget, value) {
  widget.value = value;
  widget.callback?.(value, undefined, node);
  node.setDirtyCanvas?.(true, true);
}

/** Let the page note a change of a node that no widget has: it can be undone there, and the tab is marked. */
export function noteChange(app) {
  app.canvas?.emitBeforeChange?.();
  app.canvas?.emitAfterChange?.();
}
