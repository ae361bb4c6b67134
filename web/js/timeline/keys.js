// What the keys do on the timeline.

import { t } from "../texts.js";
import * as model from "./model.js";
import { isTyping } from "./parts.js";

/** What the keys and the mouse do, one line each. */
export function shortcuts() {
  return [
    t("Arrows: the cue before or after. Home, End: the first, the last."),
    t("Alt + arrows: move its beginning by a block; with Shift its end."),
    t("Ctrl + arrows: change places with its neighbour."),
    t("Enter: edit the prompt; Enter or Esc: back to the cue."),
    t("Insert or A: a new cue at the end. S: split. D: duplicate. Delete: delete."),
    t("P: next change. Ctrl Z, Ctrl Shift Z: undo, redo. + - 0: zoom."),
    t("Ctrl C: copy the schedule. Ctrl V: paste schedule text, timeline JSON or JSONL."),
    t("Mouse: drag edges, drag a cue to another place, double-click the ruler for a new cue there, Ctrl + wheel zooms."),
  ].join("\n");
}

// What fields and the timeline edit with, Ctrl held too; and the modifiers, whose release the host would miss.
const EDITING = /^([acvxyz]|Arrow.*|Home|End|Backspace|Delete|Insert|Control|Meta|Shift|Alt)$/i;

/** Whether a key may be one of the host's commands, such as Ctrl+Enter. A letter with Ctrl and Alt is typed (AltGr). */
export function isCommand(event) {
  const isTyped = event.altKey && event.key.length === 1;
  return (event.ctrlKey || event.metaKey) && !isTyped && !EDITING.test(event.key);
}

/** A key pressed somewhere in the timeline: the host sees only what may be a command of its own. */
export function onKey(view, event) {
  if (!isCommand(event)) event.stopPropagation();
  if (event.isComposing) return; // an input method uses Enter and Esc for itself
  const act = keysFor(view, event.target)[keyName(event)];
  if (!act) return;
  event.preventDefault();
  act();
}

function keysFor(view, target) {
  if (isTyping(target)) return fieldKeys(view);
  return target.classList.contains("ll-cue") ? { ...keys(view), ...cueKeys(view) } : keys(view);
}

function fieldKeys(view) {
  const back = () => view.focusCue();
  return { Enter: back, Escape: back };
}

function keys(view) {
  return {
    "Ctrl+z": () => view.undo(),
    "Ctrl+Shift+z": () => view.redo(),
    "Ctrl+y": () => view.redo(),
    "+": () => view.zoomBy(1),
    "=": () => view.zoomBy(1),
    "-": () => view.zoomBy(-1),
    0: () => view.zoomTo(0),
    Escape: () => view.showHelp(false),
  };
}

/** Keys of a focused cue. */
function cueKeys(view) {
  const act = (name) => () => view.edit(name) && view.focusCue();
  const nudged = (index, blocks) => () => nudge(view, index, blocks);
  const at = view.selected;
  return {
    ArrowLeft: () => view.select(at - 1),
    ArrowRight: () => view.select(at + 1),
    Home: () => view.select(0),
    End: () => view.select(view.schedule.cues.length - 1),
    "Alt+ArrowLeft": nudged(at, -1),
    "Alt+ArrowRight": nudged(at, 1),
    "Alt+Shift+ArrowLeft": nudged(at + 1, -1),
    "Alt+Shift+ArrowRight": nudged(at + 1, 1),
    "Ctrl+ArrowLeft": act("earlier"),
    "Ctrl+ArrowRight": act("later"),
    Enter: () => view.editPrompt(),
    F2: () => view.editPrompt(),
    Insert: () => view.add(),
    a: () => view.add(),
    s: act("split"),
    d: act("duplicate"),
    Delete: act("delete"),
    Backspace: act("delete"),
    p: () => nextPolicy(view),
  };
}

function nudge(view, index, blocks) {
  if (index === 0 || index >= view.schedule.cues.length) return;
  view.commit(model.nudgeEdge(view.schedule, index, blocks), `edge ${index}`);
}

function nextPolicy(view) {
  const names = [null, ...model.POLICIES];
  const { policy } = view.schedule.cues[view.selected];
  view.edit("policy", names[(names.indexOf(policy) + 1) % names.length]);
}

/** `Ctrl+Shift+z`: how a key with its modifiers is looked up. Letters are small; signs have no Shift. */
function keyName(event) {
  const isSign = event.key.length === 1 && !/[a-z]/i.test(event.key);
  const modifiers = { Ctrl: event.ctrlKey || event.metaKey, Alt: event.altKey, Shift: event.shiftKey && !isSign };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  return [...Object.keys(modifiers).filter((name) => modifiers[name]), key].join("+");
}
