/** The live routes, and ComfyUI's upload: calls out, snapshots and tickets back. Knows neither page nor graph. */

export const RUN_EVENT = "longlive.run";
const RUNS = "/longlive/runs";
const BLOCK = "/longlive/block";
const DOOR = "/longlive/door";
const SOUNDS = "/longlive/sounds";
const UPLOAD = "/upload/image"; // ComfyUI's own
const NOT_IN_NAMES = /[,:\\]/g; // of images in a schedule
const BEATS = "/longlive/beats";

/** What the server refused, in its own words. */
export class Refused extends Error {}

export class Client {
  #fetch;

  /** `fetchRoute(path, options)` as the host's api.fetchApi. */
  constructor(fetchRoute) {
    this.#fetch = fetchRoute;
  }

  /** Snapshots of all runs that the server remembers. */
  async runs() {
    return (await this.#call(RUNS)).runs;
  }

  /** Whether the stage is open to the network, and for which node: {is_open, node, workflow, link, qr, viewers}. */
  door() {
    return this.#call(DOOR);
  }

  /** Open the stage for a node, or close it. -> as door() */
  setDoor(body) {
    const headers = { "Content-Type": "application/json" };
    return this.#call(DOOR, { method: "POST", headers, body: JSON.stringify(body) });
  }

  /** Put an image into ComfyUI's input folder. -> the name that a cue has for it */
  async upload(file) {
    const body = new FormData();
    body.append("image", file, file.name.replace(NOT_IN_NAMES, "_"));
    const { name, subfolder } = await this.#call(UPLOAD, { method: "POST", body });
    return subfolder ? `${subfolder}/${name}` : name;
  }

  /** Send a prompt; `policy`, `blend` (seconds) and `image` only where they are given. -> ticket number */
  async prompt(run, { prompt, policy, blend, image }) {
    const body = JSON.stringify({ prompt, policy, blend, image }); // drops what is undefined
    const headers = { "Content-Type": "application/json" };
    return (await this.#call(`${RUNS}/${run}/prompt`, { method: "POST", headers, body })).ticket;
  }

  /** Go back to a `block`, with a prompt, a `seed` (digits) or neither; `keep` saves it first. -> {seconds, ticket} */
  back(run, body) {
    const headers = { "Content-Type": "application/json" };
    return this.#call(`${RUNS}/${run}/back`, { method: "POST", headers, body: JSON.stringify(body) });
  }

  /** "pause", "resume" or "stop". -> snapshot */
  command(run, name) {
    return this.#call(`${RUNS}/${run}/${name}`, { method: "POST" });
  }

  /** What was really played: {text, json, seed, settings}. */
  schedule(run) {
    return this.#call(`${RUNS}/${run}/schedule`);
  }

  /** A clip of the video with its prompts as captions, as a Blob: "mp4" or "webp". */
  async clip(run, format) {
    return (await this.#answer(`${RUNS}/${run}/clip?format=${format}`, { method: "POST" })).blob();
  }

  /** How many latent frames a block of the model has that graph.js: modelQuery asks about. */
  async latentFrames(query) {
    return (await this.#call(`${BLOCK}?${query}`)).latent_frames;
  }

  /** Names of the files of ComfyUI's input folder that may have sound. */
  async sounds() {
    return (await this.#call(SOUNDS)).files;
  }

  /** The beats of one of them, in seconds. */
  async beats(file) {
    return (await this.#call(`${BEATS}?${new URLSearchParams({ file })}`)).times;
  }

  async #call(path, options) {
    return (await this.#answer(path, options)).json();
  }

  async #answer(path, options = {}) {
    const response = await this.#fetch(path, { cache: "no-store", ...options });
    if (response.ok) return response;
    const answer = await response.json().catch(() => ({}));
    throw new Refused(answer.error ?? `the server answered ${response.status}`);
  }
}
