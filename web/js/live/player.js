/** What a <video> shows of a node's runs: the file that grows, played at real time, then the finished one. */

import { blockLength } from "../timeline/blocks.js";
import { grow } from "./growing.js";

const SPARE_SECONDS = 0.45; // further behind than this and a block, a viewer who follows is brought forward
const SAME_SECONDS = 0.05;
const HAVE_CURRENT_FRAME = 2; // readyState of a video that has a picture, and may have no next one
const STILL_STYLE = {
  ...{ position: "absolute", inset: 0, width: "100%", height: "100%" },
  ...{ objectFit: "contain", pointerEvents: "none" },
};

export class Player {
  #still = null; // the last picture, over the video until there is another
  #isJoining = false;
  #hasStarved = false;
  #run = null;
  #stopGrowing = null;
  #isFollowing = false;
  #jump = 0;

  constructor(video) {
    this.video = video;
    video.addEventListener("seeking", () => this.#noticeSeek());
    video.addEventListener("ended", () => this.#finish());
    video.addEventListener("waiting", () => this.#rest());
    for (const name of ["loadeddata", "seeked", "playing"]) video.addEventListener(name, () => this.#uncover());
  }

  /**
   * Show a run: `url` of its file, another one once a part was cut off, `isLive` while it grows, `isPaced` if it is made in real time, `isPaused` while it
   * is held; `seconds` of it were made before.
   */
  show({ run, url, isLive, isPaced, isPaused = false, latentFrames, seconds = 0 }) {
    if (run !== this.#run?.run || url !== this.#run.url) this.#begin({ run, url, isLive, isPaced, block: blockLength(latentFrames), seconds });
    Object.assign(this.#run, { isLive, isPaused });
    if (isPaused) this.#rest();
    else if (this.#hasStarved) this.#play();
  }

  /** Show a place of what has come. */
  lookAt(seconds) {
    this.#isFollowing = false;
    this.#seek(seconds);
  }

  #begin({ url, isLive, isPaced, block, seconds, ...names }) {
    this.#cover();
    this.#letGo();
    this.#run = { ...names, url, isPaced, block, joined: seconds };
    this.#isFollowing = isPaced;
    this.#hasStarved = false;
    this.#isJoining = isLive && seconds > block + SPARE_SECONDS;
    if (isLive) this.#stopGrowing = grow(this.video, url, () => this.#follow());
    else this.video.src = url;
  }

  /** Seconds of video that have come. */
  get newest() {
    const { buffered } = this.video;
    return buffered.length ? buffered.end(buffered.length - 1) : 0;
  }

  /** Seconds that the picture is behind the newest frames; null where there are none to come. */
  get lag() {
    const canJump = this.#stopGrowing && this.#run.isLive && this.video.seekable.length && this.newest > 0;
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
    this.#still?.remove();
    this.#still = null;
    this.#letGo();
  }

  #letGo() {
    this.#stopGrowing?.();
    this.#stopGrowing = this.#run = null;
    this.video.removeAttribute("src");
    this.video.load();
  }

  #follow() {
    const isFirst = this.video.played.length === 0;
    const { buffered, currentTime } = this.video;
    if (isFirst && buffered.length && buffered.start(0) > currentTime + SAME_SECONDS) return this.goLive(); // joined late
    if (this.#isJoining && this.lag > this.#run.block + SPARE_SECONDS) this.#join();
    if (isFirst) this.#play();
    const isWatched = isFirst || !this.video.paused;
    if (this.#isFollowing && isWatched && this.lag > this.#run.block + SPARE_SECONDS) this.goLive();
  }

  /** Begin near the newest frames where a run was joined late, as after a reload. */
  #join() {
    this.#isJoining = this.newest < this.#run.joined;
    this.goLive();
  }

  /** Stop where the frames of a held run end: a video that waits looks as if it hung. */
  #rest() {
    if (!this.#run?.isPaused || this.video.paused || this.video.readyState > HAVE_CURRENT_FRAME) return;
    this.#hasStarved = true;
    this.video.pause();
  }

  /** Keep the last picture on the page while the video gets another source. */
  #cover() {
    const { video } = this;
    if (this.#still || !video.videoWidth || video.readyState < HAVE_CURRENT_FRAME) return;
    const size = { width: video.videoWidth, height: video.videoHeight };
    this.#still = Object.assign(video.ownerDocument.createElement("canvas"), size);
    Object.assign(this.#still.style, STILL_STYLE);
    this.#still.getContext("2d").drawImage(video, 0, 0);
    video.after(this.#still);
  }

  #uncover() {
    if (this.video.seeking || this.video.readyState < HAVE_CURRENT_FRAME) return;
    this.#still?.remove();
    this.#still = null;
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
    this.#hasStarved = false;
    this.video.play().catch(() => {}); // a page may refuse; its controls are there
  }

  /** The end of what grew: from here on the finished file, all of which can be sought in and saved. */
  #finish() {
    if (!this.#stopGrowing) return;
    this.#cover();
    this.#stopGrowing();
    this.#stopGrowing = null;
    const run = this.#run;
    this.video.src = run.url;
    const toEnd = () => run === this.#run && this.#seek(this.video.duration); // unless it was let go meanwhile
    this.video.addEventListener("loadedmetadata", toEnd, { once: true });
  }
}
