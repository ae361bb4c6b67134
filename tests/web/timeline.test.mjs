// The timeline's model: what it reads, writes, edits and takes back.

import assert from "node:assert/strict";
import { test } from "node:test";
import { isCommand, onKey } from "../../web/js/timeline/keys.js";
import * as model from "../../web/js/timeline/model.js";
import { checkedBeats, drawnBeats, snapped } from "../../web/js/timeline/beats.js";

const THREE = "# a film\n0:00 a red circle\n\n3s => it turns blue\n6s => blend 3s: it rests\n   over navy\n# the end\n";
const EDGES = [0, 0.5625, 1.3125, 2.0625, 2.8125, 3.5625, 4.3125, 5.0625];

/** What a cue says, without how it is written. */
function said(schedule) {
  const cues = schedule.cues.map(({ lead, source, ...cue }) => cue);
  return { cues, extra: schedule.extra, always: schedule.always };
}

const prompts = (schedule) => schedule.cues.map((cue) => cue.prompt);
const refused = (act, words) => assert.throws(act, (error) => error.name === "ScheduleError" && words.test(error.message));

test("blocks begin at 0, after 9 frames, then every 12", () => {
  EDGES.forEach((seconds, block) => {
    assert.equal(model.blockSeconds(block), seconds);
    assert.equal(model.blockAt(seconds), block);
    if (block) assert.equal(model.blockAt(seconds - 1 / 16), block);
    assert.equal(model.blockAt(seconds + 1 / 16), block + 1);
  });
});

test("blocks of a frame-wise model begin at 0, after one frame, then every four", () => {
  [0, 0.0625, 0.3125, 0.5625, 0.8125].forEach((seconds, block) => {
    assert.equal(model.blockSeconds(block, 1), seconds);
    assert.equal(model.blockAt(seconds, 1), block);
    assert.equal(model.blockAt(seconds + 1 / 16, 1), block + 1);
  });
  assert.deepEqual([model.blockLength(1), model.blockLength(3), model.blockLength()], [0.25, 0.75, 0.75]);
});

test("every edit of a schedule for a frame-wise model is made in its blocks, next to one of 3-frame blocks", () => {
  const of = (latentFrames) => ({ ...model.parse("0 => a\n2s => b\n5s => c\n"), latentFrames });
  const edits = {
    nudge: (schedule) => model.nudgeEdge(schedule, 1, 1),
    move: (schedule) => model.moveEdge(schedule, 1, 3.1),
    insert: (schedule) => model.insertCue(schedule, 3.1)[0],
    split: (schedule) => model.splitCue(schedule, 1)[0],
    add: (schedule) => model.addCue(schedule)[0],
    reorder: (schedule) => model.reorderCue(schedule, 0, 1),
    duplicate: (schedule) => model.duplicateCue(schedule, 0),
  };
  const timesOf = (latentFrames) => {
    const made = Object.entries(edits).map(([name, edit]) => [name, edit(of(latentFrames))]);
    for (const [, schedule] of made) assert.equal(schedule.latentFrames, latentFrames);
    return Object.fromEntries(made.map(([name, { cues }]) => [name, cues.slice(1).map((cue) => cue.seconds)]));
  };
  assert.deepEqual(model.blocksOf(of(1)), [0, 9, 21]);
  assert.deepEqual(model.blocksOf(of(3)), [0, 3, 7]);
  assert.deepEqual(timesOf(1), {
    nudge: [2.3125, 5],
    move: [3.0625, 5],
    insert: [2, 3.0625, 5],
    split: [2, 3.5625, 5],
    add: [2, 5, 10.3125],
    reorder: [2.8125, 5],
    duplicate: [2.0625, 4.3125, 7.3125],
  });
  assert.deepEqual(timesOf(3), {
    nudge: [2.8125, 5],
    move: [2.8125, 5],
    insert: [2, 2.8125, 5],
    split: [2, 3.5625, 5],
    add: [2, 5, 10.3125],
    reorder: [2.8125, 5],
    duplicate: [2.0625, 4.3125, 7.3125],
  });
});

