// The timeline on the page: shows a schedule text and lets it be edited by mouse and keyboard. It knows
// neither the host nor nodes: text comes in through `show`, and leaves through `onEdit`.

import { chooseImage, takeDropped } from "../images.js";
import { t } from "../texts.js";
import * as model from "./model.js";
import { Beats } from "./beats.js";
import { isCommand, onKey, shortcuts } from "./keys.js";
import { button, changeEffects, changeOptions, clock, drawCue, drawRun, emptyCue, isTyping, made, ownKeys, ticks } from "./parts.js";
import { onPress, secondsAt } from "./pointer.js";
import { addStyle } from "./style.js";

const SPARE = 0.06; // of ruler behind the end, as a part of it
const MAX_PIXELS_PER_SECOND = 240;
const ZOOM = 1.5;
const TICK_PIXELS = 30; // what a tick's words need
const UNREAD = model.parse("0 ?"); // stands for a text that cannot be read
UNREAD.cues[0].prompt = "";

export class TimelineView {
  #schedule;
  #latentFrames = model.LATENT_FRAMES;

  /**
   * `onEdit(text)` is told every new text; `endSeconds()` is how long the video is (0: not known);
   * `onSwitch()` is the change that "auto" comes to (undefined: not known);
   * `onToggleText(isShown)` shows or hides the text itself; `beats` is the source of a Beats; `upload(file)` gives the
   * name of an image, async.
   */
  constructor({ onEdit, endSeconds, onSwitch, onToggleText, beats, upload }) {
    Object.assign(this, { onEdit, endSeconds, onSwitch, upload, selected: 0, zoom: null, schedule: UNREAD });
    Object.assign(this, { source: null, ran: null, played: null, error: null, said: "", failure: "" });
    this.history = model.newHistory("");
    addStyle(document);
    this.beats = new Beats(beats, (sentence, isError) => this.#say(sentence, isError), () => this.draw());
    this.element = this.#build(onToggleText);
    this.#listen();
    this.resized = new ResizeObserver(() => this.draw());
    this.onWheel = (event) => this.#onWheel(event);
  }

  /** From now on it is on a page, until `remove`. */
  attach() {
    this.resized.observe(this.element);
    // On its way down: the host's new nodes take it before it comes here.
    window.addEventListener("wheel", this.onWheel, { capture: true, passive: false });
  }

  /** The text came anew: no way back behind it. */
  reset(text) {
    this.source = null;
    this.history = model.newHistory(text);
    this.selected = 0;
    this.schedule = UNREAD;
    this.#read(text);
  }

  /** The text was changed elsewhere: typed, or set by the host. */
  show(text) {
    if (text === this.history.text) return;
    this.history = model.recorded(this.history, text, "typing");
    this.#read(text);
  }

  /** The text comes from a node of that title: what it was in the last run, if there was one, is shown here. */
  showSource(title) {
    const sentence = t("Prompts come from {title}", { title });
    const { cues, ...rest } = UNREAD;
    this.reset(this.ran ?? "");
    this.source = title;
    if (this.ran === null) Object.assign(this, { error: null, schedule: { ...rest, cues: [{ ...cues[0], prompt: sentence }] } });
    this.draw();
  }

  /** The text of the run that goes on, or of the last one. */
  showRunText(text = null) {
    if (text === this.ran) return;
    this.ran = text;
    if (this.source !== null) this.showSource(this.source);
  }

  get isReadOnly() {
    return this.source !== null;
  }

  /** A run of this schedule: how far it is, and what was said while it ran. Null shows none. */
  showRun(run) {
    this.played = run;
    this.draw();
  }

  /** What stopped a run at this node; an empty sentence takes it off. */
  fail(sentence) {
    this.failure = sentence;
    this.#drawStatus();
  }

  remove() {
    this.resized.disconnect();
    window.removeEventListener("wheel", this.onWheel, { capture: true });
  }

  /** Latent frames in a block of the model that the schedule is for. */
  get latentFrames() {
    return this.#latentFrames;
  }

  set latentFrames(number) {
    this.#latentFrames = number;
    this.schedule = this.#schedule;
    this.#setBlendStep();
    this.draw();
  }

  /** What is shown, in blocks of that model. */
  get schedule() {
    return this.#schedule;
  }

  set schedule(schedule) {
    this.#schedule = { ...schedule, latentFrames: this.#latentFrames };
  }

  get endBlock() {
    return model.blockAt(this.endSeconds(), this.#latentFrames);
  }

  // What is on the page

  #build(onToggleText) {
    this.track = made("div", { className: "ll-track", role: "listbox", "aria-label": t("Cues of the schedule") });
    this.track.setAttribute("aria-orientation", "horizontal");
    this.grid = made("div", { className: "ll-grid" });
    this.ruler = made("div", { className: "ll-ruler", "aria-hidden": "true" });
    this.ruler.title = t("Double-click: a new cue here");
    this.end = made("div", { className: "ll-end" });
    this.run = made("div", { className: "ll-run", "aria-hidden": "true" });
    this.drop = made("div", { className: "ll-drop", hidden: true });
    this.lane = made("div", { className: "ll-lane" }, this.ruler, this.track, this.end, this.run, this.drop);
    this.scroller = made("div", { className: "ll-scroll", tabIndex: -1 }, this.lane);
    this.status = made("div", { className: "ll-status", role: "status" });
    const closes = { title: t("Click to close"), onclick: () => this.showHelp(false) };
    this.help = made("div", { className: "ll-help", textContent: shortcuts(), hidden: true, ...closes });
    const [bar, fields] = [this.#bar(onToggleText), this.#fields()];
    const rows = [bar, this.help, this.beats.row, this.first, this.scroller, fields, this.prompt, this.status];
    const root = made("div", { className: "longlive-timeline", role: "group", "aria-label": t("Timeline") }, ...rows);
    this.track.append(this.grid);
    return root;
  }

  #bar(onToggleText) {
    const act = (edit) => () => this.edit(edit) && this.focusCue();
    this.undoButton = button("\u21b6", t("Undo (Ctrl Z)"), () => this.undo());
    this.redoButton = button("\u21b7", t("Redo (Ctrl Shift Z)"), () => this.redo());
    this.textButton = button(t("Text"), t("Show the schedule as text"), () => this.setTextShown(!this.isTextShown));
    this.setTextShown = (isShown) => {
      this.isTextShown = isShown;
      this.textButton.setAttribute("aria-pressed", isShown);
      this.element.classList.toggle("ll-with-text", isShown);
      onToggleText(isShown);
    };
    const snaps = t("Show the beats of a sound file; dragged edges snap to them, except with Alt held");
    const order = [
      button("\u25c2", t("Earlier (Ctrl Left)"), act("earlier")),
      button("\u25b8", t("Later (Ctrl Right)"), act("later")),
    ];
    for (const { classList } of order) classList.add("ll-order");
    const help = button("?", shortcuts(), () => this.showHelp(this.help.hidden));
    help.setAttribute("aria-label", t("Shortcuts"));
    return made(
      "div",
      { className: "ll-bar", role: "toolbar", "aria-label": t("Timeline tools") },
      button(t("Add"), t("Add a cue at the end (Insert)"), () => this.add()),
      button(t("Split"), t("Split the cue (S)"), act("split")),
      button(t("Copy"), t("Duplicate the cue (D)"), act("duplicate")),
      button(t("Delete"), t("Delete the cue (Delete)"), act("delete")),
      ...order,
      this.undoButton,
      this.redoButton,
      made("span", { className: "ll-gap" }),
      button("\u2212", t("Zoom out (-)"), () => this.zoomBy(-1)),
      button(t("Fit"), t("Show everything (0)"), () => this.zoomTo(0)),
      button("+", t("Zoom in (+)"), () => this.zoomBy(1)),
      button(t("Beats"), snaps, () => this.beats.toggle()),
      this.textButton,
      help,
    );
  }

  showHelp(isShown) {
    this.help.hidden = !isShown;
  }

  #fields() {
    this.time = made("input", { "aria-label": t("Begins at"), title: t("When the cue begins: 5s, 0:05, 1:02.5") });
    this.policy = made("select", {}, ...changeOptions());
    const blendTitle = t("Seconds from the prompt before to this one");
    this.blend = made("input", { type: "number", title: blendTitle, max: String(model.MAX_BLEND_SECONDS) });
    this.#setBlendStep();
    this.blendLabel = made("label", {}, t("over"), this.blend, t("s"));
    const seedTitle = t("Seed of the noise from this cue on; empty: the one before it, at first the video's");
    this.seed = made("input", { inputMode: "numeric", title: seedTitle });
    const again = t("Another take: a new seed for this cue; everything before it stays bit-identical");
    this.take = button("\u2684", again, () => this.edit("take"));
    const pick = t("Begin a new scene with an image: choose one, or drop it here");
    this.pick = button("\u25a3", pick, () => chooseImage((file) => this.#useImage(file)));
    this.image = made("input", { title: t("Image that the scene begins with, of ComfyUI's input folder; empty: none") });
    this.imageLabel = made("label", {}, t("image"), this.image);
    this.seedLabel = made("label", {}, t("seed"), this.seed);
    const shown = { "aria-label": t("Prompt"), placeholder: t("What the video shows") };
    const example = t("A style or a character: realistic film still, a young woman in a red coat.");
    this.always = made("input", { spellcheck: false, placeholder: example, title: t("Put before every prompt") });
    ownKeys(this.always);
    this.prompt = made("textarea", { ...shown, spellcheck: false });
    this.place = made("span", {});
    ownKeys(this.policy);
    const [time, policy] = [made("label", {}, t("at"), this.time), made("label", {}, t("change"), this.policy)];
    this.first = made("div", { className: "ll-fields ll-always" }, made("label", {}, t("in every prompt"), this.always));
    const rest = [this.blendLabel, this.seedLabel, this.take, this.pick, this.imageLabel];
    return made("div", { className: "ll-fields" }, this.place, time, policy, ...rest);
  }

  #setBlendStep() {
    this.blend.min = this.blend.step = String(model.blockLength(this.#latentFrames));
  }

  // From text to page

  #read(text) {
    try {
      this.schedule = model.parse(text);
      this.error = null;
    } catch (error) {
      this.error = asScheduleError(error);
    }
    this.#say("");
    this.draw();
  }

  /** Show a sentence below the timeline. */
  #say(sentence, isError = false) {
    Object.assign(this, { said: sentence, isRefusal: isError });
    this.#drawStatus();
  }

  /** What is wrong with the text comes first, what will be wrong when it runs last. */
  #drawStatus() {
    this.status.textContent = this.error?.message ?? (this.said || this.failure || this.#whence() || this.#warning());
    const isFailure = !this.said && Boolean(this.failure);
    this.status.classList.toggle("ll-error", this.isRefusal || this.error !== null || isFailure);
  }

  #whence() {
    return this.source !== null && this.ran !== null ? t("Prompts come from {title}", { title: this.source }) : "";
  }

