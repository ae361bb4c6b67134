/** The page of the stage (web/stage/stage.html): the newest run of a node, and one prompt box. Does nothing elsewhere. */

import { Refused } from "../live/client.js";
import { Player } from "../live/player.js";
import { isLive } from "../live/runs.js";
import { fate, message, view } from "../live/view.js";
import { setTexts, t } from "../texts.js";
import { DEFAULT_BLEND_SECONDS } from "../timeline/cues.js";

const ROUTES = "stage"; // below the page's own address
const RETRY_MS = 2000;
const NAMES = ["node", "workflow"]; // of the address, on this machine: whose runs are shown

/** Smooth is what the model does by itself. */
function changes() {
  return { auto: t("smooth"), cut: t("cut"), blend: t("blend") };
}

export class StagePage {
  #snapshot = null;
  #events = null;
  #lost = false;
  #sent = null; // {run, ticket} of the newest prompt from here

  /** `root` is the <main> of stage.html, `query` what the address asks for. */
  constructor(root, query) {
    this.#query = new URLSearchParams(NAMES.filter((name) => query.has(name)).map((name) => [name, query.get(name)]));
    const find = (selector) => root.querySelector(selector);
    this.#parts = {
      ...{ state: find("#state"), form: find("form"), text: find("textarea"), changes: find("fieldset") },
      ...{ pause: find("#pause"), send: find("[type=submit]"), said: find("#said"), full: find("#full") },
    };
    this.player = new Player(find("video"));
    this.#write();
    this.#parts.form.hidden = this.#parts.state.hidden = query.get("box") === "off";
    this.#parts.full.hidden = this.#parts.form.hidden || !document.fullscreenEnabled;
    this.#listen(root);
    this.#render();
  }

  #query;
  #parts;

  /** Follow the server's events, also after it was away. */
  follow() {
    this.#events = new EventSource(this.#path("events"));
    this.#events.onmessage = ({ data }) => this.take(JSON.parse(data));
    this.#events.onerror = () => this.#lose();
  }

  /** Show what the server says. */
  take(snapshot) {
    if (this.#lost) this.player.stop(); // its connection was lost too
    this.#lost = false;
    this.#snapshot = snapshot;
    if (snapshot.run && snapshot.num_frames) this.#show(snapshot);
    if (this.#sent) this.#follow(this.#sent);
    this.#render();
  }

  /** Send what is typed. */
  async send() {
    const { text, changes } = this.#parts;
    const body = message(text.value, changes.querySelector(":checked").value, DEFAULT_BLEND_SECONDS);
    if (!body.prompt || !view(this.#snapshot).canSend) return;
    await this.#attempt(async () => {
      const { run, ticket } = await this.#post("prompt", body);
      if (text.value.trim() === body.prompt) text.value = "";
      this.#follow((this.#sent = { run, ticket }));
    });
  }

  #listen(root) {
    const { form, text, pause, full } = this.#parts;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    text.addEventListener("input", () => this.#render());
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    pause.addEventListener("click", () =>
      this.#attempt(() => this.#post(this.#snapshot.state === "paused" ? "resume" : "pause")), // an event follows
    );
    full.addEventListener("click", () =>
      document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen(),
    );
  }

  #path(name, query = this.#query) {
    return `${ROUTES}/${name}?${query}`;
  }

  async #post(name, body = {}) {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(this.#path(name), { method: "POST", headers, body: JSON.stringify(body) });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Refused(answer.error ?? t("the server answered {status}", { status: response.status }));
    return answer;
  }

  async #attempt(action) {
    try {
      await action();
    } catch (error) {
      this.#parts.said.textContent = error.message;
    }
    this.#render();
  }

  /** The browser tries again by itself, but not after a refusal. */
  #lose() {
    this.#lost = true;
    this.#render();
    if (this.#events.readyState !== EventSource.CLOSED) return;
    setTimeout(() => this.follow(), RETRY_MS);
  }

  #show({ run, pace, block_latent_frames: latentFrames, taken_back: cuts, ...snapshot }) {
    const query = new URLSearchParams([...this.#query, ["late", ""], ...(cuts ? [["cuts", cuts]] : [])]);
    this.player.show({
      ...{ run, url: this.#path(`video/${run}`, query) },
      ...{ isLive: isLive(snapshot), isPaced: pace === "real time", latentFrames },
    });
  }

  #follow({ run, ticket }) {
    if (run !== this.#snapshot?.run) return;
    const { text, isSettled } = fate(this.#snapshot, ticket);
    this.#parts.said.textContent = text;
    if (isSettled) this.#sent = null;
  }

  /** The words that stay. */
  #write() {
    const { changes: fieldset, send, text, full } = this.#parts;
    send.textContent = t("send");
    text.setAttribute("aria-label", t("Live prompt"));
    full.setAttribute("aria-label", t("Full screen"));
    fieldset.setAttribute("aria-label", t("Change"));
    for (const [value, name] of Object.entries(changes())) {
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "change", value });
      radio.checked = value === "auto";
      const label = document.createElement("label");
      label.append(radio, Object.assign(document.createElement("span"), { textContent: name }));
      fieldset.append(label);
    }
  }

  #render() {
    const { state, text, send, pause } = this.#parts;
    const isOn = isLive(this.#snapshot) && !this.#lost;
    state.textContent = this.#lost ? t("Connecting…") : isOn ? t(this.#snapshot.state) : t("Waiting for the next run");
    state.dataset.live = isOn;
    text.placeholder = isOn ? t("What happens next?") : t("The box opens with the next run.");
    text.disabled = !isOn;
    send.disabled = !isOn || !text.value.trim();
    pause.hidden = !this.#snapshot?.may_pause;
    pause.disabled = !isOn || !["running", "paused"].includes(this.#snapshot.state);
    pause.textContent = this.#snapshot?.state === "paused" ? t("resume") : t("pause");
  }
}

/** The translations of the browser's language; English where there are none. */
async function loadTexts() {
  const [language] = navigator.language.split("-");
  const response = await fetch(`${ROUTES}/texts/${language}`);
  if (response.ok) setTexts((await response.json()).longlive);
  document.documentElement.lang = response.ok ? language : "en";
}

async function start(root) {
  const query = new URLSearchParams(location.search);
  document.documentElement.dataset.background = query.get("background") ?? "";
  document.documentElement.dataset.fit = query.get("fit") ?? "";
  await loadTexts().catch(() => {}); // English will do
  new StagePage(root, query).follow();
}

const root = globalThis.document?.querySelector("main#stage");
if (root) start(root);
