/** The live panel's pure parts: which run a node shows, what of it, and what goes to the server. */

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import test from "node:test";

import { beginOf } from "../../web/js/live/back.js";
import { Client, Refused } from "../../web/js/live/client.js";
import { displayId, heldBy, modelQuery, nodeAt, openGraph, promptsWidget, setWidget } from "../../web/js/live/graph.js";
import { codecsOf, joined } from "../../web/js/live/growing.js";
import { Player } from "../../web/js/live/player.js";
import { isLive, isOf, Runs, Seen } from "../../web/js/live/runs.js";
import { clock, fate, isShown, isStrange, message, replayed, view } from "../../web/js/live/view.js";

const MODULES = new URL("../../web/js/live/", import.meta.url);
const FIRST = { block: 0, seconds: 0, prompt: "a red circle", policy: null, blend: null, origin: "schedule" };
const LIVE = { block: 7, seconds: 5, prompt: "it turns blue", policy: "blend", blend: 3, origin: "live" };

function snapshot(changes = {}) {
  return {
    ...{ run: "a", node: "3", state: "running", block: 12, num_blocks: null, seconds: 10, fps: 16 },
    ...{ pace: "real time", cues: [{ ...FIRST, ticket: null, latency: null }], pending: null },
    ...{ video: "/longlive/runs/a/video", width: 64, height: 64, num_frames: 160, error: null },
    ...changes,
  };
}

function nodeShown(...snapshots) {
  const runs = new Runs();
  snapshots.forEach((one) => runs.take(one));
  return runs.of("w");
}

test("a node shows its newest run, and every node its own", () => {
  const other = snapshot({ node: "10:3", run: "b" });
  const again = snapshot({ run: "c", block: null, state: "starting" });
  const shown = nodeShown(snapshot({ state: "done" }), other, again);
  assert.deepEqual(shown.map(({ run }) => run).sort(), ["b", "c"]);
});

test("a workflow shows its own runs, and those of which nobody knows the workflow", () => {
  const [ours, theirs] = [snapshot({ workflow: "w" }), snapshot({ run: "b", workflow: "other" })];
  assert.deepEqual(nodeShown(ours, { ...theirs, state: "done" }), [ours]);
  assert.deepEqual(nodeShown(theirs, ours, { ...ours, state: "done" }), [{ ...ours, state: "done" }]);
  assert.deepEqual(nodeShown(theirs, snapshot({ workflow: "w", state: "done" }))[0].state, "done");
  assert.deepEqual(nodeShown(theirs), []);
  const script = snapshot({ run: "c", workflow: null });
  assert.deepEqual(nodeShown(snapshot({ workflow: "w", state: "done" }), theirs, script), [script]);
  assert.deepEqual(nodeShown(ours, { ...script, state: "done" }), [ours]);
  const missed = [{ ...script, run: "d" }, ours, { ...ours, state: "done" }];
  assert.equal(nodeShown(...missed)[0].run, "a", "a run whose end was missed is over when another one lives");
  assert.ok(isOf(snapshot(), "w") && isOf(snapshot(), undefined) && !isOf(theirs, undefined));
});

test("a run that was taken back is shown where it is now; news of before count no longer", () => {
  const before = snapshot({ taken_back: 0 });
  const back = snapshot({ taken_back: 1, block: 4, seconds: 3.5625 });
  assert.deepEqual(nodeShown(before, back), [back]);
  assert.deepEqual(nodeShown(before, back, before), [back]);
});

test("blocks of a run begin where the frames up to them end, also after an earlier video", () => {
  const run = { block: 10, seconds: 8.0625, block_latent_frames: 3 };
  assert.deepEqual([0, 1, 10].map((block) => beginOf(block, run)), [0, 0.5625, 7.3125]);
  assert.equal(beginOf(1, { ...run, seconds: 8.25 }), 0.75);
});

test("what is worth a warning is shown, a line each", () => {
  assert.equal(view(snapshot({ notes: ["2 cues after 0:10 are not played", "kept"] })).notes, "2 cues after 0:10 are not played\nkept");
  assert.equal(view(snapshot()).notes, "");
});

test("what failed before a run began is shown in place of the older run's state", () => {
  const failed = view(null, "width is odd");
  assert.deepEqual([failed.hint, failed.status, failed.error], ["", "failed", "width is odd"]);
  const older = view(snapshot({ state: "done" }), "width is odd");
  assert.deepEqual([older.status, older.error, older.canFreeze], ["failed", "width is odd", true]);
  assert.match(view(snapshot({ state: "failed", error: "no memory" }), "no memory").status, /^failed · block 13/);
});

