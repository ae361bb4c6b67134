// Timeline JSON, and the reference's JSONL with its switch frames <-> schedules. The same rules as
// longlive_core/schedule/json_format.py.

import { blockAt, blockSeconds, latentFrameSeconds } from "./blocks.js";
import {
  AUTO,
  MAX_EXACT,
  MAX_SECONDS,
  SPACE,
  ScheduleError,
  checkNumberOfCues,
  checkOrder,
  checkedAlways,
  makeCue,
  quoted,
} from "./cues.js";
import { numberedLines, readTime } from "./text.js";

const JSON_START = new RegExp(`^${SPACE}*(\\{${SPACE}*["}]|\\[${SPACE}*[{\\]])`);
const TRIMMED = new RegExp(`^${SPACE}+|${SPACE}+$`, "g");
const LAST_SWITCH_FRAME = Math.ceil((MAX_SECONDS * 16 - 1) / 4);
const INTEGER = /^-?\d+$/;

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const has = (fields, name) => Object.hasOwn(fields, name);

export const looksLikeJson = (text) => JSON_START.test(text);

/** Integers too large for a number keep their digits, where the browser can (JSON.rawJSON). */
function exact(key, value, context) {
  const isLarge = typeof value === "number" && !Number.isSafeInteger(value) && INTEGER.test(context?.source);
  return isLarge && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

function decoded(text) {
  try {
    return JSON.parse(text, exact);
  } catch (error) {
    throw new ScheduleError(`this is not valid JSON: ${error.message}`);
  }
}

function without(fields, ...names) {
  return Object.fromEntries(Object.entries(fields).filter(([name]) => !names.includes(name)));
}

/** Timeline JSON -> schedule; cues may come in any order. */
export function fromJson(text) {
  const document = decoded(text);
  if (!isObject(document) || !Array.isArray(document.cues)) {
    throw new ScheduleError(
      `a timeline is an object with a list of cues, and ${quoted(document)} came; ` +
        'write {"version": 1, "cues": [{"time": 0, "prompt": "..."}]}',
    );
  }
  if (has(document, "version") && document.version !== 1) {
    throw new ScheduleError(`timeline version ${quoted(document.version)} is unknown; only 1 is read`);
  }
  checkNumberOfCues(document.cues.length);
  const cues = document.cues.map((entry, index) => cueFromJson(entry, index + 1));
  cues.sort((one, other) => one.seconds - other.seconds);
  checkOrder(cues);
  const always = checkedAlways(document.always ?? null);
  return { cues, extra: without(document, "version", "always", "cues"), always };
}

function cueFromJson(entry, number) {
  if (!isObject(entry) || !has(entry, "time") || !has(entry, "prompt")) {
    throw new ScheduleError(`cue ${number} is ${quoted(entry)}; write {"time": 5.0, "prompt": "..."}`, {
      cue: number,
    });
  }
  return numberedCue(number, {
    seconds: entry.time,
    prompt: entry.prompt,
    policy: entry.policy ?? AUTO,
    blendSeconds: entry.blend ?? null,
    seed: seedOf(entry, number),
    image: entry.image ?? null,
    extra: without(entry, "time", "prompt", "policy", "blend", "seed", "image"),
  });
}

/** A seed as it is written; a number that may have lost digits is refused. */
function seedOf({ seed = null }, number) {
  if (typeof seed === "number" ? Math.abs(seed) <= MAX_EXACT : !JSON.isRawJSON?.(seed)) return seed;
  throw new ScheduleError(
    `cue ${number}: the seed ${seed.rawJSON ?? seed} is more than all programs keep; write it in quotes, as every ` +
      `seed above ${MAX_EXACT}`,
    { cue: number },
  );
}

/** A cue of those fields; errors name its number. */
function numberedCue(number, fields) {
  try {
    const { seconds } = fields;
    const time = typeof seconds === "string" ? readTime(seconds.replace(TRIMMED, "")) : seconds;
    return makeCue({ ...fields, seconds: time });
  } catch (error) {
    if (!(error instanceof ScheduleError)) throw error;
    throw new ScheduleError(`cue ${number}: ${error.text}`, { cue: number });
  }
}

/** The entry that reads back as this cue. */
function cueToJson({ seconds, prompt, policy, blendSeconds, seed, image, extra }) {
  return {
    time: seconds,
    prompt,
    ...(policy !== null && { policy }),
    ...(blendSeconds !== null && { blend: blendSeconds }),
    ...(seed !== null && { seed: Number(seed) <= MAX_EXACT ? Number(seed) : seed }),
    ...(image !== null && { image }),
    ...extra,
  };
}

/** Timeline JSON of a schedule, with the fields that are not ours. */
export function toJson(schedule) {
  const { cues, extra, always } = schedule;
  return JSON.stringify({ version: 1, ...(always && { always }), cues: cues.map(cueToJson), ...extra }, null, 2);
}

const filledLines = (text) => numberedLines(text).filter((line) => !line.isBlank);

/** Whether the first line is, by itself, an object with prompts. */
export function isJsonl(text) {
  if (!looksLikeJson(text)) return false;
  try {
    const first = decoded(filledLines(text)[0].raw);
    return isObject(first) && has(first, "prompts") && !has(first, "cues");
  } catch {
    return false;
  }
}

export function jsonlPrompts(text) {
  const fields = decoded(filledLines(text)[0].raw);
  if (!isObject(fields) || !Array.isArray(fields.prompts)) {
    throw new ScheduleError(`${quoted(fields)} came; write {"prompts": ["...", "..."]}`);
  }
  checkNumberOfCues(fields.prompts.length);
  return fields.prompts;
}

/** The first line of a JSONL with the latent frame of each switch -> schedule. */
export function fromJsonl(text, switchFrames) {
  const prompts = jsonlPrompts(text);
  checkSwitchFrames(switchFrames, prompts.length);
  const times = [0, ...switchSeconds(switchFrames)];
  const cues = prompts.map((prompt, index) => numberedCue(index + 1, { seconds: times[index], prompt }));
  checkOrder(cues);
  return { cues, extra: {}, always: "" };
}

function checkSwitchFrames(frames, numPrompts) {
  if (frames.length !== numPrompts - 1) {
    throw new ScheduleError(
      `${numPrompts} prompts came with ${frames.length} switch frames; give exactly ${numPrompts - 1}, ` +
        "one for each prompt after the first",
    );
  }
  frames.forEach((frame, index) => {
    if (!Number.isInteger(frame) || frame < 0 || frame > LAST_SWITCH_FRAME) {
      const limits = `use latent frames from 0 to ${LAST_SWITCH_FRAME}`;
      throw new ScheduleError(`${quoted(frame)} is not a switch frame; ${limits}`);
    }
    if (index && frame < frames[index - 1]) {
      throw new ScheduleError(`switch frame ${frame} comes after ${frames[index - 1]}; put them in order`);
    }
  });
}

/** One switch a block: one that finds its block taken waits for the next. */
function switchSeconds(frames) {
  let taken = -1;
  return frames.map((frame) => {
    const block = blockAt(latentFrameSeconds(frame));
    const isTaken = block <= taken;
    taken = isTaken ? taken + 1 : block;
    return isTaken ? blockSeconds(taken) : latentFrameSeconds(frame);
  });
}
