// Seconds <-> blocks of the video: 16 frames a second; a latent frame holds four of them, the very first one. Blocks
// have 3 latent frames, or 1 in a frame-wise model.

const FRAME_RATE = 16;
const TIME_STRIDE = 4; // frames in a latent frame
const TIME_EPS = 1e-6; // frames

export const LATENT_FRAMES = 3; // of a block, unless the model has others

/** How long every block but the first is, in seconds. */
export function blockLength(latentFrames = LATENT_FRAMES) {
  return (latentFrames * TIME_STRIDE) / FRAME_RATE;
}

/** When a block begins, in seconds. */
export function blockSeconds(block, latentFrames = LATENT_FRAMES) {
  return latentFrameSeconds(block * latentFrames);
}

/** The first block that begins at `seconds` or later: where a cue of that time takes effect. */
export function blockAt(seconds, latentFrames = LATENT_FRAMES) {
  const frame = Math.ceil(seconds * FRAME_RATE - TIME_EPS);
  return frame > 0 ? Math.ceil((frame - 1 + TIME_STRIDE) / (latentFrames * TIME_STRIDE)) : 0;
}

/** The block whose beginning is nearest to `seconds`. */
export function nearestBlock(seconds, latentFrames = LATENT_FRAMES) {
  const after = blockAt(seconds, latentFrames);
  const [before, next] = [after - 1, after].map((block) => blockSeconds(block, latentFrames));
  return after > 0 && seconds - before < next - seconds ? after - 1 : after;
}

/** When a latent frame begins, in seconds: the first one holds one frame, every other four. */
export function latentFrameSeconds(frame) {
  return frame > 0 ? (TIME_STRIDE * (frame - 1) + 1) / FRAME_RATE : 0;
}
