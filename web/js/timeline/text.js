// Schedule text, one cue a line <-> cues. The same grammar as longlive_core/schedule/text_format.py.

import {
  AUTO,
  SECONDS,
  SPACE,
  ScheduleError,
  TIME_SPELLINGS,
  checkNumberOfCues,
  checkOrder,
  checkedAlways,
  checkedSeconds,
  makeCue,
  quoted,
  spelled,
} from "./cues.js";
import { OTHER_NOTATION, isBareRange, isOtherNotation, listed } from "./notations.js";
import { kindsOf, readWords, writtenKinds } from "./prefix.js";

const ALWAYS = /^always:/i;
const CUE_LINE = new RegExp(`^([^${SPACE.slice(1)}*?)(${SPACE}*=>|${SPACE}+|$)([^]*)`);
const INDENT = new RegExp(`^${SPACE}*`);
const TIME = new RegExp(`^(?:(?:[0-9]+:[0-5]?[0-9]|[0-9]+):[0-5][0-9](?:\\.[0-9]+)?|${SECONDS})$`);
// How a first line says that it has a time: 0, 5s, 0:5, 5sec, but not the 3 of "3 cats".
const TIME_LIKE =
  /^(?:0+(?:\.0+)?|[-+]?\.?[0-9][0-9.,]*(?:s|secs?|seconds?)[:,]?|[-+]?[0-9]+:[0-9.,:]*s?)$/;
const COLOUR = /^#(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{6}(?![0-9A-Za-z])/;

const lengthOf = (text) => [...text].length; // in characters, as columns count

function located(line, column, read) {
  try {
    return read();
  } catch (error) {
    throw error instanceof ScheduleError ? error.at(line, column) : error;
  }
}

/** The lines of a text with their numbers; only LF, CRLF and CR end a line. */
export function numberedLines(text) {
  const lines = text.split(/\r\n|\r|\n/);
  if (lines.at(-1) === "") lines.pop(); // what follows the last line's end
  return lines.map((raw, index) => {
    const indent = INDENT.exec(raw)[0];
    const isBlank = indent.length === raw.length;
    return { number: index + 1, raw, indent, isBlank, isComment: isComment(indent, raw.slice(indent.length)) };
  });
}

/** Whether it begins with #; an indented line may also go on with a colour such as #001f3f. */
function isComment(indent, text) {
  return text[0] === "#" && !(indent && COLOUR.test(text));
}

/** Lines with the indent of the first cue taken away; `text` is null for blanks and comments. */
function dedented(lines) {
  const first = lines.find((line) => !line.isBlank && !line.isComment);
  if (!first) {
    const advice = "write a prompt, or cues such as: 0 => a red circle";
    throw new ScheduleError(`the schedule is empty; ${advice}`, { line: 1, column: 1 });
  }
  return lines.map((line) => {
    if (line.isBlank || line.isComment) return { ...line, text: null };
    const isIndented = line.raw.startsWith(first.indent);
    const text = isIndented ? line.raw.slice(first.indent.length) : line.raw;
    const column = 1 + (isIndented ? lengthOf(first.indent) : 0);
    return { ...line, text, column, isContinuation: INDENT.exec(text)[0] !== "" };
  });
}

/** A line -> its time, its words, and whether what comes first is surely a time. */
function partsOf(text) {
  const [, time, arrow, words] = CUE_LINE.exec(text);
  return listed(text) ?? { time, words, isSure: arrow.endsWith("=>") };
}

function beginsWithTime(text) {
  const { time, isSure } = partsOf(text);
  return isSure || TIME_LIKE.test(time);
}

/** The schedule of a text without times, which is one prompt. Its comments stay, before the cue or in `tail`. */
function fromPlain(lines) {
  const filled = lines.filter((line) => line.text !== null);
  const [first, end] = [lines.indexOf(filled[0]), lines.indexOf(filled.at(-1)) + 1];
  const inner = lines.slice(first, end).filter((line) => line.isComment);
  const lead = joined([...lines.slice(0, first), ...inner]);
  const cue = makeCue({ seconds: 0, prompt: plainPrompt(filled) });
  return { cues: [{ ...cue, lead }], extra: {}, tail: joined(lines.slice(end)) };
}

/** The one prompt of a text without times; refuses a text that has some, only not at its beginning. */
function plainPrompt(lines) {
  for (const line of lines) {
    if (!line.isContinuation && beginsWithTime(line.text)) {
      throw new ScheduleError(
        "this line begins with a time and the first one does not; begin the first line with 0 => " +
          "(or, where no time is meant, indent this line)",
        { line: line.number, column: line.column },
      );
    }
  }
  const prompt = lines.map((line) => line.text).join(" ");
  if (isOtherNotation(prompt, lines.filter((line) => !line.isContinuation).map((line) => line.text))) {
    throw new ScheduleError(OTHER_NOTATION, { line: lines[0].number, column: lines[0].column });
  }
  return prompt;
}

