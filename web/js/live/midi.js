/** Notes of MIDI keyboards and pads, through the browser, which is asked for them when `open` is first called. */

import { t } from "../texts.js";

const NOTE_ON = 0x90;
const NAMES = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"];

/** What musicians call a note by its number: 60 is C4. */
export function noteName(note) {
  return `${NAMES[note % 12]}${Math.floor(note / 12) - 1}`;
}

/** The note that a MIDI message begins, on any channel; null for other messages. */
export function noteOf([status, note, velocity]) {
  return (status & 0xf0) === NOTE_ON && velocity > 0 ? note : null;
}

class Midi {
  #access = null;
  #listeners = new Set();

  /** Ask the browser, once a page. Throws an Error with a sentence where there is no MIDI. */
  async open() {
    if (!navigator.requestMIDIAccess) {
      throw new Error(t("This page has no MIDI: it needs https or localhost, and a browser with WebMIDI."));
    }
    try {
      this.#access ??= await navigator.requestMIDIAccess();
    } catch (error) {
      throw new Error(t("The browser gave no MIDI: {error}", { error: error.message }));
    }
    this.#hear();
    this.#access.onstatechange = () => this.#hear(); // what is plugged in later
    if (!this.#access.inputs.size) throw new Error(t("No MIDI device is connected."));
  }

  /** Call `take(note)` for every note from now on. -> a function that ends it */
  listen(take) {
    this.#listeners.add(take);
    return () => this.#listeners.delete(take);
  }

  #hear() {
    for (const input of this.#access.inputs.values()) {
      input.onmidimessage = ({ data }) => {
        const note = noteOf(data);
        if (note !== null) for (const take of [...this.#listeners]) take(note);
      };
    }
  }
}

export const midi = new Midi();
