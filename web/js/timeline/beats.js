// The beats of a sound file on the timeline: chosen from a list, drawn on the ruler, and what a dragged edge snaps
// to. It knows neither the host nor nodes: files and times come from `source`, what is to be saved goes there.

import { t } from "../texts.js";
import { clock, made } from "./parts.js";

const SNAP_PIXELS = 8;
const MIN_PIXELS = 3; // between two marks; nearer ones are not drawn
const NONE = { file: "", times: [] };

/** Times as they are saved, in order; others are left out. */
export function checkedBeats(saved) {
  const times = Array.isArray(saved?.times) ? saved.times.filter((time) => Number.isFinite(time) && time >= 0) : [];
  return { file: String(saved?.file ?? ""), times: times.sort((one, other) => one - other) };
}

/** The nearest of the times, if it is within so many pixels; else the seconds as they are. */
export function snapped(times, seconds, pixels) {
  const distance = (time) => Math.abs(time - seconds) * pixels;
  const nearest = times.reduce((best, time) => (distance(time) < distance(best) ? time : best), Infinity);
  return distance(nearest) <= SNAP_PIXELS ? nearest : seconds;
}

/** Those times between two that have room to be drawn. */
export function drawnBeats(times, from, to, pixels) {
  const drawn = [];
  for (const time of times) {
    if (time >= from && time <= to && (time - (drawn.at(-1) ?? -Infinity)) * pixels >= MIN_PIXELS) drawn.push(time);
  }
  return drawn;
}

export class Beats {
  #beats = NONE;
  #source;

  /**
   * `source`: files() -> names, and times(file) -> seconds, both async; connected() -> the name of the file that is
   * the video's sound, or ""; save({ file, times }). `say(sentence, isError)` and `draw()` are the timeline's.
   */
  constructor(source, say, draw) {
    this.#source = source;
    Object.assign(this, { say, draw });
    this.files = made("select", { "aria-label": t("Sound file of the beats") });
    this.files.addEventListener("change", () => this.#choose(this.files.value));
    this.row = made("div", { className: "ll-fields", hidden: true }, made("label", {}, t("beats of"), this.files));
  }

  /** What a workflow had saved, or nothing. */
  restore(saved) {
    this.#beats = checkedBeats(saved);
    this.draw();
  }

  /** Show or hide the list of files. */
  async toggle() {
    this.row.hidden = !this.row.hidden;
    if (this.row.hidden) return;
    await this.#tried(async () => {
      const [connected, { file }] = [this.#source.connected(), this.#beats];
      const names = new Set([connected, file, ...(await this.#source.files())].filter(Boolean));
      const options = [...names].map((value) => made("option", { value, textContent: value }));
      this.files.replaceChildren(made("option", { value: "", textContent: t("none") }), ...options);
      this.files.value = file;
      if (connected && !file) await this.#choose(connected);
    });
  }

  /** Where an edge that is dragged to these seconds belongs; with Alt exactly there. */
  near(seconds, { altKey }, pixels) {
    return altKey ? seconds : snapped(this.#beats.times, seconds, pixels);
  }

  /** Marks of the ruler between two times. */
  marks(from, to, pixels) {
    return drawnBeats(this.#beats.times, from, to, pixels).map((time) => {
      const mark = made("div", { className: "ll-beat", title: t("beat at {time}", { time: clock(time) }) });
      mark.style.left = `${time * pixels}px`;
      return mark;
    });
  }

  async #choose(file) {
    await this.#tried(async () => {
      if (file) this.say(t("reading the beats of {file} ...", { file }));
      const beats = checkedBeats({ file, times: file ? await this.#source.times(file) : [] });
      this.#beats = beats;
      this.#source.save(beats);
      this.say(file ? t("{beats} beats of {file}", { beats: beats.times.length, file }) : "");
      this.draw();
    });
    this.files.value = this.#beats.file;
  }

  /** What the server refuses is said below the timeline. */
  async #tried(act) {
    try {
      await act();
    } catch (error) {
      this.say(error.message, true);
    }
  }
}
