/**
 * Prompt cards: a row of own buttons that send a prompt with its change, also by the keys 1 to 9 and by MIDI notes.
 * A card is { prompt, name?, policy?, blend?, note? }; the node keeps them, see `live.js`.
 */

import { DEFAULT_BLEND_SECONDS, MAX_BLEND_SECONDS, POLICIES } from "../timeline/cues.js";
import { changeOptions, made } from "../timeline/parts.js";
import { t } from "../texts.js";
import { midi, noteName } from "./midi.js";

const MAX_CARDS = 64;
const LABEL_CHARACTERS = 22; // of a prompt without a name
const ROW_HEIGHT = 30;
const CARDS_IN_A_ROW = 4;
const MAX_ROWS = 2; // more are scrolled to
const DIGIT = /^(?:Digit|Numpad)([1-9])$/;
const TYPED_IN = "textarea, input, select";
const ARROWS = { ArrowLeft: -1, ArrowRight: 1 };

export const STYLE = `
.longlive-live { position: relative; outline: none; }
.longlive-live-cards { display: flex; flex-wrap: wrap; max-width: 100%; gap: 4px; max-height: 52px; overflow-y: auto; }
.longlive-live-cards button { max-width: 160px; overflow: hidden; text-overflow: ellipsis; }
.longlive-live-cards button[data-number]::before { content: attr(data-number) " "; opacity: .5; }
.longlive-live-cards button[aria-disabled=true] { opacity: .6; }
.longlive-live-cards button[aria-pressed=true] { border-color: var(--p-primary-color, #4b8bd4); }
.longlive-live-card { position: absolute; inset: auto 4px 4px; z-index: 1; display: flex; flex-direction: column;
  gap: 6px; padding: 8px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 6px;
  background: var(--comfy-menu-bg, #353535); box-shadow: 0 2px 10px #0008; }
.longlive-live-card input[type=text] { flex: 1 1 80px; min-width: 0; }
`;

/** The cards in a saved value; what is none is left out. */
export function cardsOf(value) {
  const saved = Array.isArray(value) ? value : [];
  return saved.map(checked).filter((card) => card.prompt).slice(0, MAX_CARDS);
}

/** A card with what it needs; "auto", no name and no note are left out. */
function checked(value) {
  const { prompt, name, policy, blend, note } = value ?? {};
  const card = { prompt: typeof prompt === "string" ? prompt.trim() : "" };
  if (typeof name === "string" && name.trim()) card.name = name.trim();
  if (POLICIES.includes(policy)) card.policy = policy;
  if (policy === "blend") card.blend = blend > 0 && blend <= MAX_BLEND_SECONDS ? Number(blend) : DEFAULT_BLEND_SECONDS;
  if (Number.isInteger(note) && note >= 0 && note < 128) card.note = note;
  return card;
}

/** The cards with one of them at another place, as far as there is one. */
export function moved(cards, from, to) {
  const others = cards.toSpliced(from, 1);
  return others.toSpliced(Math.max(0, Math.min(others.length, to)), 0, cards[from]);
}

/** The cards with one put in place of the one at `index`, or added; of cards with the same note the others lose it. */
export function replaced(cards, index, card) {
  const silent = cards.map(({ note, ...rest }) => (note === undefined || note === card.note ? rest : { ...rest, note }));
  return silent.toSpliced(index, 1, card);
}

/** What stands on a card. */
export function labelOf({ name, prompt }) {
  return name ?? (prompt.length > LABEL_CHARACTERS ? `${prompt.slice(0, LABEL_CHARACTERS).trim()}\u2026` : prompt);
}

/** What a card does, in words. */
export function titleOf({ prompt, policy, blend, note }) {
  const change = policy === "blend" ? `blend ${blend} s` : policy;
  return [prompt, change, note !== undefined && noteName(note)].filter(Boolean).join(" \u00b7 ");
}

/** The number of the card, from 0, that a key presses; null for other keys, and where one types. */
export function indexOfKey({ code, ctrlKey, metaKey, altKey, target }) {
  const digit = DIGIT.exec(code)?.[1];
  return !digit || ctrlKey || metaKey || altKey || target.closest?.(TYPED_IN) ? null : Number(digit) - 1;
}

function button(label, title, onclick) {
  return made("button", { type: "button", textContent: label, title, onclick });
}

export class Cards {
  #cards = [];
  #actions;
  #isEditing = false;
  #canSend = false;
  #dragged = null;
  #unlisten = null;
  #form = null;

