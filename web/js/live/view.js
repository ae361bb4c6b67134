/** From a snapshot to what the panel shows: pure functions, no DOM. */

import { parse } from "../timeline/model.js";
import { t } from "../texts.js";
import { isLive } from "./runs.js";

const MAX_HALVINGS = 4; // of a place in the strip
const SENDABLE = ["starting", "running", "paused"];

/** Seconds as people read them: 5.1 s, 1:02.3. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  if (tenths < 600) return `${(tenths / 10).toFixed(1)} s`;
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return `${Math.floor(tenths / 600)}:${rest}`;
}

/** What the server must know of a prompt; undefined where it shall decide. A new scene begins with an image. */
export function message(prompt, policy, blendSeconds, image = undefined) {
  return {
    prompt: prompt.trim(),
    policy: policy === "auto" || image ? undefined : policy,
    blend: policy === "blend" && !image ? blendSeconds : undefined,
    image,
  };
}

/** Everything the panel shows of a run; of none if there is no snapshot. `failure` came before a run began. */
export function view(snapshot, failure = "") {
  const state = snapshot?.state;
  const isOlder = failure && !snapshot?.error; // what failed was not this run
  return {
    hint: snapshot || failure ? "" : t("Press Run: while the video is made you can watch it here and send prompts."),
    status: isOlder ? t("failed") : snapshot ? status(snapshot) : "",
    error: failure || (snapshot?.error ?? ""),
    notes: (snapshot?.notes ?? []).join("\n"),
    canSend: SENDABLE.includes(state),
    canPause: state === "running" || state === "paused",
    canStop: SENDABLE.includes(state),
    canFreeze: Boolean(snapshot?.cues.length),
    isPaused: state === "paused",
    pending: pending(snapshot?.pending),
    marks: snapshot ? marks(snapshot) : [],
  };
}

function status({ state, block, num_blocks: numBlocks, seconds, fps, pace }) {
  const parts = [t(state)];
  if (block !== null) {
    const place = { block: block + 1, blocks: numBlocks };
    parts.push(numBlocks ? t("block {block} of {blocks}", place) : t("block {block}", place), clock(seconds));
  }
  if (fps) parts.push(`${fps.toFixed(fps < 10 ? 1 : 0)} fps`);
  if (pace === "real time") parts.push(t(pace));
  return parts.join(" · ");
}

function pending(waiting) {
  if (!waiting) return "";
  if (waiting.state === "failed") return t("#{ticket} failed: {error}", waiting);
  if (waiting.state === "encoding") return t("#{ticket} being read: {prompt}", waiting);
  return warned(t("#{ticket} takes effect at the next block: {prompt}", waiting), waiting.warnings);
}

/**
 * Cues as places of the strip, in order: `start` and `width` in percent. The newest has the widest place, every
 * older one half of the next, down to a few that are equal.
 */
function marks({ cues }) {
  const widths = cues.map((_, index) => 2 ** -Math.min(cues.length - 1 - index, MAX_HALVINGS));
  const percent = 100 / widths.reduce((sum, width) => sum + width, 0);
  let start = 0;
  return cues.map((cue, index) => {
    const width = widths[index] * percent;
    start += width;
    return { start: start - width, width, origin: cue.origin, text: cue.prompt, label: markLabel(cue) };
  });
}

function markLabel({ seconds, origin, policy, blend, image, seed, prompt, latency }) {
  const change = policy === "blend" && blend ? `blend ${blend} s` : policy;
  const how = [clock(seconds), t(origin), change, image, seed !== undefined && `${t("seed")} ${seed}`];
  const mark = `${how.filter(Boolean).join(", ")}: ${prompt}`;
  if (latency === null || latency === undefined) return mark;
  return t("{mark} ({seconds} s after it was sent)", { mark, seconds: latency.toFixed(2) });
}

/**
 * What became of a prompt sent from this page.
 * -> {kind, text, isSettled}: kind "waiting" | "taken" | "replaced" | "failed" | "late"
 */
export function fate(snapshot, ticket) {
  const cue = snapshot.cues.find((taken) => taken.ticket === ticket);
  if (cue) return { kind: "taken", text: taken(ticket, cue), isSettled: cue.latency !== null };
  const waiting = snapshot.pending?.ticket;
  if (waiting === ticket && snapshot.pending.state === "failed") {
    return { kind: "failed", text: t("#{ticket} failed: {error}", snapshot.pending), isSettled: true };
  }
  if (waiting > ticket || snapshot.cues.some((other) => other.ticket > ticket)) {
    return { kind: "replaced", text: t("#{ticket} was replaced by a newer prompt", { ticket }), isSettled: true };
  }
  const sent = warned(t("#{ticket} sent", { ticket }), snapshot.pending?.warnings);
  if (isLive(snapshot)) return { kind: "waiting", text: sent, isSettled: false };
  return { kind: "late", text: t("#{ticket} came too late: the run has ended", { ticket }), isSettled: true };
}

function taken(ticket, { seconds, latency, warnings }) {
  const effect = { ticket, time: clock(seconds), seconds: latency?.toFixed(2) };
  if (latency === null) return warned(t("#{ticket} took effect at {time}", effect), warnings);
  return warned(t("#{ticket} took effect at {time}, first frames {seconds} s after it was sent", effect), warnings);
}

/** A sentence, and before it what a viewer will wonder about. */
function warned(sentence, warnings = []) {
  return [...warnings, sentence].join("; ");
}

/** Whether a run, not known to be of any workflow, was made from other prompts than those of a schedule text. */
export function isStrange(snapshot, text) {
  return !snapshot.workflow && hasOtherPrompts(snapshot, text);
}

/** Whether a run was made from other prompts than those of a schedule text. */
export function hasOtherPrompts({ cues }, text) {
  const prompts = promptsOf(text);
  return cues.some((cue) => cue.origin === "schedule" && !prompts.includes(cue.prompt));
}

/**
 * Whether a node with this schedule text (undefined: not known) shows a run: one that goes on, or whose end the page
 * has seen; none that was made from other prompts, unless it goes on in this very workflow.
 */
export function isShown(snapshot, text, isSeen) {
  const isOther = isLive(snapshot) ? isStrange : hasOtherPrompts;
  return (isLive(snapshot) || isSeen) && (text === undefined || !isOther(snapshot, text));
}

function promptsOf(text) {
  try {
    return parse(text).cues.map((cue) => cue.prompt);
  } catch {
    return []; // nobody could say that they are the same
  }
}

/** What makes the next run repeat one: widget values of the stream. While it goes on, its length is not known. */
export function replayed({ seed, settings }, isGoingOn) {
  return { seed, control_after_generate: "fixed", ...(!isGoingOn && { seconds: settings.seconds }) };
}
