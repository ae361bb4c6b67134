// Timed prompts as other tools and people write them: read where the meaning is plain, else recognised. The
// same rules as longlive_core/schedule/notations.py.

import { SPACE } from "./cues.js";

export const OTHER_NOTATION =
  "this looks like a list of timed prompts in another notation; write 0:00 a red circle, one cue a line (where " +
  "it is one prompt, write 0 => before it)";

const NUMBER = "(?:[0-9]+(?::[0-9]+)*(?:\\.[0-9]+)?|\\.[0-9]+)";
// The end of a range: surely seconds.
const END = `(?:[0-9]+(?::[0-9]+)+(?:\\.[0-9]+)?|(?:[0-9]+(?:\\.[0-9]+)?|\\.[0-9]+)${SPACE}?s)`;
// - 0:05 x, 1. 5s x, **0:05** x, [0:05] x, 0-5s: x, 5s -> x, 0:05 - x, 5s | x, 5 s x
const LISTED = new RegExp(
  `^(?<mark>(?:[-*+\\u2022]|[0-9]+[.)])${SPACE}+)?(?<open>\\*\\*|[\\[(])?` +
    `(?<time>${NUMBER}(?:${SPACE}?(?:s|secs?|seconds?|ms))?)` +
    `(?<range>${SPACE}*(?:[-\\u2013\\u2014]|to)${SPACE}*${END})?(?<close>:?(?:\\*\\*|[\\])]))?` +
    `(?<after>${SPACE}*(?:=>?|-+>|\\u2192|\\u21d2)${SPACE}*|${SPACE}+(?:[-\\u2013\\u2014]+|\\|)${SPACE}+` +
    `|:${SPACE}*|${SPACE}+|$)(?<words>[^]*)`,
  "u",
);
const QUOTE = "[\"'`\\u2018\\u2019\\u201c\\u201d]";
const ZERO = "0+(?:[.:]0+)*(?![0-9.:]*[0-9])";
const NAME = "(?:frames?|f|time|t|at|from|start|seconds?|secs?|s|shot|scene|clip|part|cue|keyframe|key|segment|step)";
// How other notations begin: {'cues': [, ["x", "y"], {0: "x"}, "0": "x", | time | x |, cues: - time: 0,
// <cue time="0">, Frame 0: x, Shot 1 (0-5s): x, 0ms x, 0m0s x, 0,x, 0-5: x. A prompt may well begin with a
// number, but hardly with a zero.
const OTHER = new RegExp(
  `^(?:[{\\[]${SPACE}*(?:${QUOTE}|[\\[(]?${SPACE}*[0-9.]+${SPACE}*(?:,|:(?!:)))` +
    `|${QUOTE}[0-9.:]+${SPACE}?s?${QUOTE}${SPACE}*[:=,]|\\|[^|]+\\|` +
    `|(?:(?:[A-Za-z_]+:|<[A-Za-z_]+|\\[+[A-Za-z_]+\\]+)${SPACE}+)?(?:` +
    `(?:[-*+\\u2022]${SPACE}*)?${QUOTE}?${NAME}${QUOTE}?${SPACE}*[:=]${SPACE}*${QUOTE}?${ZERO}` +
    `|(?:${NAME}(?:${SPACE}|#)*(?:[0-9]+[^0-9A-Za-z]{1,3})?)?${ZERO}` +
    `(?:(?:${SPACE}?ms|f|frames?|m|min)(?![0-9A-Za-z])|[hm][0-9]` +
    `|s?${SPACE}*(?:[:;|)\\]>]|,(?![0-9])|-${SPACE}*[0-9])))` +
    "|0+(?::0+)+(?![0-9]))", // in full-width characters, else it is a time
  "iu",
);
const HEAD = new RegExp(
  "^(?<lead>[^0-9A-Za-z]{0,4}(?:[A-Za-z]+[^0-9A-Za-z]{0,3})?)" +
    `(?<number>[0-9]{1,9}(?::[0-9]{1,9}){0,3}(?:\\.[0-9]{1,9})?)${SPACE}?(?:s|ms|f|%)?(?![0-9A-Za-z])`,
  "u",
);
const TAIL = new RegExp(
  `^[^]*?(?<lead>(?:@|[(\\[:|,\\-]|(?<![A-Za-z0-9_])(?:at|from))${SPACE}{0,3})` +
    `(?<number>[0-9]{1,9}(?::[0-9]{1,9}){0,3}(?:\\.[0-9]{1,9})?)${SPACE}?(?:s|secs?|seconds?)?[)\\]]?${SPACE}*$`,
  "iu",
);
const BARE_RANGE = new RegExp(
  `^[0-9.]+${SPACE}*[-\\u2013\\u2014]${SPACE}*(?!${END}(?![0-9A-Za-z]))[0-9]`,
  "u",
);
const SPACES = new RegExp(SPACE, "g");
const OWN = ["", "=>", ":"]; // what follows the time in our own grammar, and in what it refuses

const packed = (text) => text.replace(SPACES, "");

/**
 * A line such as `- 0:05 x` or `0-5s: x` -> its time, its words, and whether it is surely timed; null for
 * every other line, those of our own grammar among them.
 */
export function listed(text) {
  const found = LISTED.exec(text)?.groups;
  if (!found || Boolean(found.open) !== Boolean(found.close)) return null;
  const [time, after] = [packed(found.time), packed(found.after)];
  const isMarked = found.mark || found.open || found.range || time !== found.time;
  if (!isMarked && OWN.includes(after)) return null;
  return { time, words: found.words, isSure: Boolean(found.range) || after === "=>" };
}

/** Whether a line begins as `0 - 5 x` does: a range of an unknown unit. */
export const isBareRange = (text) => BARE_RANGE.test(text);

/**
 * Whether what has no time that is read is a list of timed prompts all the same: it begins as one does, all its
 * lines (or all but a title) begin alike with rising numbers, or all end alike with rising ones from 0.
 * Full-width characters count as the others.
 */
export function isOtherNotation(prompt, lines) {
  const plain = lines.map((line) => line.normalize("NFKC"));
  const ends = numbers(TAIL, plain);
  const isTimed = areRising(numbers(HEAD, plain)) || areRising(numbers(HEAD, plain.slice(1)));
  return OTHER.test(prompt.normalize("NFKC")) || isTimed || (areRising(ends) && ends[0] === 0);
}

/** The number of each line, as seconds; none at all unless every line has one in the same place. */
function numbers(pattern, lines) {
  const found = lines.map((line) => pattern.exec(line)?.groups);
  return found.every((one) => one && one.lead === found[0].lead) ? found.map(valueOf) : [];
}

const areRising = (values) => values.length > 1 && values.slice(1).every((value, index) => values[index] < value);

const valueOf = ({ number }) => number.split(":").reduce((value, part) => value * 60 + Number(part), 0);
