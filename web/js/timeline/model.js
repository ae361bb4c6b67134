// The timeline without a page: schedule text or JSON <-> schedule, edits, snapping, history. Pure functions;
// a schedule is { cues, extra, always, head, tail } and is never changed, an edit returns a new one.
// Of a frame-wise model it has `latentFrames` 1, in a block; else 3, or none.

import { LATENT_FRAMES, blockAt, blockSeconds, nearestBlock } from "./blocks.js";
import { ScheduleError, checkedAlways, makeCue } from "./cues.js";
import { fromJson, fromJsonl, isJsonl, jsonlPrompts, looksLikeJson, toJson } from "./json.js";
import { commentsOf, fromText, toText, writtenAlways } from "./text.js";

export { LATENT_FRAMES, blockAt, blockLength, blockSeconds } from "./blocks.js";
export { DEFAULT_BLEND_SECONDS, MAX_BLEND_SECONDS, POLICIES, ScheduleError, shown } from "./cues.js";
export { slipOf } from "./prefix.js";
export { readTime } from "./text.js";

const MAX_CHARACTERS = 8000000;
const MAX_HISTORY = 200;
const NEW_CUE_FRAMES = 21; // latent frames: five seconds
const TAKES = 1e9; // seeds to choose from, short enough to read
const MIN_SHARED = 12; // characters that labels leave out
const IMPORTED_SWITCH_FRAMES = 40; // latent frames between prompts that came without times: ten seconds

/** Schedule text, timeline JSON or JSONL -> schedule; the same texts as in Python. Throws ScheduleError. */
export function parse(text, switchFrames = []) {
  const plain = text.replace(/^\ufeff/, "");
  if (plain.length > MAX_CHARACTERS) {
    const limits = `at most ${MAX_CHARACTERS} are allowed`;
    throw new ScheduleError(`the schedule has ${plain.length} characters; ${limits}`);
  }
  if (plain.includes("\0")) {
    throw new ScheduleError("the schedule holds NUL characters, as UTF-16 text does; save it as UTF-8");
  }
  if (isJsonl(plain)) return fromJsonl(plain, switchFrames);
  if (switchFrames.length) {
    throw new ScheduleError("switch frames go with JSONL prompts only; leave the switch frames out");
  }
  return looksLikeJson(plain) ? fromJson(plain) : fromText(plain);
}

/** What is pasted: as `parse`, but the prompts of a JSONL may come without their times. */
export function imported(text) {
  const plain = text.replace(/^\ufeff/, "");
  if (!isJsonl(plain)) return parse(plain);
  return fromJsonl(plain, jsonlPrompts(plain).slice(1).map((_, index) => (index + 1) * IMPORTED_SWITCH_FRAMES));
}

/** Schedule text where it can hold everything, else timeline JSON. `parse` reads it back. */
export function serialise(schedule) {
  const isPlain = [schedule, ...schedule.cues].every(({ extra }) => !Object.keys(extra).length);
  return isPlain ? toText(schedule) : toJson(schedule);
}

/** The block each cue takes effect at. */
export function blocksOf({ cues, latentFrames }) {
  return cues.map((cue) => blockAt(cue.seconds, latentFrames));
}

/** When a block begins in the video of a schedule, in seconds. */
export function secondsOf({ latentFrames }, block) {
  return blockSeconds(block, latentFrames);
}

const newCueBlocks = ({ latentFrames = LATENT_FRAMES }) => Math.ceil(NEW_CUE_FRAMES / latentFrames);

/** How many blocks each cue has; `endBlock` is where the last one ends (a usual length, if it is not later). */
export function lengthsOf(schedule, endBlock = 0) {
  const blocks = blocksOf(schedule);
  const last = blocks.at(-1);
  const end = endBlock > last ? endBlock : last + newCueBlocks(schedule);
  return blocks.map((block, index) => (blocks[index + 1] ?? end) - block);
}

