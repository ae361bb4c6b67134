/** Taking a run back: a scrubber over what was made, a seed, and the button that does it. */

import { blockLength } from "../timeline/blocks.js";
import { t } from "../texts.js";
import { isLive } from "./runs.js";
import { clock } from "./view.js";

const HEIGHT = 60;
const SEEDS = 2 ** 32;

export const BACK_STYLE = `
.longlive-back { display: flex; flex: none; flex-direction: column; gap: 6px; height: ${HEIGHT - 6}px; }
.longlive-back input[type=range] { flex: 1 1 80px; min-width: 0; margin: 0; padding: 0; accent-color: var(--p-primary-color, #4b8bd4); }
.longlive-back output { min-width: 52px; text-align: right; font-variant-numeric: tabular-nums; }
.longlive-back .longlive-back-seed { width: 96px; }
.longlive-back label { display: flex; gap: 4px; align-items: center; margin-right: auto; }
.longlive-back label input { height: auto; }
`;

/** An element with properties, ARIA label and children. */
function made(tag, { label, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

/** When a block of a run begins, in seconds; all but the first are of one length. */
export function beginOf(block, { block: newest, seconds, block_latent_frames: latentFrames }) {
  return block ? Math.max(0, seconds - (newest + 1 - block) * blockLength(latentFrames)) : 0;
}

export class Back {
  #snapshot = null;
  #actions;
  #canGo = false;

  /**
   * `actions`: seek(seconds) shows what is there; go({block, seed, keep}) takes the run back; position() is what
   * the player shows, in seconds; resized() when `height` changed.
   */
  constructor(actions) {
    this.#actions = actions;
    this.open = made("button", { type: "button", textContent: t("take back"), onclick: () => this.#toggle() });
    this.open.title = t("Go back to a time of the video, and on from there with another prompt or seed");
    this.#build();
    this.#render();
  }

  #build() {
    this.place = made("input", { type: "range", min: 0, max: 0, step: 1, value: 0, label: t("Where to go back to") });
    this.place.title = t("Everything before this place stays as it is");
    this.place.oninput = () => {
      this.#actions.seek(this.#seconds);
      this.#render();
    };
    this.time = made("output");
    this.seed = made("input", { type: "text", inputMode: "numeric", className: "longlive-back-seed" });
    Object.assign(this.seed, { placeholder: t("seed"), title: t("Another seed from there on; empty: the one that is used") });
    this.seed.setAttribute("aria-label", t("Seed from there on"));
    const dice = made("button", { type: "button", textContent: "⚄", label: t("A new random seed") });
    Object.assign(dice, { title: t("A new random seed"), onclick: () => this.#throw() });
    this.keep = made("input", { type: "checkbox" });
    const keep = made("label", {}, this.keep, t("keep as version"));
    keep.title = t("First save the video with what is taken back as a file of its own");
    this.go = made("button", { type: "button", textContent: t("take back to here"), onclick: () => this.#go() });
    this.go.title = t("Drop all from there on. The run goes on with what is typed as the live prompt, else with the schedule");
    this.element = made(
      "div",
      { className: "longlive-back", hidden: true },
      made("div", { className: "longlive-live-row" }, this.place, this.time),
      made("div", { className: "longlive-live-row" }, this.seed, dice, keep, this.go),
    );
    this.element.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation());
  }

  /** Pixels that it needs on the panel while it is open. */
  get height() {
    return this.element.hidden ? 0 : HEIGHT;
  }

  /** Show a run, which may be taken back or not. */
  take(snapshot, canGo) {
    const isOther = this.#snapshot?.run !== snapshot?.run;
    this.#snapshot = snapshot;
    this.#canGo = canGo && snapshot.block !== null;
    if (isOther && isLive(snapshot)) this.place.value = 0;
    this.#render();
  }

  get #seconds() {
    return beginOf(Number(this.place.value), this.#snapshot);
  }

  #toggle() {
    this.element.hidden = !this.element.hidden;
    if (!this.element.hidden && this.#canGo) this.#placeAt(this.#actions.position());
    this.#actions.resized();
    this.#render();
    if (!this.element.hidden) this.place.focus();
  }

  /** Where the player is: the last block that begins before. */
  #placeAt(seconds) {
    const { block } = this.#snapshot;
    this.place.max = block;
    this.place.value = block;
    while (Number(this.place.value) && this.#seconds > seconds) this.place.value = Number(this.place.value) - 1;
  }

  #throw() {
    this.seed.value = String(Math.floor(Math.random() * SEEDS));
  }

  #go() {
    const seed = this.seed.value.trim() || undefined;
    return this.#actions.go({ block: Number(this.place.value), seed, keep: this.keep.checked || undefined });
  }

  #render() {
    const isOpen = !this.element.hidden;
    this.open.setAttribute("aria-expanded", isOpen);
    this.open.setAttribute("aria-pressed", isOpen);
    this.open.disabled = !this.#canGo && !isOpen;
    for (const part of this.element.querySelectorAll("input, button")) part.disabled = !this.#canGo;
    if (!this.#canGo) return;
    this.place.max = this.#snapshot.block;
    this.time.textContent = clock(this.#seconds);
    this.place.setAttribute("aria-valuetext", this.time.textContent);
  }
}
