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
    `(?<after>${SPACE}*(?:=>|-+>|\\u2192|\\u21d2)${SPACE}*|${SPACE}+(?:[-\\u2013\\u2014]+|\\|)${SPACE}+` +
    `|:${SPACE}*|${SPACE}+|$)(?<words>[^]*)`,
  "u",
);
const QUOTE = "[\"'`\\u2018\\u2019\\u201c\\u201d]";
const ZERO = "0+(?:[.:]0+)*(?![0-9.:]*[0-9])";
const NAME = "(?:frames?|f|time|t|at|from|start|seconds?|secs?|s|shot|scene|clip|part|cue|key|segment|step)";
// How other notations begin: {'cues': [, ["x", "y"], {0: "x"}, "0": "x", t=0 x, - time: 0, Frame 0: x,
// Shot 1 (0-5s): x, 0ms x, 0,x, 0-5: x. A prompt may well begin with a number, but hardly with a zero.
const OTHER = new RegExp(
  `^(?:[{\\[]${SPACE}*(?:${QUOTE}|[\\[(]?${SPACE}*[0-9.]+${SPACE}*(?:,|:(?!:)))` +
    `|${QUOTE}[0-9.:]+${SPACE}?s?${QUOTE}${SPACE}*[:=,]` +
    `|(?:[-*+\\u2022]${SPACE}*)?${QUOTE}?${NAME}${QUOTE}?${SPACE}*[:=]${SPACE}*${QUOTE}?${ZERO}` +
    `|(?:${NAME}(?:${SPACE}|#)*(?:[0-9]+[^0-9A-Za-z]{1,3})?)?${ZERO}` +
    `(?:(?:${SPACE}?ms|f|frames?|m|min)(?![0-9A-Za-z])|s?${SPACE}*(?:[:;|)\\]>]|,(?![0-9])|-${SPACE}*[0-9])))`,
  "iu",
);
const HEAD = new RegExp(
  "^(?<lead>[^0-9A-Za-z]{0,4}(?:[A-Za-z]+[^0-9A-Za-z]{0,3})?)" +
    `(?<number>[0-9]{1,9}(?::[0-9]{1,9}){0,3}(?:\\.[0-9]{1,9})?)${SPACE}?(?:s|ms|f|%)?(?![0-9A-Za-z])`,
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

/**
 * Whether what has no time that is read is a list of timed prompts all the same: it begins as one does, or all
 * its lines (or all but a title) begin alike with rising numbers.
 */
export function isOtherNotation(prompt, lines) {
  return OTHER.test(prompt) || areNumbered(lines) || areNumbered(lines.slice(1));
}

function areNumbered(lines) {
  const heads = lines.map((line) => HEAD.exec(line)?.groups);
  if (heads.length < 2 || !heads.every(Boolean)) return false;
  return heads.slice(1).every((head, index) => head.lead === heads[index].lead && valueOf(heads[index]) < valueOf(head));
}

const valueOf = ({ number }) => number.split(":").reduce((value, part) => value * 60 + Number(part), 0);