/** The index of the cue in effect at a block; of several that begin there the last. */
export function cueAt(schedule, block) {
  return blocksOf(schedule).findLastIndex((start) => start <= block);
}

// A cue that was edited is written anew, in one line; its comments stay, before it.
const changed = (cue, fields) => ({ ...makeCue({ ...cue, ...fields }), lead: commentsOf(cue) });
const isAt = ({ latentFrames }, cue, block) => blockAt(cue.seconds, latentFrames) === block;
const moved = (schedule, cue, block) =>
  isAt(schedule, cue, block) ? cue : changed(cue, { seconds: secondsOf(schedule, block) });
const replaced = (schedule, index, cue) => ({ ...schedule, cues: schedule.cues.with(index, cue) });

/** The cues put one after the other, each as long as `lengths` says. */
function laidOut(schedule, cues, lengths) {
  let block = 0;
  const placed = [];
  for (const [index, cue] of cues.entries()) {
    const [earliest, begins] = [placed.at(-1)?.seconds ?? 0, secondsOf(schedule, block)];
    const isKept = isAt(schedule, cue, block) && cue.seconds >= earliest && cue.seconds <= begins;
    placed.push(isKept ? cue : changed(cue, { seconds: begins }));
    block += lengths[index];
  }
  return { ...schedule, cues: placed };
}

/**
 * A new cue at the block nearest to `seconds`, or at the next one that is free, with the words of the cue in
 * effect there. Returns [schedule, index of the new cue].
 */
export function insertCue(schedule, seconds) {
  const taken = new Set(blocksOf(schedule));
  let block = Math.max(1, nearestBlock(seconds, schedule.latentFrames));
  while (taken.has(block)) block += 1;
  const index = cueAt(schedule, block) + 1;
  const { prompt } = schedule.cues[index - 1];
  const cue = makeCue({ seconds: secondsOf(schedule, block), prompt });
  return [{ ...schedule, cues: schedule.cues.toSpliced(index, 0, cue) }, index];
}

/**
 * A new cue after the last one: a usual length later, or in the middle of what is left before the end. Where less
 * than two blocks would be left to it, the selected cue is cut in two. Throws ScheduleError where that has only one.
 */
export function addCue(schedule, endBlock = 0, selected = schedule.cues.length - 1) {
  const last = blocksOf(schedule).at(-1);
  const usual = last + newCueBlocks(schedule);
  const block = !endBlock || usual < endBlock ? usual : Math.floor((last + endBlock) / 2);
  if (endBlock && endBlock - block < 2) return splitCue(schedule, selected, endBlock);
  return insertCue(schedule, secondsOf(schedule, block));
}

/** A cue cut in two at the middle of its blocks. Throws ScheduleError where it has only one. */
export function splitCue(schedule, index, endBlock = 0) {
  const length = lengthsOf(schedule, endBlock)[index];
  if (length < 2) throw new ScheduleError("a cue of one block cannot be split; make it longer first");
  return insertCue(schedule, secondsOf(schedule, blocksOf(schedule)[index] + Math.floor(length / 2)));
}

/** The schedule without a cue; the one after the first moves to 0. Throws ScheduleError for the only cue. */
export function deleteCue(schedule, index) {
  if (schedule.cues.length === 1) throw new ScheduleError("the video needs a prompt; change this one instead");
  const cues = schedule.cues.toSpliced(index, 1);
  if (index === 0) cues[0] = changed(cues[0], { seconds: 0 });
  return { ...schedule, cues };
}

/** The same cue once more, after it and as long; later cues move back. */
export function duplicateCue(schedule, index, endBlock = 0) {
  const lengths = lengthsOf(schedule, endBlock);
  const length = index === lengths.length - 1 ? newCueBlocks(schedule) : lengths[index];
  lengths[index] = length;
  const copy = makeCue(schedule.cues[index]); // without its comments
  const cues = schedule.cues.toSpliced(index + 1, 0, copy);
  return laidOut(schedule, cues, lengths.toSpliced(index + 1, 0, length));
}