test("of two runs that have ended a node shows the one with the latest news", () => {
  const first = snapshot({ run: "a", workflow: "w", state: "done" });
  const script = snapshot({ run: "b", workflow: null, state: "done" });
  const again = snapshot({ run: "c", workflow: "w", state: "done" });
  assert.deepEqual(nodeShown(first, script, again), [again]);
  assert.deepEqual(nodeShown(first, again, script), [script]);
});

test("what comes late takes nothing back", () => {
  assert.equal(nodeShown(snapshot(), snapshot({ block: 11 }))[0].block, 12);
  assert.equal(nodeShown(snapshot({ state: "done" }), snapshot({ block: 12 }))[0].state, "done");
  assert.equal(nodeShown(snapshot({ run: "new" }), snapshot({ state: "done" }))[0].run, "new");
  assert.equal(nodeShown(snapshot(), snapshot({ state: "paused" }))[0].state, "paused");
  assert.equal(nodeShown(snapshot(), snapshot({ state: "stopped", block: 11 }))[0].state, "stopped");
});

test("a run lives until it has ended", () => {
  const live = ["starting", "running", "paused", "stopping"];
  for (const state of live) assert.ok(isLive({ state }));
  for (const state of ["done", "stopped", "failed", "interrupted"]) assert.ok(!isLive({ state }));
  assert.ok(!isLive(undefined));
});

test("without a run everything is disabled and a hint says why", () => {
  const idle = view(null);
  assert.match(idle.hint, /Press Run/);
  assert.deepEqual([idle.canSend, idle.canPause, idle.canStop, idle.canFreeze], [false, false, false, false]);
  assert.deepEqual(idle.marks, []);
});

test("every state allows what the server allows", () => {
  const allowed = (state) => {
    const { canSend, canPause, canStop, canFreeze } = view(snapshot({ state }));
    return [canSend, canPause, canStop, canFreeze].map(Number).join("");
  };
  const states = ["starting", "running", "paused", "stopping", "done", "stopped", "failed"];
  assert.deepEqual(states.map(allowed), ["1011", "1111", "1111", "0001", "0001", "0001", "0001"]);
  assert.equal(view(snapshot({ cues: [] })).canFreeze, false);
});

test("the status line tells state, block, seconds, speed and pace", () => {
  assert.equal(view(snapshot()).status, "running · block 13 · 10.0 s · 16 fps · real time");
  const finite = snapshot({ num_blocks: 40, fps: 8.25, pace: "full speed" });
  assert.equal(view(finite).status, "running · block 13 of 40 · 10.0 s · 8.3 fps");
  assert.equal(view(snapshot({ state: "starting", block: null, fps: 0, pace: "full speed" })).status, "starting");
});

test("seconds are shown as people read them", () => {
  assert.deepEqual([0, 5.06, 59.94, 59.96, 62.3, 600].map(clock), [
    ...["0.0 s", "5.1 s", "59.9 s", "1:00.0", "1:02.3", "10:00.0"],
  ]);
});

test("the strip shows cues in order, those of the schedule and live ones apart", () => {
  const cues = [{ ...FIRST, ticket: null, latency: null }, { ...LIVE, ticket: 1, latency: 0.816 }];
  const [first, second] = view(snapshot({ cues })).marks;
  assert.deepEqual([first.start, first.origin, second.origin], [0, "schedule", "live"]);
  assert.ok(first.width < second.width && first.width + second.width === 100);
  assert.equal(first.label, "0.0 s, schedule: a red circle");
  assert.equal(second.label, "5.0 s, live, blend 3 s: it turns blue (0.82 s after it was sent)");
});

test("the newest prompt has the widest place of the strip, however many there are", () => {
  const cues = Array.from({ length: 12 }, (_, index) => ({ ...LIVE, seconds: index / 8, ticket: index, latency: 0.5 }));
  const places = view(snapshot({ cues, seconds: 600 })).marks;
  const newest = places.at(-1);
  assert.ok(newest.width > 35 && Math.abs(newest.start + newest.width - 100) < 1e-9);
  for (const [index, { start, width }] of places.slice(0, -1).entries()) {
    assert.ok(width > 2 && width < newest.width);
    assert.ok(Math.abs(start + width - places[index + 1].start) < 1e-9, "in order and without gaps");
  }
});

