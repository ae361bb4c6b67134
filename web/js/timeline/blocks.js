// Seconds <-> blocks of the video: 16 frames a second, 9 frames in the first block, 12 in every other.

const FRAME_RATE = 16;
const FIRST_BLOCK_FRAMES = 9;
const BLOCK_FRAMES = 12;
const TIME_EPS = 1e-6; // frames

export const BLOCK_SECONDS = BLOCK_FRAMES / FRAME_RATE;
export const FIRST_BLOCK_SECONDS = FIRST_BLOCK_FRAMES / FRAME_RATE;

/** When a block begins, in seconds. */
export function blockSeconds(block) {
  return block > 0 ? ((block - 1) * BLOCK_FRAMES + FIRST_BLOCK_FRAMES) / FRAME_RATE : 0;
}

/** The first block that begins at `seconds` or later: where a cue of that time takes effect. */
export function blockAt(seconds) {
  const frame = Math.ceil(seconds * FRAME_RATE - TIME_EPS);
  return frame > 0 ? Math.max(0, Math.ceil((frame - FIRST_BLOCK_FRAMES) / BLOCK_FRAMES)) + 1 : 0;
}

/** The block whose beginning is nearest to `seconds`. */
export function nearestBlock(seconds) {
  const after = blockAt(seconds);
  const isNearerBefore = after > 0 && seconds - blockSeconds(after - 1) < blockSeconds(after) - seconds;
  return isNearerBefore ? after - 1 : after;
}

/** When a latent frame begins, in seconds: the first one holds one frame, every other four. */
export function latentFrameSeconds(frame) {
  return frame > 0 ? (4 * (frame - 1) + 1) / FRAME_RATE : 0;
}
