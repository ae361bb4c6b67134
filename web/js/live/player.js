/** What a <video> shows of a node's runs: the file that grows, played at real time, then the finished one. */

import { blockLength } from "../timeline/blocks.js";
import { grow } from "./growing.js";

const SPARE_SECONDS = 0.45; // further behind than this and a block, a viewer who follows is brought forward
const SAME_SECONDS = 0.05;

export class Player {
  #run = null;
  #stopGrowing = null;
  #isFollowing = false;
  #jump = 0;

  constructor(video) {
    this.video = video;
    video.addEventListener("seeking", () => this.#noticeSeek());
    video.addEventListener("ended", () => this.#finish());
  }

  /** Show a run: `url` of its file, `isLive` while it grows, `isPaced` if it is made in real time. */
  show({ run, url, isLive, isPaced, latentFrames }) {
    if (run === this.#run?.run) return;
    this.stop();
    this.#run = { run, url, isPaced, block: blockLength(latentFrames) };
    this.#isFollowing = isPaced;
    if (isLive) this.#stopGrowing = grow(this.video, url, () => this.#follow());
    else this.video.src = url;
  }

  /** Seconds of video that have come. */
  get newest() {
    const { buffered } = this.video;
    return buffered.length ? buffered.end(buffered.length - 1) : 0;
  }

  /** Seconds that the picture is behind the newest frames; null where there is nothing to jump to. */
  get lag() {
    const canJump = this.#stopGrowing && this.video.seekable.length && this.newest > 0;
    return canJump ? Math.max(0, this.newest - this.video.currentTime) : null;
  }

  /** On to the newest frames; and keep up with them, where they come no faster than they are played. */
  goLive() {
    this.#isFollowing = this.#run.isPaced;
    this.#seek(Math.max(0, this.newest - this.#run.block)); // nearer to the newest frames playback would starve
    this.#play();
  }

  /** Let go of the file and of the connection. */
  stop() {
    this.#stopGrowing?.();
    this.#stopGrowing = this.#run = null;
    this.video.removeAttribute("src");
    this.video.load();
  }

  #follow() {
    const isFirst = this.video.played.length === 0;
    const { buffered, currentTime } = this.video;
    if (isFirst && buffered.length && buffered.start(0) > currentTime + SAME_SECONDS) return this.goLive(); // joined late
    if (isFirst) this.#play();
    const isWatched = isFirst || !this.video.paused;
    if (this.#isFollowing && isWatched && this.lag > this.#run.block + SPARE_SECONDS) this.goLive();
  }

  #seek(seconds) {
    this.#jump = seconds;
    this.video.currentTime = seconds;
  }

  /** Whoever looks back is not called away. */
  #noticeSeek() {
    if (Math.abs(this.video.currentTime - this.#jump) > SAME_SECONDS) this.#isFollowing = false;
  }

  #play() {
    this.video.play().catch(() => {}); // a page may refuse; its controls are there
  }

  /** The end of what grew: from here on the finished file, all of which can be sought in and saved. */
  #finish() {
    if (!this.#stopGrowing) return;
    this.#stopGrowing();
    this.#stopGrowing = null;
    const run = this.#run;
    this.video.src = run.url;
    const toEnd = () => run === this.#run && this.#seek(this.video.duration); // unless it was let go meanwhile
    this.video.addEventListener("loadedmetadata", toEnd, { once: true });
  }
}
