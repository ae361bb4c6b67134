/** Which run a node shows: snapshots in, the newest one of every node out. No DOM. */

const LIVE = ["starting", "running", "paused", "stopping"];

/** Whether a run still goes on. */
export function isLive(snapshot) {
  return LIVE.includes(snapshot?.state);
}

/** Snapshots may come late, by another road: what is known about a run is never taken back. */
function replaces(came, known) {
  if (came.run !== known.run) return isLive(came) || !isLive(known);
  if (isLive(came) !== isLive(known)) return isLive(known);
  return (came.block ?? -1) >= (known.block ?? -1);
}

/** The newest snapshot of every node, by display id. */
export class Runs {
  #ofNode = new Map();

  /** Take a snapshot; true if it is news for its node. */
  take(snapshot) {
    const known = this.#ofNode.get(String(snapshot.node));
    if (known && !replaces(snapshot, known)) return false;
    this.#ofNode.set(String(snapshot.node), snapshot);
    return true;
  }

  /** All snapshots that a page should show now. */
  all() {
    return [...this.#ofNode.values()];
  }
}