/** Each cue's line with those that continue it, and the blanks and comments before it; those at the end. */
function grouped(lines) {
  const groups = [];
  let skipped = [];
  for (const line of lines) {
    if (line.text === null) skipped.push(line);
    else if (line.isContinuation) groups.at(-1).lines.push(...skipped.splice(0), line);
    else groups.push({ lead: skipped.splice(0), lines: [line] });
  }
  return { groups, tail: skipped };
}

const joined = (lines) => lines.map((line) => `${line.text ?? line.raw}\n`).join("");

function readCue({ lead, lines }) {
  const [first, ...rest] = lines.filter((line) => line.text !== null);
  const { time, words } = partsOf(first.text);
  const seconds = located(first.number, first.column, () => {
    if (isBareRange(first.text)) throw new ScheduleError(OTHER_NOTATION);
    return readTime(time);
  });
  const column = first.column + lengthOf(first.text.slice(0, first.text.length - words.length));
  const cue = located(first.number, column, () => {
    const all = [words, ...rest.map((line) => line.text)].join(" ");
    return makeCue({ seconds, ...readWords(all.slice(INDENT.exec(all)[0].length)) });
  });
  return { ...cue, lead: joined(lead), source: joined(lines) };
}

/** `5`, `5s`, `0:05` or `1:02:03` -> seconds. */
export function readTime(text) {
  if (!TIME.test(text)) throw new ScheduleError(whyNotATime(text));
  const parts = text.replace(/s$/, "").split(":");
  return checkedSeconds(parts.reduce((seconds, part) => seconds * 60 + Number(part), 0));
}

function whyNotATime(text) {
  if (!text) return `a time is missing; ${TIME_SPELLINGS}`;
  if (text.startsWith("-") && TIME.test(text.slice(1))) {
    return `the time ${quoted(text)} is negative; the video begins at 0`;
  }
  return (
    `${quoted(text)} is not a time; ${TIME_SPELLINGS}; indent a line that continues a prompt, and write ` +
    "0 => before a first prompt that begins like a time"
  );
}

/** Schedule text -> schedule. Comments and blank lines stay with the cue after them (`lead`) or in `tail`. */
export function fromText(text) {
  const { always, head, lines } = alwaysFirst(dedented(numberedLines(text)));
  return { ...fromLines(lines), always, head };
}

/**
 * The words of a first line `always: ...` with those that continue it, its lines and what is before them (`head`),
 * and the other lines.
 */
function alwaysFirst(lines) {
  const first = lines.findIndex((line) => line.text !== null);
  const prefix = ALWAYS.exec(lines[first].text);
  if (!prefix) return { always: "", head: "", lines };
  const isNext = (line, index) => index > first && line.text !== null && !line.isContinuation;
  const next = lines.findIndex(isNext);
  const end = lines.slice(0, next).findLastIndex((line) => line.text !== null) + 1;
  return located(lines[first].number, lines[first].column, () => {
    if (next < 0) {
      throw new ScheduleError(
        "no prompt follows what is in every prompt; write one on a line of its own, not indented (where this is the " +
          "prompt, write 0 => before it)",
      );
    }
    const own = lines.slice(first, end).filter((line) => line.text !== null);
    const words = own.map((line) => line.text).join(" ");
    const always = checkedAlways(words.slice(prefix[0].length));
    return { always, head: joined(lines.slice(0, end)), lines: lines.slice(end) };
  });
}

function fromLines(lines) {
  if (!beginsWithTime(lines.find((line) => line.text !== null).text)) return fromPlain(lines);
  const { groups, tail } = grouped(lines);
  checkNumberOfCues(groups.length);
  const cues = groups.map(readCue);
  try {
    checkOrder(cues);
  } catch (error) {
    const first = groups[error.cue - 1].lines[0];
    throw error.at(first.number, first.column);
  }
  return { cues, extra: {}, tail: joined(tail) };
}

/** The comments before a cue and those between its lines: all of them before it. */
export function commentsOf({ lead = "", source = "" }) {
  return lead + joined(numberedLines(source).filter((line) => line.isComment));
}

/** The line for what is in every prompt, if there is something. */
export const writtenAlways = (always) => (always ? `always: ${always}\n` : "");

/** A cue as schedule text: its own lines while nobody has edited it, with the comments before it. */
function writtenCue(cue) {
  return (cue.lead ?? "") + (cue.source ?? writtenLine(cue));
}

function writtenLine(cue) {
  const { seconds, prompt } = cue;
  const kinds = writtenKinds(cue);
  if (!kinds.length && kindsOf(prompt).length) kinds.push(AUTO);
  return `${spelled(seconds)} => ${kinds.join(", ")}${kinds.length ? ": " : ""}${prompt}\n`;
}

/** Schedule text of a schedule; `extra` has no place in it. */
export function toText(schedule) {
  const head = schedule.head ?? writtenAlways(schedule.always);
  return head + schedule.cues.map(writtenCue).join("") + (schedule.tail ?? "");
}