/** The cue at `index` becomes number `to`; every cue keeps its length. */
export function reorderCue(schedule, index, to, endBlock = 0) {
  const lengths = lengthsOf(schedule, endBlock);
  const carried = (list) => list.toSpliced(index, 1).toSpliced(to, 0, list[index]);
  return laidOut(schedule, carried(schedule.cues), carried(lengths));
}

/** The beginning of a cue moved to the block nearest to `seconds`, at most up to its neighbours. */
export function moveEdge(schedule, index, seconds) {
  const blocks = blocksOf(schedule);
  const earliest = blocks[index - 1] + 1;
  const latest = (blocks[index + 1] ?? Infinity) - 1;
  if (index === 0 || earliest > latest) return schedule;
  const block = Math.min(Math.max(nearestBlock(seconds, schedule.latentFrames), earliest), latest);
  return replaced(schedule, index, moved(schedule, schedule.cues[index], block));
}

/** The beginning of a cue moved by so many blocks. */
export function nudgeEdge(schedule, index, blocks) {
  return moveEdge(schedule, index, secondsOf(schedule, Math.max(0, blocksOf(schedule)[index] + blocks)));
}

/** Another prompt; throws ScheduleError where it is empty. */
export function setPrompt(schedule, index, prompt) {
  return replaced(schedule, index, changed(schedule.cues[index], { prompt }));
}

/** Other words in every prompt; none are in none. The comments before them stay. */
export function setAlways(schedule, words) {
  const always = checkedAlways(words);
  return { ...schedule, always, head: commentsOf({ source: schedule.head }) + writtenAlways(always) };
}

/** How many characters all prompts begin with, in whole words: 0 where they are few, or all of a prompt. */
export function sharedStart({ cues }) {
  const [first, ...others] = cues.map(({ prompt }) => prompt);
  let { length } = first;
  for (const prompt of others) while (!prompt.startsWith(first.slice(0, length))) length -= 1;
  if (cues.some(({ prompt }) => prompt.length === length)) return 0;
  const words = first.slice(0, length).replace(/[\p{L}\p{M}\p{N}\p{Cs}]+$/u, ""); // not the half of a word
  return words.length < MIN_SHARED ? 0 : words.length;
}

/** Another policy (null names none); `blendSeconds` with "blend" alone. */
export function setPolicy(schedule, index, policy, blendSeconds = null) {
  return replaced(schedule, index, changed(schedule.cues[index], { policy, blendSeconds }));
}

/** Another seed, from that cue on (its digits; none for the seed in effect). */
export function setSeed(schedule, index, digits) {
  return replaced(schedule, index, changed(schedule.cues[index], { seed: digits.trim() || null }));
}

/** The image that a cue begins with, as a new scene; an empty name for none. */
export function setImage(schedule, index, name) {
  const image = name.trim() || null;
  const scene = image ? { policy: "cut", blendSeconds: null } : {};
  return replaced(schedule, index, changed(schedule.cues[index], { image, ...scene }));
}

/** The same cue with a new random seed: what comes before it stays as it is. */
export function anotherTake(schedule, index) {
  return setSeed(schedule, index, String(Math.floor(Math.random() * TAKES)));
}

/** A history of texts. `kind` joins edits that belong together: of typing, only the newest text is kept. */
export function newHistory(text) {
  return { past: [], text, future: [], kind: null };
}

export function recorded(history, text, kind = null) {
  if (text === history.text) return history;
  const isSame = kind !== null && kind === history.kind;
  const past = isSame ? history.past : [...history.past, history.text].slice(-MAX_HISTORY);
  return { past, text, future: [], kind };
}

export function undone({ past, text, future }) {
  return past.length ? { past: past.slice(0, -1), text: past.at(-1), future: [text, ...future], kind: null } : null;
}

export function redone({ past, text, future }) {
  return future.length ? { past: [...past, text], text: future[0], future: future.slice(1), kind: null } : null;
}
