/** The stage on the panel: opens its page here, opens it to the network, shows the link and who is connected. */

import { t } from "../texts.js";

const HEIGHT = 176;
export const STAGE_EVENT = "longlive.stage";

export const STAGE_STYLE = `
.longlive-stage { display: flex; flex: none; gap: 8px; min-height: ${HEIGHT - 12}px; padding: 6px; border-radius: 4px;
  border: 1px solid var(--border-color, #4e4e4e); }
.longlive-live button[aria-pressed=true] { border-color: var(--p-primary-color, #4b8bd4);
  background: color-mix(in srgb, var(--p-primary-color, #4b8bd4) 28%, transparent); }
.longlive-stage img { flex: none; width: 150px; height: 150px; background: #fff; border-radius: 4px;
  image-rendering: pixelated; }
.longlive-stage > div { display: flex; flex: 1; min-width: 0; flex-direction: column; gap: 5px; }
.longlive-stage input[readonly] { width: 100%; }
.longlive-stage label { display: flex; gap: 6px; align-items: center; height: 24px; }
.longlive-stage input[type=checkbox] { height: auto; }
.longlive-stage ul { flex: 1 1 0; min-height: 36px; margin: 0; padding: 0; overflow-y: auto; list-style: none; }
`;

/** An element with properties, ARIA label and children. */
function made(tag, { label, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

/** Since when someone watches, as a clock on the wall says it. */
function viewer({ address, since }) {
  const time = new Date(since * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const isHere = ["127.0.0.1", "::1"].includes(address);
  return t("{address} since {time}", { address: isHere ? t("this machine") : address, time });
}

export class StageDoor {
  #state = { is_open: false };
  #actions;

  /** `actions`: show() opens the page here; setDoor(body) -> state; resized() when `height` changed. */
  constructor(actions) {
    this.#actions = actions;
    const onclick = () => actions.show();
    this.page = made("button", { type: "button", textContent: t("stage"), onclick });
    this.page.title = t("The video and a prompt box on a page of its own: for a second screen, OBS or a phone");
    this.open = made("button", { type: "button", textContent: t("network") });
    this.open.title = t("Open the stage to your network: who has the link that is shown then may watch and send prompts");
    this.open.onclick = () => this.#set({ is_open: !this.#state.is_open });
    this.#build();
    this.take(this.#state);
  }

  #build() {
    this.qr = made("img", { alt: t("QR code of the link") });
    this.link = made("input", { type: "text", readOnly: true, label: t("Link of the stage") });
    this.link.onfocus = () => this.link.select();
    this.pause = made("input", { type: "checkbox" });
    this.pause.onchange = () => this.#set({ is_open: true });
    this.viewers = made("ul", { label: t("Who is connected") });
    this.note = made("div", { className: "longlive-live-quiet" });
    const may = made("label", {}, this.pause, t("viewers may pause"));
    const words = made("div", {}, this.link, may, this.note, this.viewers);
    this.element = made("div", { className: "longlive-stage", hidden: true }, this.qr, words);
  }

  /** Pixels that the open stage needs on the panel. */
  get height() {
    return this.element.hidden ? 0 : HEIGHT;
  }

  /** Show a state of the server: {is_open, link, qr, may_pause, viewers}. */
  take(state) {
    const wasHidden = this.element.hidden;
    this.#state = state;
    this.element.hidden = !state.is_open;
    this.open.setAttribute("aria-pressed", state.is_open);
    this.link.value = state.link ?? "";
    this.qr.hidden = !state.qr;
    if (state.qr) this.qr.src = state.qr;
    else this.qr.removeAttribute("src");
    this.note.textContent = state.qr ? "" : t("With the Python package segno there is a QR code of the link here.");
    this.note.hidden = !this.note.textContent;
    this.pause.checked = Boolean(state.may_pause);
    this.#list(state.viewers ?? []);
    if (wasHidden !== this.element.hidden) this.#actions.resized();
  }

  #list(viewers) {
    const lines = viewers.length ? viewers.map(viewer) : [t("Nobody is connected yet.")];
    this.viewers.replaceChildren(...lines.map((textContent) => made("li", { textContent })));
  }

  async #set(body) {
    this.open.disabled = true;
    try {
      this.take(await this.#actions.setDoor({ ...body, may_pause: this.pause.checked }));
    } catch (error) {
      this.#actions.say(error.message);
    }
    this.open.disabled = false;
  }
}
