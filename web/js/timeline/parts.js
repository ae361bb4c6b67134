// The pieces of the timeline's page: elements, buttons, and one cue as it is drawn. No state of their own.

import { t } from "../texts.js";
import { blockSeconds, shown } from "./model.js";

const GOLDEN_ANGLE = 137.5; // neighbours get colours far apart
const MIN_TICK_PIXELS = 56;
const TICK_SECONDS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];

/** An element with properties, attributes (names with a dash, and role) and children. */
export function made(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/**
 * Keys pressed here are not the host's: it leaves undo and redo alone where the focused element is a text area by
 * its `type` (pages before 1.58) or editable (since then), and it looks before any listener of ours could stop it.
 */
export function ownKeys(element) {
  return Object.defineProperties(element, { type: { value: "textarea" }, isContentEditable: { value: true } });
}

export function button(label, title, onClick) {
  const named = { textContent: label, title, "aria-label": title.split(" (")[0], tabIndex: 0 };
  const element = made("button", named);
  element.addEventListener("click", onClick);
  return ownKeys(element);
}

/** A time as a clock says it, to a tenth: 0:05.1, 1:02. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const rest = (tenths % 600) / 10;
  return `${Math.floor(tenths / 600)}:${rest < 10 ? "0" : ""}${rest}`;
}

/** What every change does to the past, in plain words. */
export function changeEffects() {
  return {
    auto: t("as Frame Sink says, else as the model learned it: recache, or keep for SGF"),
    recache: t("goes on smoothly"),
    refresh: t("goes on, and forgets the first look"),
    keep: t("changes slowly"),
    cut: t("a new scene"),
    blend: t("melts into it over some seconds"),
  };
}

/** The choices of what happens to the past, each with what it does. */
export function changeOptions() {
  const named = Object.entries(changeEffects());
  return named.map(([value, title]) => made("option", { value, textContent: value, title }));
}

export function emptyCue() {
  const parts = ["ll-blend", "ll-edge", "ll-policy", "ll-words"].map((className) => made("div", { className }));
  return ownKeys(made("div", { className: "ll-cue", role: "option" }, ...parts));
}

function kindWords({ policy, blendSeconds, seed, image }) {
  const change = policy === "blend" ? `blend ${shown(blendSeconds)}` : policy;
  return [change, seed && `seed ${seed}`, image && `image ${image}`].filter(Boolean).join(", ");
}

/** Draw a cue: `place` is { index, count, block, length, isSelected, numShared }, in blocks. */
export function drawCue(element, cue, place, pixels) {
  const [begins, ends] = [place.block, place.block + place.length].map((block) => blockSeconds(block, place.latentFrames));
  const [blend, edge, policy, words] = element.children;
  element.style.left = `${begins * pixels}px`;
  element.style.width = `${Math.max(6, (ends - begins) * pixels - 1)}px`;
  element.style.setProperty("--hue", (200 + place.index * GOLDEN_ANGLE) % 360);
  element.classList.toggle("ll-lost", place.length === 0);
  element.tabIndex = place.isSelected ? 0 : -1;
  element.setAttribute("aria-selected", place.isSelected);
  blend.style.width = `${cue.policy === "blend" ? cue.blendSeconds * pixels : 0}px`;
  edge.hidden = place.index === 0;
  policy.textContent = kindWords(cue);
  words.textContent = place.numShared ? `\u2026${cue.prompt.slice(place.numShared)}` : cue.prompt;
  const when = { cue: place.index + 1, cues: place.count, begin: clock(begins), end: clock(ends) };
  const label = t("Cue {cue} of {cues}, {begin} to {end}", when);
  element.setAttribute("aria-label", [label, kindWords(cue), cue.prompt].filter(Boolean).join(", "));
  const effect = { time: shown(cue.seconds), begin: clock(begins), block: place.block };
  element.title = `${cue.prompt}\n${t("{time}, takes effect at {begin} (block {block})", effect)}`;
}

/** Ticks of the ruler between two times, `pixels` a second. */
export function ticks(from, to, pixels) {
  const step = TICK_SECONDS.find((seconds) => seconds * pixels >= MIN_TICK_PIXELS) ?? 7200;
  const first = Math.floor(from / step);
  return Array.from({ length: Math.floor(to / step) - first + 1 }, (_, index) => {
    const tick = made("div", { className: "ll-tick", textContent: clock((first + index) * step) });
    tick.style.left = `${(first + index) * step * pixels}px`;
    return tick;
  });
}

/** How far a run is, and the prompts that were sent while it ran, where they took effect. */
export function drawRun(element, run, pixels) {
  const marks = (run?.cues ?? []).filter((cue) => cue.origin === "live");
  const titleOf = ({ seconds, prompt }) => t("sent live, from {time}: {prompt}", { time: clock(seconds), prompt });
  const drawn = marks.map((cue) => placed("ll-live", cue.seconds, titleOf(cue)));
  if (run?.isLive) drawn.push(placed("ll-now", run.seconds, t("{time} of video made", { time: clock(run.seconds) })));
  element.replaceChildren(...drawn);

  function placed(className, seconds, title) {
    const mark = made("div", { className, title });
    mark.style.left = `${seconds * pixels}px`;
    return mark;
  }
}

export const isTyping = (element) => ["INPUT", "TEXTAREA"].includes(element.tagName);