test("a sent prompt of unknown words says so while it waits and when it took effect", () => {
  const warnings = ["Mini does not know dragon"];
  const pending = { ticket: 4, prompt: "a dragon", policy: null, blend: null, state: "ready", warnings };
  assert.equal(fate(snapshot({ pending }), 4).text, "Mini does not know dragon; #4 sent");
  assert.match(view(snapshot({ pending })).pending, /^Mini does not know dragon; #4 takes effect/);
  const cues = [{ ...LIVE, ticket: 4, latency: null, warnings }];
  assert.equal(fate(snapshot({ cues }), 4).text, "Mini does not know dragon; #4 took effect at 5.0 s");
});

test("a strip of nothing yet has finite places", () => {
  for (const { start, width } of view(snapshot({ seconds: 0 })).marks) assert.ok(start >= 0 && width <= 100);
});

test("a waiting prompt is shown until it takes effect", () => {
  const pending = { ticket: 4, prompt: "it circles", policy: null, blend: null, state: "encoding" };
  assert.equal(view(snapshot({ pending })).pending, "#4 being read: it circles");
  const ready = { ...pending, state: "ready" };
  assert.equal(view(snapshot({ pending: ready })).pending, "#4 takes effect at the next block: it circles");
  assert.equal(view(snapshot()).pending, "");
});

test("a prompt that cannot be read says why, and nobody waits for it", () => {
  const pending = { ticket: 4, prompt: "b", state: "failed", error: "memory ran out" };
  const sentence = "#4 failed: memory ran out";
  assert.equal(view(snapshot({ pending })).pending, sentence);
  assert.deepEqual(fate(snapshot({ pending }), 4), { kind: "failed", text: sentence, isSettled: true });
});

test("what became of a prompt", () => {
  const pending = { ticket: 2, prompt: "b", policy: null, blend: null, state: "ready" };
  const taken = [{ ...LIVE, ticket: 2, latency: 0.8 }];
  assert.equal(fate(snapshot({ pending }), 2).kind, "waiting");
  assert.equal(fate(snapshot({ pending }), 1).kind, "replaced");
  assert.equal(fate(snapshot({ cues: taken }), 1).kind, "replaced");
  assert.match(fate(snapshot({ cues: taken }), 2).text, /#2 took effect at 5.0 s, first frames 0.80 s after/);
  assert.equal(fate(snapshot({ state: "done" }), 2).kind, "late");
  const unseen = [{ ...LIVE, ticket: 2, latency: null }];
  assert.deepEqual(fate(snapshot({ cues: unseen }), 2), {
    ...{ kind: "taken", text: "#2 took effect at 5.0 s", isSettled: false },
  });
});

test("a prompt names only what was chosen", () => {
  assert.deepEqual(JSON.parse(JSON.stringify(message(" a star\n", "auto", 3))), { prompt: "a star" });
  assert.deepEqual(JSON.parse(JSON.stringify(message("a", "cut", 3))), { prompt: "a", policy: "cut" });
  assert.deepEqual(message("a", "blend", 3), { prompt: "a", policy: "blend", blend: 3, image: undefined });
  assert.deepEqual(JSON.parse(JSON.stringify(message("a", "blend", 3, "b.png"))), { prompt: "a", image: "b.png" });
});

test("freezing asks where a run of an unknown workflow was made from other prompts", () => {
  const steered = snapshot({ cues: [FIRST, LIVE] });
  for (const text of ["a red circle", "0 => a   red\n  circle\n5s b", '{"cues": [{"time": 0, "prompt": "a red circle"}]}']) {
    assert.ok(!isStrange(steered, text), text);
  }
  for (const text of ["a blue star", "", "soon => a red circle"]) {
    assert.ok(isStrange(steered, text), text);
    assert.ok(!isStrange({ ...steered, workflow: "w" }, text), "what is edited since is meant to be replaced");
  }
});

test("a freshly opened graph shows no run of other prompts, and of older ones only what goes on", () => {
  const [text, other] = ["a red circle", "a blue star"];
  const [running, done] = [snapshot({ workflow: "w" }), snapshot({ workflow: "w", state: "done" })];
  assert.ok(isShown(running, text, true) && isShown(running, other, true), "it was edited since");
  assert.ok(isShown(done, text, true) && isShown(done, undefined, true));
  assert.ok(!isShown(done, text, false), "it ended before the page was opened");
  assert.ok(!isShown(done, other, true), "it is of another copy of this workflow");
  const script = snapshot({ workflow: null });
  assert.ok(isShown(script, text, true) && !isShown(script, other, true));
});

test("which runs a page has seen is known after a reload", () => {
  const stored = new Map();
  const storage = { getItem: (key) => stored.get(key) ?? null, setItem: (key, value) => stored.set(key, value) };
  const seen = new Seen(storage);
  for (let number = 0; number < 80; number += 1) seen.add({ run: `${number}` });
  const later = new Seen(storage);
  assert.ok(seen.has({ run: "0" }) && !later.has({ run: "0" }) && later.has({ run: "79" }) && !later.has({ run: "80" }));
});

test("freezing sets the seed, and for good, and the length once that is known", () => {
  const schedule = { text: "0:00 a", seed: 7, settings: { seconds: 49.3125 } };
  assert.deepEqual(replayed(schedule, false), { seed: 7, control_after_generate: "fixed", seconds: 49.3125 });
  assert.deepEqual(replayed(schedule, true), { seed: 7, control_after_generate: "fixed" });
});

function answering(status, answer) {
  const asked = [];
  const client = new Client(async (path, options) => {
    asked.push([options.method ?? "GET", path, options.body]);
    return new Response(JSON.stringify(answer), { status });
  });
  return { client, asked };
}

test("the client calls the routes of the contract", async () => {
  const { client, asked } = answering(200, { runs: [1], ticket: 5 });
  assert.deepEqual(await client.runs(), [1]);
  assert.equal(await client.prompt("a", message("it rests", "keep")), 5);
  await client.command("a", "pause");
  await client.schedule("a");
  assert.deepEqual(asked, [
    ["GET", "/longlive/runs", undefined],
    ["POST", "/longlive/runs/a/prompt", '{"prompt":"it rests","policy":"keep"}'],
    ["POST", "/longlive/runs/a/pause", undefined],
    ["GET", "/longlive/runs/a/schedule", undefined],
  ]);
});

test("what the server refuses is told in its words", async () => {
  const { client } = answering(409, { error: "the run has ended" });
  await assert.rejects(client.command("a", "stop"), new Refused("the run has ended"));
  const bare = new Client(async () => new Response("<html>", { status: 502 }));
  await assert.rejects(bare.runs(), new Refused("the server answered 502"));
});

function graph(nodes) {
  return { nodes, getNodeById: (id) => nodes.find((node) => node.id === id) ?? null };
}

test("nodes are found by display id, in subgraphs too, and nothing where there is none", () => {
  const inner = { id: 3 };
  const root = graph([{ id: 10, subgraph: graph([inner]) }, { id: 3, isOuter: true }]);
  assert.equal(nodeAt(root, "10:3"), inner);
  assert.ok(nodeAt(root, "3").isOuter);
  for (const id of ["4", "3:3", "10:4", "x"]) assert.equal(nodeAt(root, id), undefined);
  assert.equal(nodeAt(undefined, "3"), undefined);
  for (const id of ["10:3", "3"]) assert.equal(displayId(root, nodeAt(root, id)), id);
  assert.equal(displayId(root, { id: 3 }), undefined);
  assert.equal(nodeAt(openGraph({ rootGraph: root, graph: graph([]) }), "10:3"), inner);
  assert.equal(openGraph({ graph: root }), root);
});

test("the connected schedule is found through reroutes and set as a user would", () => {
  const seen = [];
  const widget = { name: "prompts", value: "old", callback: (value) => seen.push(value) };
  const schedule = { widgets: [widget] };
  const reroute = { type: "Reroute", getInputNode: () => schedule };
  const stream = { inputs: [{ name: "model" }, { name: "schedule" }], getInputNode: (slot) => slot && reroute };
  const found = promptsWidget(stream);
  assert.equal(found.widget, widget);
  setWidget(found.node, found.widget, "new");
  assert.deepEqual([widget.value, seen], ["new", ["new"]]);
  const text = { type: "Text" };
  Object.assign(schedule, { inputs: [{ widget: { name: "prompts" }, link: 4 }], getInputNode: () => text });
  assert.deepEqual(promptsWidget(stream), { node: text, widget: undefined }, "the text comes from another node");
  assert.equal(promptsWidget({ inputs: [], getInputNode: () => null }), undefined);
  assert.equal(promptsWidget({ inputs: [{ name: "schedule" }], getInputNode: () => null }), undefined);
});

test("the text of a schedule in a subgraph is that of the node that shows it there, at any depth", () => {
  const nodeIn = (graph, link, origin, extra = {}) => ({
    ...{ graph, widgets: [{ name: "prompts" }], inputs: [{ widget: { name: "prompts" }, link }], getInputNode: () => null },
    ...{ getInputLink: () => ({ origin_id: origin, origin_slot: 0 }), ...extra },
  });
  const root = { nodes: [] };
  const [outer, inner] = [{ rootGraph: root }, { rootGraph: root }];
  const schedule = nodeIn(inner, 4, "-10");
  const middle = nodeIn(outer, 5, -10, { subgraph: inner });
  const host = nodeIn(root, null, null, { subgraph: outer });
  [root.nodes, outer.nodes, inner.nodes] = [[host], [middle], [schedule]];
  assert.equal(heldBy(schedule, "prompts").widget, host.widgets[0]);
  assert.equal(heldBy(schedule, "prompts").node, host);
  const text = {};
  Object.assign(host, { inputs: [{ widget: { name: "prompts" }, link: 6 }], getInputNode: () => text });
  assert.deepEqual(heldBy(schedule, "prompts"), { node: text, widget: undefined });
  root.nodes = [];
  assert.deepEqual(heldBy(schedule, "prompts"), { node: undefined, widget: undefined });
  assert.equal(heldBy({ widgets: [{ name: "prompts", value: 1 }] }, "prompts").widget.value, 1, "no slot for it");
});

test("the model of a stream is found through reroutes, and named as the server asks for it", () => {
  const widgets = [{ name: "checkpoint", value: "sgf framewise.pt" }, { name: "family", value: "auto" }];
  const loader = { comfyClass: "LongLiveLoadModel", widgets };
  const reroute = { type: "Reroute", getInputNode: () => loader };
  const streamOf = (node) => ({ inputs: [{ name: "schedule" }, { name: "model" }], getInputNode: (slot) => slot && node });
  assert.equal(modelQuery(streamOf(reroute)), "checkpoint=sgf+framewise.pt&family=auto");
  loader.comfyClass = "LongLiveUseModel";
  assert.equal(modelQuery(streamOf(loader)), "family=auto");
  const stock = { widgets: [{ name: "unet_name", value: "ar.safetensors" }] };
  const lora = { inputs: [{ name: "model" }], getInputNode: () => ({ type: "Reroute", getInputNode: () => stock }) };
  loader.inputs = [{ name: "model" }];
  loader.getInputNode = () => lora;
  assert.equal(modelQuery(streamOf(loader)), "family=auto&stock=ar.safetensors", "the file of a MODEL, through a LoRA");
  lora.getInputNode = () => null;
  assert.equal(modelQuery(streamOf(loader)), "family=auto");
  loader.inputs = [{ widget: { name: "family" }, link: 4 }];
  assert.equal(modelQuery(streamOf(loader)), "", "it comes from another node");
  assert.equal(modelQuery(streamOf({ comfyClass: "LongLiveLoadMini" })), "");
  assert.equal(modelQuery(streamOf(null)), "");
});

test("a viewer jumps to a block behind the newest frames, of the model's length", () => {
  const buffered = { length: 1, end: () => 10 };
  const video = { buffered, addEventListener() {}, removeAttribute() {}, load() {}, play: async () => {} };
  const player = new Player(video);
  for (const [latentFrames, seconds] of [[undefined, 9.25], [3, 9.25], [1, 9.75]]) {
    player.show({ run: `${latentFrames}`, url: "", isLive: false, isPaced: true, latentFrames });
    player.goLive();
    assert.equal(video.currentTime, seconds);
  }
});

const boxOf = (type, ...parts) => {
  const body = parts.reduce((whole, part) => joined(whole, part), Buffer.from(type));
  return joined(Uint8Array.from([0, 0, (body.length + 4) >> 8, (body.length + 4) & 255]), body);
};

test("the codecs are read from the beginning of an mp4, however it is cut, and whatever its prompts say", () => {
  const video = boxOf("trak", Uint8Array.from([0, 0, 0, 40, ...Buffer.from("avcC"), 1, 0x64, 0, 0x0a, 255]));
  const sound = boxOf("trak", Buffer.from("mp4a"));
  const words = boxOf("udta", Buffer.from("a prompt of mp4a and avcC"));
  const begins = boxOf("ftyp", Buffer.from("isom"));
  for (const [tracks, codecs] of [[video, "avc1.64000a"], [joined(video, sound), "avc1.64000a, mp4a.40.2"]]) {
    const header = joined(begins, boxOf("moov", tracks, words));
    const whole = joined(header, boxOf("moof"));
    for (let cut = 0; cut <= whole.length; cut++) {
      assert.equal(codecsOf(whole.subarray(0, cut)), cut < header.length ? "" : codecs, cut);
    }
  }
});

test("the host loads every module by itself: none does anything then, not even without a page", async () => {
  const before = Object.keys(globalThis);
  for (const name of readdirSync(MODULES)) await import(new URL(name, MODULES));
  await import("../../web/js/stage/page.js");
  assert.deepEqual(Object.keys(globalThis), before);
});
