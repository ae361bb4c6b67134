/** Which run a node shows: snapshots in, the newest one of every node of a workflow out. No DOM. */

const LIVE = ["starting", "running", "paused", "stopping"];
const MAX_SEEN = 64; // runs, more than a server remembers

/** Whether a run still goes on. */
export function isLive(snapshot) {
  return LIVE.includes(snapshot?.state);
}

/** Snapshots may come late, by another road: what is known about a run stays known, unless the run was taken back. */
function replaces(came, known) {
  if (came.run !== known.run) return isLive(came) || !isLive(known);
  if (isLive(came) !== isLive(known)) return isLive(known);
  const [backs, knownBacks] = [came, known].map(({ taken_back: backs = 0 }) => backs);
  return backs > knownBacks || (backs === knownBacks && (came.block ?? -1) >= (known.block ?? -1));
}

/** Whether a run may be of the workflow of that id: nobody knows it of one that a script queued. */
export function isOf({ workflow }, id) {
  return (workflow ?? id) === id;
}

/** The newest snapshot of every node, by workflow and display id: other workflows have nodes of the same id. */
export class Runs {
  #newest = new Map();

  /** Take a snapshot; true if it is news for its node. */
  take(snapshot) {
    const place = `${snapshot.workflow ?? ""} ${snapshot.node}`;
    const known = this.#newest.get(place);
    if (known && !replaces(snapshot, known)) return false;
    if (isLive(snapshot)) this.#forgetOthers(snapshot);
    this.#newest.delete(place); // the latest news come last
    this.#newest.set(place, snapshot);
    return true;
  }

  /** A server makes one video at a time: of other runs of the node, the end was missed. */
  #forgetOthers({ run, node }) {
    for (const [place, other] of this.#newest) {
      if (isLive(other) && other.run !== run && String(other.node) === String(node)) this.#newest.delete(place);
    }
  }

  /** The snapshots that a page with this workflow open should show, one of each node. */
  of(workflow) {
    const shown = new Map();
    for (const snapshot of this.#newest.values()) {
      if (!isOf(snapshot, workflow)) continue;
      const other = shown.get(String(snapshot.node));
      if (!other || replaces(snapshot, other)) shown.set(String(snapshot.node), snapshot);
    }
    return [...shown.values()];
  }
}

const KEY = "longlive.runs";

/** The runs that a page has seen going on. `storage` outlives a reload of the page and is of no other one. */
export class Seen {
  #storage;
  #runs;

  constructor(storage) {
    this.#storage = storage;
    this.#runs = new Set(JSON.parse(storage.getItem(KEY) ?? "[]"));
  }

  add({ run }) {
    if (this.#runs.has(run)) return;
    this.#runs.add(run);
    this.#storage.setItem(KEY, JSON.stringify([...this.#runs].slice(-MAX_SEEN)));
  }

  has({ run }) {
    return this.#runs.has(run);
  }
}