  #warning() {
    return this.#late() || this.#slip();
  }

  /** A first cue whose prompt begins with what may be a policy, a seed or an image, spelled wrong. */
  #slip() {
    const slips = this.schedule.cues.map(model.slipOf);
    const index = slips.findIndex(Boolean);
    if (index < 0) return "";
    const { kind, meant: policy } = slips[index];
    const slip = { cue: index + 1, typed: this.schedule.cues[index].prompt.split(":")[0], policy };
    if (kind === "image") return t("cue {cue} begins with {typed}: which is read as words of the prompt; for the image write {policy}:", slip);
    if (kind === "seed") return t("cue {cue} begins with {typed}: which is read as words of the prompt; for the seed write {policy}:", slip);
    return t("cue {cue} begins with {typed}: which is read as words of the prompt; for the change write {policy}:", slip);
  }

  #late() {
    const end = this.endSeconds();
    const cues = end ? this.schedule.cues.filter(({ seconds }) => seconds && seconds >= end).length : 0;
    if (!cues) return "";
    const time = clock(end);
    if (cues === 1) return t("1 cue after {time} is not played", { time });
    return t("{cues} cues after {time} are not played", { cues, time });
  }

  get pixels() {
    return this.zoom ?? this.#fitting();
  }

  get lengthSeconds() {
    const blocks = model.blocksOf(this.schedule);
    const lengths = model.lengthsOf(this.schedule, this.endBlock);
    const last = model.secondsOf(this.schedule, blocks.at(-1) + lengths.at(-1));
    return Math.max(last, this.endSeconds(), this.played?.seconds ?? 0) * (1 + SPARE);
  }

  #fitting() {
    return Math.max(1, this.scroller.clientWidth || 400) / this.lengthSeconds;
  }

  /** Draw what is. The elements of cues are used again, so that focus stays where it is. */
  draw() {
    const { cues } = this.schedule;
    this.selected = Math.min(this.selected, cues.length - 1);
    this.lane.style.width = `${Math.floor(this.lengthSeconds * this.pixels)}px`;
    this.#drawCues();
    this.#drawGrid();
    this.#drawRuler();
    drawRun(this.run, this.played, this.pixels);
    this.#drawFields();
    this.#drawStatus();
    this.element.classList.toggle("ll-stale", this.error !== null || this.isReadOnly);
    this.undoButton.disabled = !this.history.past.length;
    this.redoButton.disabled = !this.history.future.length;
  }

  #drawCues() {
    const { cues } = this.schedule;
    const drawn = [...this.track.querySelectorAll(".ll-cue")];
    const gone = drawn.slice(cues.length);
    const hadFocus = gone.includes(document.activeElement);
    gone.forEach((element) => element.remove());
    const blocks = model.blocksOf(this.schedule);
    const lengths = model.lengthsOf(this.schedule, this.endBlock);
    const numShared = model.sharedStart(this.schedule);
    const { pixels, latentFrames } = this; // asking for it measures the page and reads all cues
    cues.forEach((cue, index) => {
      const element = drawn[index] ?? emptyCue();
      if (!drawn[index]) this.track.append(element);
      const isSelected = index === this.selected;
      const place = { index, count: cues.length, block: blocks[index], length: lengths[index], isSelected, numShared };
      drawCue(element, cue, { ...place, latentFrames }, pixels);
    });
    if (hadFocus) this.focusCue(); // keys must not go to the host because a cue is gone
  }

  #drawGrid() {
    const block = model.blockLength(this.#latentFrames) * this.pixels;
    this.grid.hidden = block < 4;
    this.grid.style.backgroundSize = `${block}px 100%`;
    this.grid.style.backgroundPositionX = `${model.secondsOf(this.schedule, 1) * this.pixels}px`;
    const seconds = this.endSeconds();
    this.end.hidden = !seconds;
    this.end.style.left = `${seconds * this.pixels}px`;
    this.end.textContent = t("end");
    this.end.title = t("the video ends at {time}", { time: clock(seconds) });
  }

  #drawRuler() {
    const from = this.scroller.scrollLeft / this.pixels;
    const last = this.lengthSeconds - TICK_PIXELS / this.pixels;
    const to = Math.min(last, from + this.scroller.clientWidth / this.pixels);
    this.ruler.replaceChildren(...ticks(from, to, this.pixels), ...this.beats.marks(from, to, this.pixels));
  }

  #drawFields() {
    const cue = this.schedule.cues[this.selected];
    const place = { cue: this.selected + 1, cues: this.schedule.cues.length };
    this.place.textContent = t("Cue {cue}/{cues}", place);
    if (document.activeElement !== this.time) this.time.value = model.shown(cue.seconds);
    this.time.disabled = this.selected === 0;
    this.policy.value = cue.policy ?? "auto";
    this.policy.title = this.#effect(cue);
    this.blendLabel.hidden = cue.policy !== "blend";
    if (document.activeElement !== this.blend) this.blend.value = cue.blendSeconds ?? "";
    if (document.activeElement !== this.seed) this.seed.value = cue.seed ?? "";
    const before = this.schedule.cues.slice(0, this.selected).findLast(({ seed }) => seed !== null);
    this.seed.placeholder = before?.seed ?? t("video's");
    this.imageLabel.hidden = cue.image === null;
    if (document.activeElement !== this.image) this.image.value = cue.image ?? "";
    if (document.activeElement !== this.always) this.always.value = this.schedule.always;
    if (document.activeElement !== this.prompt) this.prompt.value = cue.prompt;
    const fields = [this.always, this.policy, this.blend, this.seed, this.take, this.image, this.pick, this.prompt];
    for (const field of fields) field.disabled = this.isReadOnly;
  }

  /** What the change to a cue does; an "auto" comes to what the nodes say. */
  #effect({ policy, blendSeconds }) {
    const effects = changeEffects();
    if (policy === "blend") return t("melts into it over {seconds} s", { seconds: blendSeconds });
    const [name, comesTo] = [policy ?? "auto", policy ? null : this.onSwitch()];
    return comesTo ? t("auto is {change} here: {effect}", { change: comesTo, effect: effects[comesTo] }) : effects[name];
  }

  // Edits

  /** Take a new schedule, of an edit of this kind; false (and a sentence) where that is not possible now. */
  commit(schedule, kind = null) {
    if (this.isReadOnly) return this.#refuse(t("Prompts come from {title}; change them there", { title: this.source }));
    if (this.error) return this.#refuse(this.error.message);
    this.schedule = schedule;
    this.#write(model.recorded(this.history, model.serialise(schedule), kind));
    return true;
  }

  #write(history) {
    this.history = history;
    this.onEdit(history.text);
    this.#say("");
    this.draw();
  }

  #refuse(sentence) {
    this.#say(sentence, true);
    return false;
  }

  /** Do one thing to the selected cue; what cannot be done is said below. */
  edit(name, ...details) {
    const edits = {
      split: () => this.#commitInserted(model.splitCue(this.schedule, this.selected, this.endBlock)),
      duplicate: () => this.#commitInserted([this.#duplicated(), this.selected + 1]),
      delete: () => this.#commitAt(model.deleteCue(this.schedule, this.selected), Math.max(0, this.selected - 1)),
      earlier: () => this.reorder(this.selected, this.selected - 1),
      later: () => this.reorder(this.selected, this.selected + 1),
      prompt: (text) => this.commit(model.setPrompt(this.schedule, this.selected, text), `prompt ${this.selected}`),
      always: (text) => this.commit(model.setAlways(this.schedule, text), "always"),
      policy: (name_, blend) => this.commit(model.setPolicy(this.schedule, this.selected, name_, blend)),
      seed: (digits) => this.commit(model.setSeed(this.schedule, this.selected, digits)),
      image: (file) => this.commit(model.setImage(this.schedule, this.selected, file)),
      take: () => this.commit(model.anotherTake(this.schedule, this.selected)),
      time: (text) => this.commit(model.moveEdge(this.schedule, this.selected, model.readTime(text.trim()))),
    };
    return this.#tried(() => edits[name](...details));
  }

  /** Begin the selected cue with an image, or the one that it was dropped on. */
  async #useImage(file, event) {
    const cue = event?.target.closest(".ll-cue");
    if (cue) this.select([...this.track.querySelectorAll(".ll-cue")].indexOf(cue));
    try {
      const name = await this.upload(file);
      this.edit("image", name);
    } catch (error) {
      this.#refuse(error.message);
    }
  }

  #tried(act) {
    let isDone = false;
    try {
      isDone = act();
    } catch (error) {
      this.#refuse(asScheduleError(error).message);
    }
    if (!isDone) this.#drawFields(); // they say what is, not what was asked for
    return isDone;
  }

  #duplicated() {
    return model.duplicateCue(this.schedule, this.selected, this.endBlock);
  }

  #commitInserted([schedule, index]) {
    return this.#commitAt(schedule, index);
  }

  #commitAt(schedule, index) {
    const before = this.selected;
    this.selected = index;
    if (this.commit(schedule)) return true;
    this.selected = before;
    return false;
  }

  reorder(index, to) {
    if (to < 0 || to >= this.schedule.cues.length) return false;
    return this.#commitAt(model.reorderCue(this.schedule, index, to, this.endBlock), to);
  }

  /** A new cue with the words of the one before, ready to be changed. */
  add(seconds = null) {
    const inserted = () =>
      seconds === null
        ? model.addCue(this.schedule, this.endBlock, this.selected)
        : model.insertCue(this.schedule, seconds);
    if (this.#tried(() => this.#commitInserted(inserted()))) this.editPrompt();
  }

  editPrompt() {
    this.prompt.focus();
    this.prompt.select();
  }

  undo() {
    this.#goTo(model.undone(this.history));
  }

  redo() {
    this.#goTo(model.redone(this.history));
  }

  #goTo(history) {
    if (!history || this.isReadOnly) return;
    this.history = history;
    this.onEdit(history.text);
    this.#read(history.text);
  }

  paste(text) {
    this.#tried(() => {
      const schedule = model.imported(text);
      this.error = null;
      const pasted = { cues: schedule.cues.length };
      if (this.#commitAt(schedule, 0)) this.#say(t("{cues} cues pasted; Ctrl Z brings the old ones back", pasted));
    });
  }

  // Looking around

  select(index) {
    if (index < 0 || index >= this.schedule.cues.length) return;
    this.#leaveFields();
    this.selected = index;
    this.prompt.value = this.schedule.cues[index].prompt;
    this.draw();
    this.focusCue();
  }

  /** What was typed into a field is of the cue that was selected then: take it before there is another one. */
  #leaveFields() {
    for (const field of [this.time, this.blend, this.seed, this.image]) if (document.activeElement === field) field.blur();
  }

  focusCue() {
    const element = this.track.querySelectorAll(".ll-cue")[this.selected];
    element.focus({ preventScroll: true });
    const [left, right] = [element.offsetLeft, element.offsetLeft + element.offsetWidth];
    const { scrollLeft, clientWidth } = this.scroller;
    if (left < scrollLeft || right > scrollLeft + clientWidth) this.scroller.scrollLeft = left - 20;
  }

  /** Zoom in by so many steps (out, where negative). */
  zoomBy(steps) {
    this.zoomTo(this.pixels * ZOOM ** steps);
  }

  /** Zoom to so many pixels a second, around the selected cue; as few as 0 show everything. */
  zoomTo(pixels) {
    this.zoom = pixels <= this.#fitting() ? null : Math.min(pixels, MAX_PIXELS_PER_SECOND);
    this.draw();
    const begins = model.secondsOf(this.schedule, model.blocksOf(this.schedule)[this.selected]);
    this.scroller.scrollLeft = begins * this.pixels - 20;
    this.#drawRuler();
  }

  // Keys, pointer, clipboard

  #listen() {
    const root = this.element;
    root.addEventListener("keydown", (event) => onKey(this, event));
    for (const name of ["keyup", "keypress"]) {
      root.addEventListener(name, (event) => isCommand(event) || event.stopPropagation());
    }
    for (const name of ["dblclick", "contextmenu"]) root.addEventListener(name, (event) => event.stopPropagation());
    root.addEventListener("pointerdown", (event) => event.button !== 1 && event.stopPropagation());
    root.addEventListener("copy", (event) => this.#onCopy(event));
    root.addEventListener("cut", (event) => event.stopPropagation());
    root.addEventListener("paste", (event) => this.#onPaste(event));
    this.scroller.addEventListener("scroll", () => this.#drawRuler());
    this.track.addEventListener("pointerdown", (event) => onPress(this, event));
    this.track.addEventListener("dblclick", (event) => event.target.closest(".ll-cue") && this.editPrompt());
    this.ruler.addEventListener("dblclick", (event) => this.add(secondsAt(this, event)));
    this.#listenToFields();
    takeDropped(root, (file, event) => this.#useImage(file, event));
  }

  #listenToFields() {
    this.prompt.addEventListener("input", () => this.edit("prompt", this.prompt.value));
    this.always.addEventListener("input", () => this.edit("always", this.always.value));
    for (const field of [this.always, this.prompt]) field.addEventListener("blur", () => this.#leftTyping());
    this.time.addEventListener("change", () => this.edit("time", this.time.value));
    this.policy.addEventListener("change", () => this.edit("policy", this.policy.value));
    this.blend.addEventListener("change", () => this.edit("policy", "blend", Number(this.blend.value)));
    this.seed.addEventListener("change", () => this.edit("seed", this.seed.value));
    this.image.addEventListener("change", () => this.edit("image", this.image.value));
    for (const field of [this.time, this.blend, this.seed, this.image]) field.addEventListener("blur", () => this.draw());
  }

  #leftTyping() {
    this.history = { ...this.history, kind: null };
    this.#say("");
    this.draw();
  }

  #onCopy(event) {
    event.stopPropagation();
    if (isTyping(event.target)) return;
    event.clipboardData.setData("text/plain", this.history.text);
    event.preventDefault();
  }

  #onPaste(event) {
    event.stopPropagation();
    if (isTyping(event.target)) return;
    event.preventDefault();
    this.paste(event.clipboardData.getData("text/plain"));
  }

  #onWheel(event) {
    if (!event.ctrlKey || !this.scroller.contains(event.target)) return;
    event.preventDefault();
    event.stopPropagation();
    this.zoomBy(-Math.sign(event.deltaY));
  }

}

function asScheduleError(error) {
  if (error.name !== "ScheduleError") throw error;
  return error;
}
