// One timed prompt: what it may hold, how numbers are written, and the error that says what is wrong.
// The same rules as longlive_core/schedule/cue.py; a test holds the two together.

export const MAX_SECONDS = 24 * 60 * 60;
export const MAX_CUES = 100000;
export const MAX_BLEND_SECONDS = 60;
export const MAX_SEED = 2n ** 64n - 1n;
export const MAX_EXACT = Number.MAX_SAFE_INTEGER; // of whole numbers in JSON
export const DEFAULT_BLEND_SECONDS = 2.25;
export const AUTO = "auto";
export const POLICIES = ["recache", "refresh", "keep", "cut", "blend"];
export const SECONDS = "(?:[0-9]+(?:\\.[0-9]+)?|\\.[0-9]+)s?";
export const TIME_SPELLINGS = "write a time as 0, 5s, 2.5s, 0:05, 1:02.5 or 1:02:03";
// What separates words: the same characters as in Python, which are not those of \s here.
export const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";

const QUOTED_CHARACTERS = 40;
const SPACES = new RegExp(`${SPACE}+`);
const SEED = /^0*([0-9]{1,20})$/;
// sea.png, folder/the sea.png; no folder of an image is "", "." or ".."
export const IMAGE_FILE = "[^\\x00- ,:\\\\\\x7f][^\\x00-\\x1f,:\\\\\\x7f]*\\.[A-Za-z0-9]{2,5}";
const IMAGE = new RegExp(`^(?!(?:[^]*/)?\\.{0,2}/)${IMAGE_FILE}$`);
const LONE_SURROGATE = /[\ud800-\udfff]/u;

/** A schedule that cannot be used. `line`, `column` and `cue` count from 1; null where they mean nothing. */
export class ScheduleError extends Error {
  constructor(text, { line = null, column = null, cue = null } = {}) {
    super(line === null ? text : `line ${line}, column ${column}: ${text}`);
    Object.assign(this, { name: "ScheduleError", text, line, column, cue });
  }

  at(line, column) {
    return new ScheduleError(this.text, { line, column, cue: this.cue });
  }
}

/**
 * A cue: seconds, prompt, policy (null names none), blendSeconds (with "blend" alone), seed (its digits, as a number
 * does not hold all; null names none), image (the file that a new scene begins with, by "cut"; null for none) and
 * `extra`, the fields of a timeline JSON that are not ours. Throws ScheduleError.
 */
export function makeCue({ seconds, prompt, policy = null, blendSeconds = null, seed = null, image = null, extra = {} }) {
  const time = checkedSeconds(seconds);
  const words = checkedPrompt(prompt);
  const file = checkedImage(image);
  const named = checkedPolicy(policy, file);
  const blend = checkedBlend(blendSeconds, named);
  return { seconds: time, prompt: words, policy: named, blendSeconds: blend, seed: checkedSeed(seed), image: file, extra };
}

export function checkedSeconds(seconds) {
  if (typeof seconds !== "number") {
    throw new ScheduleError(`the time ${quoted(seconds)} is not a number of seconds; ${TIME_SPELLINGS}`);
  }
  if (!(seconds >= 0 && seconds <= MAX_SECONDS)) {
    const limits = `times are from 0 to ${MAX_SECONDS} seconds (24 h)`;
    throw new ScheduleError(`the time ${quoted(seconds)} is not possible; ${limits}`);
  }
  return seconds + 0; // -0 becomes 0
}

function checkedPrompt(prompt) {
  if (typeof prompt !== "string") {
    throw new ScheduleError(`the prompt ${quoted(prompt)} is not text; write it in quotes`);
  }
  const words = prompt.split(SPACES).filter(Boolean).join(" ");
  if (!words) {
    throw new ScheduleError("the prompt is empty; write what the video should show, or remove the cue");
  }
  if (words.includes("\0")) throw new ScheduleError("the prompt holds a NUL character; remove it");
  if (LONE_SURROGATE.test(words)) {
    throw new ScheduleError("the prompt holds a lone UTF-16 surrogate (half a character); type it again");
  }
  return words;
}

/** The words before every prompt, checked as a prompt is; they may be empty. */
export function checkedAlways(words) {
  const isEmpty = words === null || (typeof words === "string" && !words.split(SPACES).some(Boolean));
  return isEmpty ? "" : checkedPrompt(words);
}

