/** The panel on a LongLiveStream node: a snapshot in, its picture out; what the user does goes to `actions`. */

import { blockLength } from "../timeline/blocks.js";
import { DEFAULT_BLEND_SECONDS, MAX_BLEND_SECONDS } from "../timeline/cues.js";
import { changeOptions } from "../timeline/parts.js";
import { chooseImage, takeDropped } from "../images.js";
import { t } from "../texts.js";
import { Back } from "./back.js";
import { Cards } from "./cards.js";
import { Player } from "./player.js";
import { isLive } from "./runs.js";
import { StageDoor } from "./stage.js";
import { clock, fate, message, view } from "./view.js";

const MIN_HEIGHT = 316; // without prompt cards, of which a row more each
const LAG_MS = 250;
const OWN_EVENTS = ["pointerdown", "wheel", "contextmenu"]; // of fields: not for the canvas
const FIELDS = "video, textarea, select, input, [draggable=true]";
const LINE = "longlive-live-line";
const QUIET = `${LINE} longlive-live-quiet`;
const NOTICE = `${QUIET} longlive-live-notice`;

/** A DOM element with properties, ARIA and data attributes, and children. */
function make(tag, properties = {}, ...children) {
  const { role, label, className = "", ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  if (className) element.className = className;
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

function button(text, title, onclick, className = "") {
  return make("button", { type: "button", textContent: text, title, onclick, className });
}

/** The parts of the panel, unwired. */
function parts(panel) {
  const video = make("video", { muted: true, playsInline: true, controls: true, label: t("Video of the run") });
  return {
    video,
    live: button(t("live"), t("Jump to the newest frames"), () => panel.player.goLive()),
    status: make("div", { className: LINE, role: "status", label: t("State of the run") }),
    hint: make("div", { className: "longlive-live-hint" }),
    notes: make("div", { className: `${LINE} longlive-live-notes`, role: "note", label: t("Warnings") }),
    error: make("div", { className: `${LINE} longlive-live-error`, role: "alert" }),
    strip: make("ul", { className: "longlive-live-strip", label: t("Prompts and when they took effect") }),
    pending: make("div", { className: QUIET, role: "status", label: t("The prompt that waits") }),
    notice: make("div", { className: NOTICE, role: "status", label: t("What became of your prompt") }),
    text: make("textarea", {
      label: t("Live prompt"),
      placeholder: t("A prompt for the running video. Enter sends, Shift-Enter is a new line."),
    }),
    policy: make("select", { label: t("Change"), title: t("What happens to the past") }, ...changeOptions()),
    blend: make("input", {
      ...{ type: "number", max: MAX_BLEND_SECONDS, value: DEFAULT_BLEND_SECONDS },
      ...{ label: t("Seconds of the blend"), title: t("Seconds of the blend") },
    }),
    image: button("\u25a3", "", () => panel.chooseImage()),
    send: button(t("send"), t("Send the prompt (Enter)"), () => panel.send(), "longlive-live-main"),
    cut: button(t("cut"), t("Send the prompt as a new scene: the past is dropped"), () => panel.send("cut")),
    pause: button(t("pause"), t("Hold the run: memory and position stay"), () => panel.pauseOrResume()),
    stop: button(t("stop and keep"), t("End the run here and keep the video"), () => panel.command("stop")),
    freeze: button(t("freeze to schedule"), t("Write what was played into the schedule, and its seed"), () =>
      panel.freeze(),
    ),
    share: button(
      t("share"),
      t("Download a short clip with the prompts as captions: an mp4; with Shift a WebP that loops by itself"),
      ({ shiftKey }) => panel.share(shiftKey ? "webp" : "mp4"),
    ),
  };
}

export class Panel {
  #snapshot = null;
  #actions;
  #parts;
  #sent = new Map();
  #clock = null;
  #failure = "";
  #isSharing = false;
  #image = undefined; // the name of the one that the next prompt begins with

  /**
   * `actions`: prompt(run, message) -> ticket, back(run, body) -> {seconds, ticket}, upload(file) -> name,
   * command(run, name), freeze(snapshot) -> sentence, share(snapshot, format) -> sentence, setDoor(body) ->
   * state of the stage, all async; showStage();
   * videoUrl(snapshot) -> url; keepCards(cards); resized() when `height` changed.
   */
  constructor(actions) {
    this.#actions = actions;
    const p = (this.#parts = parts(this));
    this.player = new Player(p.video);
    this.stage = new StageDoor({
      ...{ show: actions.showStage, setDoor: actions.setDoor, resized: actions.resized },
      say: (sentence) => this.#say(sentence),
    });
    this.cards = new Cards({
      send: ({ prompt, policy = "auto", blend }) => this.#post(message(prompt, policy, blend)),
      changed: actions.keepCards,
      say: (sentence) => this.#say(sentence),
      resized: actions.resized,
    });
    this.back = new Back({
      ...{ go: (place) => this.takeBack(place), resized: actions.resized },
      ...{ seek: (seconds) => this.player.lookAt(seconds), position: () => this.player.video.currentTime },
    });
    const screen = make("div", { className: "longlive-live-screen" }, p.hint, p.video, p.live);
    const seldom = make("div", { className: "longlive-live-seldom" }, p.freeze, p.share, this.stage.page, this.stage.open);
    p.video.hidden = p.live.hidden = true;
    this.element = make(
      "div",
      { className: "longlive-live", role: "group", label: t("LongLive: live"), tabIndex: -1 },
      ...[screen, make("div", { className: "longlive-live-row" }, this.cards.element, seldom), p.text],
      make(
        "div",
        { className: "longlive-live-row" },
        ...[p.policy, p.blend, p.image, p.cut, p.send, this.back.open, p.pause, p.stop],
      ),
      ...[this.back.element, p.strip, p.error, make("div", { className: "longlive-live-row" }, p.status, p.pending)],
      ...[p.notice, p.notes, this.stage.element],
    );
    this.#listen();
    this.#render();
  }

  /** Pixels that the panel needs at least. */
  get height() {
    return MIN_HEIGHT + this.cards.height + this.stage.height + this.back.height;
  }

  /** The run that it shows, if there is one. */
  get run() {
    return this.#snapshot?.run;
  }

  /** Show a run. */
  take(snapshot) {
    if (this.run !== snapshot.run) this.#say(""); // what it says is of the time before
    this.#snapshot = snapshot;
    if (snapshot.num_frames) this.#show(snapshot);
    for (const ticket of this.#sent.keys()) this.#tell(ticket);
    this.#render();
  }

  /** Show what stopped the run, also where it failed before it began; an empty sentence takes it off. */
  fail(sentence) {
    this.#failure = sentence;
    this.#render();
  }

  /** Send what is typed, by the chosen policy unless another is named. */
  async send(policy = this.#parts.policy.value) {
    const { text, blend } = this.#parts;
    const body = message(text.value, policy, Number(blend.value), this.#image);
    if (!body.prompt || !view(this.#snapshot).canSend) return;
    await this.#post(body, () => {
      if (text.value.trim() === body.prompt) text.value = "";
      if (this.#image === body.image) this.#image = undefined;
    });
  }

  /** Choose the image that the next prompt begins with; where there is one, take it off. */
  chooseImage() {
    if (!this.#image) return chooseImage((file) => this.#useImage(file));
    this.#image = undefined;
    this.#say("");
    this.#render();
  }

  #useImage(file) {
    return this.#attempt(async () => {
      this.#image = await this.#actions.upload(file);
      this.#say(t("The next prompt begins a new scene with {image}.", { image: this.#image }));
      this.#parts.text.focus();
    });
  }

  /** Go back to a block, and on with what is typed, if anything is. */
  async takeBack(place) {
    const { text, policy, blend } = this.#parts;
    const typed = text.value.trim() ? message(text.value, policy.value, Number(blend.value), this.#image) : {};
    const { run } = this.#snapshot;
    await this.#attempt(async () => {
      const { ticket, seconds } = await this.#actions.back(run, { ...typed, ...place });
      if (typed.prompt && text.value.trim() === typed.prompt) text.value = "";
      if (typed.image && this.#image === typed.image) this.#image = undefined;
      if (ticket) this.#sent.set(ticket, run);
      this.#say(t("The run goes on at {time}.", { time: clock(seconds) }));
    });
  }

  /** Send a prompt, and `then` follow what becomes of it. */
  #post(body, then = () => {}) {
    return this.#attempt(async () => {
      const ticket = await this.#actions.prompt(this.#snapshot.run, body);
      then();
      this.#sent.set(ticket, this.#snapshot.run);
      this.#tell(ticket);
    });
  }

  /** "stop", "pause" or "resume" the run. News of it come as events only: an answer may come after the end. */
  command(name) {
    return this.#attempt(() => this.#actions.command(this.#snapshot.run, name));
  }

  pauseOrResume() {
    return this.command(this.#snapshot.state === "paused" ? "resume" : "pause");
  }

  /** What was played becomes the schedule. */
  async freeze() {
    await this.#attempt(async () => this.#say(await this.#actions.freeze(this.#snapshot)));
  }

  /** Download a clip of the video: "mp4" or "webp". */
  async share(format) {
    this.#isSharing = true;
    this.#say(t("The clip is being made."));
    this.#render();
    await this.#attempt(async () => this.#say(await this.#actions.share(this.#snapshot, format)));
    this.#isSharing = false;
    this.#render();
  }

  /** The node is gone. */
  close() {
    clearInterval(this.#clock);
    this.cards.close();
    this.player.stop();
  }

  #listen() {
    this.cards.listenTo(this.element);
    takeDropped(this.element, (file) => this.#useImage(file));
    const { text, policy } = this.#parts;
    text.addEventListener("keydown", (event) => this.#key(event));
    text.addEventListener("input", () => this.#render());
    policy.addEventListener("change", () => this.#render());
    for (const name of OWN_EVENTS) {
      this.element.addEventListener(name, (event) => event.target.closest(FIELDS) && event.stopPropagation());
    }
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey) return; // the host's shortcuts, as Ctrl-Enter to run
    event.stopPropagation();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.send();
  }

  /** Do it; what the server refuses is shown. */
  async #attempt(action) {
    try {
      await action();
    } catch (error) {
      this.#say(error.message);
    }
    this.#render();
  }

  #say(sentence) {
    this.#parts.notice.textContent = this.#parts.notice.title = sentence;
  }

  #tell(ticket) {
    if (this.#sent.get(ticket) !== this.#snapshot.run) return this.#sent.delete(ticket);
    const { text, isSettled } = fate(this.#snapshot, ticket);
    this.#say(text);
    if (isSettled) this.#sent.delete(ticket);
  }

  #show(snapshot) {
    const { run, state, pace, seconds, block_latent_frames: latentFrames } = snapshot;
    this.#parts.video.hidden = false;
    this.player.show({
      ...{ run, url: this.#actions.videoUrl(snapshot) },
      ...{ isLive: isLive(snapshot), isPaced: pace === "real time", isPaused: state === "paused" },
      ...{ latentFrames, seconds },
    });
    this.#clock ??= setInterval(() => this.#renderLag(), LAG_MS);
  }

  #renderLag() {
    const { live } = this.#parts;
    const { lag } = this.player;
    live.hidden = lag === null;
    live.textContent = lag === null ? "" : t("live · {seconds} s behind", { seconds: lag.toFixed(1) });
  }

  #render() {
    const p = this.#parts;
    const shown = view(this.#snapshot, this.#failure);
    p.status.textContent = p.status.title = shown.status;
    p.hint.textContent = shown.hint;
    p.notes.textContent = p.notes.title = shown.notes;
    p.error.textContent = p.error.title = shown.error;
    p.error.hidden = !shown.error;
    p.pending.textContent = p.pending.title = shown.pending;
    p.text.disabled = p.policy.disabled = p.blend.disabled = !shown.canSend;
    p.blend.min = p.blend.step = blockLength(this.#snapshot?.block_latent_frames);
    p.blend.hidden = p.policy.value !== "blend";
    p.image.disabled = !shown.canSend;
    p.image.setAttribute("aria-pressed", Boolean(this.#image));
    p.image.title = this.#image
      ? t("Send without {image}", { image: this.#image })
      : t("Begin a new scene with an image: choose one, or drop it here");
    p.image.setAttribute("aria-label", p.image.title);
    p.send.disabled = p.cut.disabled = !shown.canSend || !p.text.value.trim();
    p.pause.disabled = !shown.canPause;
    p.pause.textContent = shown.isPaused ? t("resume") : t("pause");
    p.stop.disabled = !shown.canStop;
    p.freeze.disabled = !shown.canFreeze;
    p.share.disabled = !this.#snapshot?.num_frames || this.#isSharing;
    this.cards.canSend = shown.canSend;
    this.back.take(this.#snapshot, shown.canSend);
    this.#renderStrip(shown.marks);
  }

  #renderStrip(marks) {
    const { strip } = this.#parts;
    while (strip.children.length > marks.length) strip.lastChild.remove();
    while (strip.children.length < marks.length) strip.append(make("li"));
    marks.forEach(({ start, width, origin, text, label }, index) => {
      const mark = strip.children[index];
      mark.style.left = `${start}%`;
      mark.style.width = `${width}%`;
      if (mark.title === label) return;
      Object.assign(mark, { textContent: text, title: label });
      mark.dataset.origin = origin;
      mark.setAttribute("aria-label", label);
    });
  }
}