test("what nobody edits stays as it was written, comments too", () => {
  const schedule = model.parse(THREE);
  assert.equal(model.serialise(schedule), THREE);
  const edited = model.serialise(model.setPrompt(schedule, 1, "it turns   green"));
  assert.equal(edited, THREE.replace("3s => it turns blue", "3s => it turns green"));
});

test("comments stay when their cue is edited: of an untimed prompt, and between the lines of a cue", () => {
  const written = (text, index = 0) => model.serialise(model.setPrompt(model.parse(text), index, "new"));
  assert.equal(written("# my notes\n\na cat walks"), "# my notes\n\n0s => new\n");
  assert.equal(written("  a cat\n# inner\n\n  walks\n# end"), "# inner\n0s => new\n# end\n");
  const inner = "0 => a\n# before\n3s => it\n   turns\n\n  # inner\n   blue\n# end\n";
  assert.equal(written(inner, 1), "0 => a\n# before\n  # inner\n3s => new\n# end\n");
  const twice = model.setPolicy(model.setPrompt(model.parse(inner), 1, "new"), 1, "cut");
  assert.equal(model.serialise(twice), "0 => a\n# before\n  # inner\n3s => cut: new\n# end\n");
  const text = model.serialise(model.duplicateCue(model.parse(inner), 1));
  assert.equal(text.match(/# inner/g).length, 1, "a copy has no comments");
  assert.equal(model.serialise(model.parse("# a\na cat\n")), "# a\n0s => a cat\n");
});

test("what is in every prompt is edited in its line, and comments stay", () => {
  const text = "# mine\nalways: film\n# inner\n  still\n\n# cues\n0 a\n  b\n5s => c\n";
  const schedule = model.parse(text);
  assert.equal(schedule.always, "film still");
  assert.equal(model.serialise(schedule), text);
  const edited = model.setAlways(schedule, " rain, \n night ");
  assert.equal(model.serialise(edited), "# mine\n# inner\nalways: rain, night\n\n# cues\n0 a\n  b\n5s => c\n");
  const without = model.serialise(model.setAlways(edited, " "));
  assert.equal(without, "# mine\n# inner\n\n# cues\n0 a\n  b\n5s => c\n");
  assert.equal(model.serialise(model.setAlways(model.parse("a cat"), "film")), "always: film\n0s => a cat\n");
  const json = model.setAlways(model.parse('{"zoom": 2, "cues": [{"time": 0, "prompt": "a"}]}'), "film");
  assert.deepEqual(JSON.parse(model.serialise(json)).always, "film");
  refused(() => model.setAlways(schedule, "\0"), /NUL/);
  assert.equal(model.insertCue(edited, 9)[0].always, "rain, night");
});

test("labels leave out what all prompts begin with, in whole words", () => {
  const shared = (...all) => model.sharedStart({ cues: all.map((prompt) => ({ prompt })) });
  assert.equal(shared("Film still, night. A fox runs", "Film still, night. A fog falls", "Film still, night. A bear"), 21);
  assert.equal(shared("夜の街、赤いコートの若い女性が立つ、歩く", "夜の街、赤いコートの若い女性が立つ、走る"), 18);
  assert.equal(shared("it turns blue", "it turns red"), 0);
  assert.equal(shared("Film still, night", "Film still, night. A bear"), 0);
  assert.equal(shared("a red circle over navy", "a red circle over navy"), 0);
  assert.equal(shared("a red circle over navy"), 0);
});

test("unknown fields survive edits, and only they need JSON", () => {
  const text = '{"version": 1, "zoom": 2, "cues": [{"time": 0, "prompt": "a", "lane": {"row": 2}}, {"time": 5, "prompt": "b"}]}';
  const edited = model.setPolicy(model.parse(text), 1, "blend", 3);
  assert.deepEqual(JSON.parse(model.serialise(edited)), {
    version: 1,
    cues: [
      { time: 0, prompt: "a", lane: { row: 2 } },
      { time: 5, prompt: "b", policy: "blend", blend: 3 },
    ],
    zoom: 2,
  });
  assert.equal(model.serialise(model.parse('{"cues": [{"time": 0, "prompt": "a"}]}')), "0s => a\n");
});

test("integers beyond what a number holds keep their digits", { skip: !JSON.rawJSON && "JSON.rawJSON came with Node.js 21" }, () => {
  const text = '{"cues": [{"time": 0, "prompt": "a", "id": 12345678901234567890}]}';
  assert.match(model.serialise(model.parse(text)), /"id": 12345678901234567890\b/);
});

test("the words of a policy at the beginning of a prompt are kept apart from it", () => {
  for (const prompt of ["keep: calm", "auto: mobile", "blend 3s: it", "blend 3x: it", "note: it", "seed 7: it", "cut, seed 7: it", "image a.png: it"]) {
    const schedule = model.setPrompt(model.parse("0 a\n5s => b"), 1, prompt);
    assert.deepEqual(prompts(model.parse(model.serialise(schedule))), ["a", prompt]);
    assert.equal(model.parse(model.serialise(schedule)).cues[1].policy, null);
  }
});

test("a new cue begins with the words in effect, on a block of its own", () => {
  const schedule = model.parse(THREE);
  const [inserted, index] = model.insertCue(schedule, 4.4);
  assert.equal(index, 2);
  assert.deepEqual([inserted.cues[2].seconds, inserted.cues[2].prompt], [4.3125, "it turns blue"]);
  const [again, next] = model.insertCue(inserted, 4.4);
  assert.deepEqual([next, again.cues[3].seconds], [3, 5.0625]);
  assert.equal(model.insertCue(model.parse("0 a"), 0)[0].cues[1].seconds, 0.5625);
});

test("a cue is added after the last one, and before the end where that is known", () => {
  const added = (endBlock) => model.addCue(model.parse("0 a"), endBlock)[0].cues[1].seconds;
  assert.equal(added(0), 5.0625);
  assert.equal(added(40), 5.0625);
  assert.equal(added(4), 1.3125);
});

test("where no room is left at the end, a new cue is half of the selected one", () => {
  const schedule = model.parse("0 => a\n2.0625s => b\n8.0625s => c\n"); // blocks 0, 3 and 11
  assert.deepEqual(model.addCue(schedule, 13, 1)[0].cues.map((cue) => cue.seconds), [0, 2.0625, 5.0625, 8.0625]);
  assert.equal(model.addCue(schedule, 13, 1)[1], 2);
  assert.equal(model.addCue(schedule, 15, 1)[1], 3, "two blocks are left");
  assert.equal(model.addCue(schedule, 9, 0)[1], 1, "the last one is beyond the end");
  refused(() => model.addCue(schedule, 12), /one block cannot be split/);
});

test("times are shown to a tenth", () => {
  assert.deepEqual([0, 5, 19.3125, 29.8125, 0.04].map(model.shown), ["0s", "5s", "19.3s", "29.8s", "0s"]);
});

test("split, delete, duplicate and reorder keep what the cues say", () => {
  const schedule = model.parse("0 => a\n2.0625s => cut: b\n5.0625s => c\n");
  assert.equal(
    model.serialise(model.splitCue(schedule, 1)[0]),
    "0 => a\n2.0625s => cut: b\n3.5625s => b\n5.0625s => c\n",
  );
  assert.equal(model.serialise(model.deleteCue(schedule, 0)), "0s => cut: b\n5.0625s => c\n");
  assert.equal(
    model.serialise(model.duplicateCue(schedule, 1)),
    "0 => a\n2.0625s => cut: b\n5.0625s => cut: b\n8.0625s => c\n",
  );
  assert.equal(
    model.serialise(model.reorderCue(schedule, 1, 0)),
    "0s => cut: b\n2.8125s => a\n5.0625s => c\n",
  );
  assert.equal(model.serialise(model.reorderCue(schedule, 0, 0)), model.serialise(schedule));
  refused(() => model.deleteCue(model.parse("0 a"), 0), /needs a prompt/);
  refused(() => model.splitCue(model.parse("0 a\n0.5s b\n1s c"), 1), /cannot be split/);
});

test("an edge snaps to blocks and stops at its neighbours", () => {
  const schedule = model.parse("0 => a\n2.0625s => b\n5.0625s => c\n");
  const begins = (seconds) => model.moveEdge(schedule, 1, seconds).cues[1].seconds;
  assert.deepEqual([1.6, 1.7, -5, 99].map(begins), [1.3125, 2.0625, 0.5625, 4.3125]);
  assert.equal(model.nudgeEdge(schedule, 1, 2).cues[1].seconds, 3.5625);
  assert.equal(model.moveEdge(schedule, 0, 3), schedule);
  const crowded = model.parse("0 a\n0.5s b\n0.55s c");
  assert.equal(model.moveEdge(crowded, 1, 9), crowded);
  assert.equal(model.moveEdge(crowded, 2, 9).cues[2].seconds, 9.5625 - 0.75 * ((9.5625 - 8.8125) / 0.75));
});

test("policies and their seconds are checked", () => {
  const schedule = model.parse("0 a\n5s b");
  assert.equal(model.setPolicy(schedule, 1, "blend").cues[1].blendSeconds, 2.25);
  assert.equal(model.setPolicy(model.setPolicy(schedule, 1, "blend", 3), 1, "keep").cues[1].blendSeconds, null);
  refused(() => model.setPolicy(schedule, 1, "blend", 61), /at most 60/);
  refused(() => model.setPolicy(schedule, 1, "fade"), /recache, refresh, keep, cut, blend, auto/);
  refused(() => model.setPrompt(schedule, 1, "  "), /empty/);
});

test("a seed is a cue's own: it stays with it, goes with the field, and another take changes it alone", () => {
  const schedule = model.parse("0 a\n5s => cut: b\n9s c");
  const seeded = model.setSeed(schedule, 1, " 007 ");
  assert.equal(model.serialise(seeded), "0 a\n5s => cut, seed 7: b\n9s c\n");
  assert.equal(model.serialise(model.setSeed(seeded, 1, " ")), "0 a\n5s => cut: b\n9s c\n");
  assert.equal(model.serialise(model.reorderCue(seeded, 1, 2)), "0 a\n5.0625s => c\n10.3125s => cut, seed 7: b\n");
  assert.equal(model.splitCue(seeded, 1)[0].cues[2].seed, null, "the second half goes on with it");
  const takes = new Set(Array.from({ length: 20 }, () => model.anotherTake(seeded, 1).cues[1].seed));
  assert.ok(takes.size > 15 && [...takes].every((seed) => /^[0-9]{1,9}$/.test(seed)));
  assert.deepEqual({ ...model.anotherTake(seeded, 1).cues[1], seed: "7" }, seeded.cues[1]);
  for (const wrong of ["-1", "7s", "1.5", "18446744073709551616"]) {
    refused(() => model.setSeed(schedule, 1, wrong), /from 0 to 18446744073709551615/);
  }
  const json = (seed) => `{"cues": [{"time": 0, "prompt": "a", "seed": ${seed}}], "zoom": 1}`;
  for (const exact of ['"18446744073709551615"', "9007199254740991", "7"]) {
    const again = JSON.parse(model.serialise(model.parse(json(exact))));
    assert.equal(JSON.stringify(again.cues[0].seed), exact);
  }
  refused(() => model.parse(json("18446744073709551615")), /write it in quotes/);
});

test("an image begins a new scene, goes with the field, and its cue has no other change", () => {
  const schedule = model.parse("0 a\n5s => blend 2s: b\n9s c");
  const scene = model.setImage(schedule, 1, " my/The sea.png ");
  assert.equal(model.serialise(scene), "0 a\n5s => cut, image my/The sea.png: b\n9s c\n");
  assert.deepEqual(said(model.parse(model.serialise(scene))), said(scene));
  assert.equal(model.serialise(model.setImage(scene, 1, "")), "0 a\n5s => cut: b\n9s c\n");
  assert.equal(model.splitCue(scene, 1)[0].cues[2].image, null, "the second half goes on");
  refused(() => model.setPolicy(scene, 1, "keep"), /came with keep, and a new scene begins with an image/);
  assert.equal(model.setPolicy(scene, 1, null).cues[1].policy, "cut");
  for (const wrong of ["../a.png", "/a.png", "a", "a,b.png", "a:b.png", "a\\b.png", "a//b.png"]) {
    refused(() => model.setImage(schedule, 1, wrong), /name a file of ComfyUI's input folder/);
  }
});

test("prompts of a JSONL are pasted ten seconds apart, and other text as it is", () => {
  const pasted = model.imported('{"prompts": ["a", "b", "c"]}');
  assert.deepEqual(model.blocksOf(pasted), [0, 14, 27]);
  refused(() => model.parse('{"prompts": ["a", "b", "c"]}'), /give exactly 2/);
  assert.deepEqual(said(model.imported(THREE)), said(model.parse(THREE)));
});

test("history: undo and redo, typing counts once", () => {
  let history = model.newHistory("a");
  for (const [text, kind] of [["b", null], ["bc", "typing"], ["bcd", "typing"], ["e", null], ["e", null]]) {
    history = model.recorded(history, text, kind);
  }
  const texts = [];
  while (history) {
    texts.push(history.text);
    history = model.undone(history);
  }
  assert.deepEqual(texts, ["e", "bcd", "b", "a"]);
  history = model.undone(model.recorded(model.newHistory("a"), "b"));
  assert.equal(model.redone(history).text, "b");
  assert.equal(model.redone(model.recorded(history, "c")), null);
});

// Keys

/** A key pressed in a field: what became of it. */
function pressed(key, modifiers = {}) {
  const done = [];
  const act = (name) => () => done.push(name);
  const event = { key, target: { tagName: "TEXTAREA" }, stopPropagation: act("kept"), preventDefault: act("used") };
  onKey({ focusCue: act("back") }, { ...event, ...modifiers });
  return done.join(" ");
}

test("an input method has Enter and Esc for itself", () => {
  for (const key of ["Enter", "Escape"]) {
    assert.equal(pressed(key), "kept used back");
    assert.equal(pressed(key, { isComposing: true }), "kept");
  }
});

test("the host gets its commands, and nothing that is typed or edits", () => {
  for (const key of ["Enter", "s", "S", "o", "F5"]) {
    assert.equal(pressed(key, { ctrlKey: true }), "", key);
    assert.equal(pressed(key, { metaKey: true, shiftKey: true }), "", key);
  }
  assert.equal(pressed("Enter", { ctrlKey: true, altKey: true }), "");
  for (const key of ["r", "q", ".", "0", "Delete", "F5"]) assert.equal(pressed(key), "kept", key);
  for (const key of ["z", "Z", "y", "c", "v", "x", "a", "ArrowLeft", "Backspace", "Home", "Control"]) {
    assert.ok(!isCommand({ key, ctrlKey: true }), key);
  }
  assert.equal(pressed("@", { ctrlKey: true, altKey: true }), "kept", "AltGr");
});

// Whatever comes

/** A small seeded generator of numbers in [0, 1) (mulberry32). */
function seeded(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const WORDS = ["a", "red", "keep:", "cut: x", "auto:", "blend", "blend 3s:", "seed 7:", "seed 8,", "image a.png:", "=>", "5s", "#1", "{\"a\"", "é", "🟦", "赤"];

function someSchedule(random) {
  const one = (list) => list[Math.floor(random() * list.length)];
  const someCue = () => {
    const image = random() < 0.2 ? one(["a.png", "b c/d.jpg", "赤.webp"]) : null;
    const policy = image ? "cut" : one([null, null, ...model.POLICIES]);
    const prompt = Array.from({ length: 1 + Math.floor(random() * 4) }, () => one(WORDS)).join(" ");
    const blendSeconds = policy === "blend" ? one([2.25, 0.1 + random() * 59, 60, 1e-7]) : null;
    const seed = random() < 0.3 ? one(["0", "7", "9007199254740993", "18446744073709551615"]) : null;
    const extra = random() < 0.1 ? { lane: one([1, null, "x", [2], { y: 3 }]) } : {};
    const seconds = one([Math.floor(random() * 60), random() * 60, random() * 1e-7, model.blockSeconds(9)]);
    return { seconds, prompt, policy, blendSeconds, seed, image, extra };
  };
  const cues = Array.from({ length: 1 + Math.floor(random() * 6) }, someCue);
  cues[0].seconds = 0;
  cues.sort((one, other) => one.seconds - other.seconds);
  return { cues, extra: random() < 0.1 ? { zoom: 2 } : {}, always: random() < 0.3 ? one(WORDS) : "" };
}

test("parse(serialise(x)) is x, for 1,000 schedules", () => {
  const random = seeded(1);
  for (let count = 0; count < 1000; count += 1) {
    const schedule = someSchedule(random);
    assert.deepEqual(said(model.parse(model.serialise(schedule))), schedule);
  }
});

/** The comments of a text that `commented` made, in order. */
const comments = (text) => text.match(/^\s*#c\d+$/gm) ?? [];

/** Schedule text with comments anywhere, with times and without. */
function commented(random) {
  let count = 0;
  const note = () => (random() < 0.5 ? `${" ".repeat(random() * 3)}#c${(count += 1)}\n` : "");
  const cue = (start) => `${note()}${start}a\n${note()}  and b\n${note()}`;
  return random() < 0.3 ? cue("") : ["0 => ", "4s ", "8s => cut: "].map(cue).join("");
}

test("no edit but deleting loses a comment, wherever it is", () => {
  const random = seeded(3);
  for (let count = 0; count < 300; count += 1) {
    const text = commented(random);
    const schedule = model.parse(text);
    const index = Math.floor(random() * schedule.cues.length);
    const edits = [
      model.setPrompt(schedule, index, "new"),
      model.setPolicy(schedule, index, "blend"),
      model.nudgeEdge(schedule, index, 1),
      model.splitCue(schedule, index)[0],
      model.duplicateCue(schedule, index),
    ];
    for (const edited of edits) {
      const written = model.serialise(edited);
      assert.deepEqual(comments(written), comments(text));
      assert.deepEqual(said(model.parse(written)), said(edited));
    }
  }
});

test("any edit of any schedule leaves one that reads back", () => {
  const random = seeded(2);
  const edits = [
    (schedule, index) => model.insertCue(schedule, random() * 70)[0],
    (schedule) => model.addCue(schedule, random() < 0.5 ? 0 : Math.floor(random() * 90))[0],
    (schedule, index) => model.splitCue(schedule, index)[0],
    model.deleteCue,
    (schedule, index) => model.duplicateCue(schedule, index),
    (schedule, index) => model.reorderCue(schedule, index, Math.floor(random() * schedule.cues.length)),
    (schedule, index) => model.moveEdge(schedule, index, random() * 70 - 5),
    (schedule, index) => model.nudgeEdge(schedule, index, Math.floor(random() * 9) - 4),
    (schedule) => model.setAlways(schedule, random() < 0.5 ? "film still" : ""),
    (schedule, index) => model.setSeed(schedule, index, random() < 0.5 ? "8" : ""),
    model.anotherTake,
  ];
  for (let count = 0; count < 1000; count += 1) {
    let schedule = someSchedule(random);
    for (let step = 0; step < 4; step += 1) {
      try {
        const edit = edits[Math.floor(random() * edits.length)];
        schedule = edit(schedule, Math.floor(random() * schedule.cues.length));
      } catch (error) {
        assert.equal(error.name, "ScheduleError");
      }
      assert.deepEqual(said(model.parse(model.serialise(schedule))), said(schedule));
    }
  }
});

test("a dragged edge snaps to the nearest beat within a few pixels", () => {
  const times = [1, 2, 2.25];
  assert.equal(snapped(times, 1.9, 40), 2);
  assert.equal(snapped(times, 2.2, 40), 2.25);
  assert.equal(snapped(times, 1.5, 40), 1.5);
  assert.equal(snapped(times, 1.5, 10), 1, "zoomed out, pixels are more seconds");
  assert.equal(snapped([], 1.5, 40), 1.5);
});

test("beats that were saved are read whatever they are, and only those with room are drawn", () => {
  assert.deepEqual(checkedBeats(undefined), { file: "", times: [] });
  assert.deepEqual(checkedBeats({ file: 3, times: [2, -1, "x", null, NaN, 1] }), { file: "3", times: [1, 2] });
  assert.deepEqual(drawnBeats([0, 1, 1.1, 2, 9], 0.5, 3, 20), [1, 2]);
});