function checkedPolicy(policy, image) {
  if (policy === null || policy === AUTO) return image ? "cut" : null;
  if (!POLICIES.includes(policy)) {
    throw new ScheduleError(`${quoted(policy)} is not a policy; use ${[...POLICIES, AUTO].join(", ")}`);
  }
  if (!image || policy === "cut") return policy;
  const came = `the image ${quoted(image)} came with ${policy}`;
  throw new ScheduleError(`${came}, and a new scene begins with an image; write cut, or no policy`);
}

function checkedImage(image) {
  if (image === null || (typeof image === "string" && IMAGE.test(image) && !LONE_SURROGATE.test(image))) return image;
  throw new ScheduleError(
    `the image ${quoted(image)} is not possible; name a file of ComfyUI's input folder, or of the schedule's: sea.png ` +
      "or folder/sea.png, without .. and , : \\ in it",
  );
}

function checkedBlend(seconds, policy) {
  if (policy !== "blend") {
    if (seconds === null) return null;
    const came = `a blend of ${quoted(seconds)} seconds came with ${policy ?? AUTO}`;
    throw new ScheduleError(`${came}; only blend takes seconds`);
  }
  if (seconds === null) return DEFAULT_BLEND_SECONDS;
  if (typeof seconds !== "number") {
    throw new ScheduleError(`the blend ${quoted(seconds)} is not a number of seconds; give it as 3.0`);
  }
  if (!(seconds > 0 && seconds <= MAX_BLEND_SECONDS)) {
    const limits = `a blend takes more than 0 and at most ${MAX_BLEND_SECONDS} seconds`;
    throw new ScheduleError(`a blend of ${quoted(seconds)} seconds is not possible; ${limits}`);
  }
  return seconds;
}

function checkedSeed(seed) {
  if (seed === null) return null;
  const written = Number.isSafeInteger(seed) ? String(seed) : seed;
  const digits = typeof written === "string" ? SEED.exec(written)?.[1] : undefined;
  if (digits !== undefined && BigInt(digits) <= MAX_SEED) return String(BigInt(digits));
  throw new ScheduleError(`the seed ${quoted(seed)} is not possible; use a whole number from 0 to ${MAX_SEED}`);
}

/** A value as messages show it, cut short. */
export function quoted(value) {
  const shown = ["string", "number"].includes(typeof value) ? String(value) : JSON.stringify(value);
  const characters = [...shown];
  const short = characters.length > QUOTED_CHARACTERS ? `${characters.slice(0, QUOTED_CHARACTERS).join("")}...` : shown;
  return typeof value === "string" ? `"${short}"` : short;
}

/** Seconds to a tenth, as fields and messages show them: 5s, 19.3s. */
export const shown = (seconds) => spelled(Math.round(seconds * 10) / 10);

/** Seconds without an exponent and without loss: 0s, 2.5s, 0.0000001s. */
export function spelled(seconds) {
  const [digits, exponent] = String(seconds).split("e-");
  if (exponent === undefined) return `${digits}s`;
  const [whole, fraction = ""] = digits.split(".");
  return `0.${"0".repeat(Number(exponent) - 1)}${whole}${fraction}s`;
}

export function checkNumberOfCues(count) {
  if (!count) throw new ScheduleError("the schedule has no cues; give it at least one, at 0");
  if (count > MAX_CUES) {
    const limits = `at most ${MAX_CUES} are allowed, split the video`;
    throw new ScheduleError(`the schedule has ${count} cues; ${limits}`);
  }
}

/** Throws unless the first cue is at 0 and times never go back. */
export function checkOrder(cues) {
  if (cues[0].seconds !== 0) {
    throw new ScheduleError(
      `the first cue is at ${spelled(cues[0].seconds)}, and the video needs a prompt from 0 on; begin with a ` +
        "cue at 0 (where the time is meant as words of a prompt, write 0 => before it)",
      { cue: 1 },
    );
  }
  const named = (index) => `cue ${index + 1} at ${spelled(cues[index].seconds)}`;
  const late = cues.findIndex((cue, index) => index > 0 && cue.seconds < cues[index - 1].seconds);
  if (late > 0) {
    throw new ScheduleError(
      `${named(late)} comes after ${named(late - 1)}, and cues must be in order of time; move it up or ` +
        "correct its time",
      { cue: late + 1 },
    );
  }
}