  /** `actions`: send(card); changed(cards), to be kept; say(sentence); resized() when `height` changed. */
  constructor(actions) {
    this.#actions = actions;
    this.element = made("div", { className: "longlive-live-cards", role: "toolbar", "aria-label": t("Prompt cards") });
    this.element.addEventListener("keydown", (event) => this.#moveByKey(event));
    this.#render();
  }

  /** Pixels that the prompt cards need: with none, the button that adds one is in a row with others. */
  get height() {
    return ROW_HEIGHT * Math.min(MAX_ROWS, Math.ceil(this.#cards.length / CARDS_IN_A_ROW));
  }

  /** Whether a prompt would be taken now. */
  set canSend(canSend) {
    if (this.#canSend === canSend) return;
    this.#canSend = canSend;
    for (const card of this.#buttons) card.setAttribute("aria-disabled", !canSend && !this.#isEditing);
  }

  /** Show cards as they were saved. */
  show(cards) {
    this.#closeForm();
    this.#cards = cardsOf(cards);
    if (!this.#cards.some(({ note }) => note !== undefined)) this.#listen(false);
    this.#render();
  }

  /** The keys 1 to 9 press cards while `element` has the focus, unless it is where one types. */
  listenTo(element) {
    element.addEventListener("keydown", (event) => {
      const index = indexOfKey(event);
      if (index === null || !this.#cards[index] || this.#form) return;
      event.preventDefault();
      event.stopPropagation();
      if (!event.repeat) this.#press(this.#cards[index]);
    });
  }

  /** The node is gone. */
  close() {
    this.#listen(false);
    this.#closeForm();
  }

  get #buttons() {
    return this.element.querySelectorAll("[draggable]");
  }

  #press(card) {
    if (this.#canSend) this.#actions.send(card);
    else this.#actions.say(t("Nothing runs: press Run, then this prompt card sends its prompt."));
  }

  #keep(cards) {
    const { height } = this;
    this.#cards = cardsOf(cards);
    this.#render();
    this.#actions.changed(this.#cards);
    if (this.height !== height) this.#actions.resized();
  }

  #render() {
    const hasNotes = this.#cards.some(({ note }) => note !== undefined);
    const add = button(this.#cards.length ? "+" : t("+ prompt card"), t("Add a prompt card"), () => this.#edit(null));
    const edit = button("\u270e", t("Edit: press a prompt card to change it; drag, or Shift and arrows, to move it"), () => {
      this.#isEditing = !this.#isEditing;
      this.#render();
    });
    const notes = button("MIDI", t("Let the notes of a MIDI device press prompt cards"), () => this.#toggleMidi());
    edit.setAttribute("aria-label", t("Edit prompt cards"));
    edit.setAttribute("aria-pressed", this.#isEditing);
    notes.setAttribute("aria-pressed", this.#unlisten !== null);
    add.setAttribute("aria-label", add.title);
    const tools = [add, this.#cards.length && edit, hasNotes && notes].filter(Boolean);
    const focused = [...this.element.children].indexOf(document.activeElement);
    this.element.replaceChildren(...this.#cards.map((card, index) => this.#button(card, index)), ...tools);
    if (focused >= 0) this.element.children[Math.min(focused, this.element.children.length - 1)].focus();
  }

  #button(card, index) {
    const element = button(labelOf(card), titleOf(card), () => (this.#isEditing ? this.#edit(index) : this.#press(card)));
    element.setAttribute("aria-label", labelOf(card));
    if (index < 9) element.dataset.number = element.ariaKeyShortcuts = index + 1;
    element.setAttribute("aria-disabled", !this.#canSend && !this.#isEditing);
    element.draggable = true;
    element.addEventListener("dragstart", (event) => {
      this.#dragged = index;
      event.dataTransfer.setData("text/plain", card.prompt);
    });
    element.addEventListener("dragend", () => (this.#dragged = null));
    element.addEventListener("dragover", (event) => this.#dragged !== null && event.preventDefault());
    element.addEventListener("drop", (event) => {
      if (this.#dragged === null) return;
      event.preventDefault();
      event.stopPropagation(); // ComfyUI takes what is dropped on its page for a file
      this.#keep(moved(this.#cards, this.#dragged, index));
    });
    return element;
  }

  #moveByKey(event) {
    const index = [...this.#buttons].indexOf(event.target);
    if (index < 0 || !event.shiftKey || !ARROWS[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    const to = Math.max(0, Math.min(this.#cards.length - 1, index + ARROWS[event.key]));
    if (to !== index) this.#keep(moved(this.#cards, index, to));
    this.#buttons[to].focus();
  }

  /** Open the form of the card at `index`; null for another one. */
  #edit(index) {
    this.#closeForm();
    this.#form = new CardForm(this.#cards[index] ?? { prompt: "" }, {
      say: this.#actions.say,
      close: () => this.#closeForm(),
      save: (card) => {
        this.#closeForm();
        this.#keep(replaced(this.#cards, index ?? this.#cards.length, card));
        if (card.note !== undefined) this.#listen(true);
      },
      remove: () => {
        this.#closeForm();
        if (index !== null) this.#keep(this.#cards.toSpliced(index, 1));
      },
    });
    this.element.after(this.#form.element);
    this.#form.focus();
  }

  #closeForm() {
    if (this.#form?.element.contains(document.activeElement)) this.element.closest("[tabindex]")?.focus(); // for the keys
    this.#form?.close();
    this.#form = null;
  }

  async #toggleMidi() {
    try {
      if (!this.#unlisten) await midi.open();
      this.#listen(!this.#unlisten);
    } catch (error) {
      this.#actions.say(error.message);
    }
  }

  /** Let notes press cards, or no longer. */
  #listen(isOn) {
    this.#unlisten?.();
    this.#unlisten = isOn ? midi.listen((note) => this.#note(note)) : null;
    this.#render();
  }

  #note(note) {
    const card = this.#cards.find((one) => one.note === note);
    if (card && !this.#form) this.#press(card);
  }
}

/** Where one card is written. */
class CardForm {
  #actions;
  #note;
  #unlisten = null;

  /** `actions`: save(card), remove(), close(), say(sentence). */
  constructor(card, actions) {
    this.#actions = actions;
    this.#note = card.note;
    this.#build(card);
    this.element = made(
      "div",
      { className: "longlive-live-card", role: "dialog", "aria-label": t("Prompt card") },
      made("div", { className: "longlive-live-row" }, this.name, this.policy, this.blend, this.learn),
      this.prompt,
      made("div", { className: "longlive-live-row" }, ...this.#tools(card)),
    );
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.policy.addEventListener("change", () => this.#render());
    this.#render();
  }

  focus() {
    this.prompt.focus();
  }

  close() {
    this.#unlisten?.();
    this.element.remove();
  }

  #build({ name = "", prompt, policy = "auto", blend = DEFAULT_BLEND_SECONDS }) {
    const words = t("What the video shows from then on");
    this.name = made("input", { type: "text", value: name, placeholder: t("Name"), "aria-label": t("Name") });
    this.prompt = made("textarea", { value: prompt, placeholder: words, "aria-label": t("Prompt") });
    this.policy = made("select", { title: t("What happens to the past"), "aria-label": t("Change") }, ...changeOptions());
    this.policy.value = policy;
    const limits = { type: "number", min: 0.25, max: MAX_BLEND_SECONDS, step: 0.25, value: blend };
    this.blend = made("input", { ...limits, title: t("Seconds of the blend"), "aria-label": t("Seconds of the blend") });
    const title = t("Press, then play a note of a MIDI device: it presses this prompt card. Press again for none.");
    this.learn = button("", title, () => this.#learn());
  }

  #tools({ prompt }) {
    const save = button(t("save"), t("Keep this prompt card in the workflow (Enter)"), () => this.#save());
    const cancel = button(t("cancel"), t("Change nothing (Escape)"), () => this.#actions.close());
    const remove = button(t("remove"), t("Remove this prompt card"), () => this.#actions.remove());
    save.className = "longlive-live-main";
    return prompt ? [remove, cancel, save] : [cancel, save];
  }

  #render() {
    this.blend.hidden = this.policy.value !== "blend";
    const note = this.#note === undefined ? t("learn") : noteName(this.#note);
    this.learn.textContent = this.#unlisten ? t("play a note") : note;
    this.learn.setAttribute("aria-pressed", this.#unlisten !== null);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey) return; // ComfyUI's shortcuts, as Ctrl-Enter to run
    event.stopPropagation();
    if (event.key === "Escape") this.#actions.close();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.target.type === "button") return;
    event.preventDefault();
    this.#save();
  }

  #save() {
    const [name, prompt] = [this.name.value, this.prompt.value];
    if (!prompt.trim()) return this.prompt.focus();
    this.#actions.save(
      checked({ name, prompt, policy: this.policy.value, blend: Number(this.blend.value), note: this.#note }),
    );
  }

  /** Take the next note that is played; pressed while it waits, the card has none. */
  async #learn() {
    if (this.#unlisten) return this.#take(undefined);
    try {
      await midi.open();
    } catch (error) {
      return this.#actions.say(error.message);
    }
    this.#unlisten = midi.listen((note) => this.#take(note));
    this.#render();
  }

  #take(note) {
    this.#unlisten();
    this.#unlisten = null;
    this.#note = note;
    this.#render();
  }
}
