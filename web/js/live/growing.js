/** A file that still grows, as the source of a <video>: its bytes go into a MediaSource as they come. */

const RETRY_MS = 500;

const HEADER_BYTES = 8; // a box of an mp4 begins with its length, then its type

/** The codecs in an mp4's beginning, as MediaSource wants them named; "" until its header is there completely. */
export function codecsOf(bytes) {
  const header = headerOf(bytes);
  const setup = header && find(header, "avcC");
  if (!setup) return "";
  const profile = [...header.subarray(setup + 5, setup + 8)]; // profile, constraints, level
  const video = `avc1.${profile.map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  return find(header, "mp4a") ? `${video}, mp4a.40.2` : video;
}

/** The box moov, of the tracks alone: what comes after them, as a prompt, may hold any words. */
function headerOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at + HEADER_BYTES <= bytes.length; ) {
    const end = at + view.getUint32(at);
    if (find(bytes.subarray(at, at + HEADER_BYTES), "moov")) {
      const moov = bytes.subarray(at, end);
      return end > bytes.length ? null : moov.subarray(0, find(moov, "udta") || moov.length);
    }
    at = Math.max(end, at + HEADER_BYTES);
  }
  return null;
}

/** Where a box's type of four letters first stands; 0 if nowhere. */
function find(bytes, type) {
  const codes = [...type].map((letter) => letter.charCodeAt());
  return Math.max(0, bytes.findIndex((_, at) => codes.every((code, index) => bytes[at + index] === code)));
}

/** `first` and then `second`. */
export function joined(first, second) {
  const bytes = new Uint8Array(first.length + second.length);
  bytes.set(first);
  bytes.set(second, first.length);
  return bytes;
}

/** Once a target has fired an event. */
function once(target, event) {
  return new Promise((resolve) => target.addEventListener(event, resolve, { once: true }));
}

/**
 * Play the file at `url` in `video`, calling `onBytes()` whenever more has come. -> a function that stops it
 *
 * Not simply as its `src`: in Chromium the first picture of a small video then came after 17 s, since what
 * comes is passed on in pieces of 32 KB, and there was no seeking. Through a MediaSource every block is on
 * screen as it comes. Where a browser has none, or a page forbids blob: media, as ComfyUI's does when started
 * with --disable-api-nodes, the file is its `src` all the same: better late than never.
 */
export function grow(video, url, onBytes) {
  const Source = globalThis.MediaSource ?? globalThis.ManagedMediaSource; // iPhones have the other one only
  if (!Source) {
    playPlainly(video, url);
    return () => {};
  }
  const source = new Source();
  const abort = new AbortController();
  const { signal } = abort;
  const blob = URL.createObjectURL(source);
  video.addEventListener("error", () => playPlainly(video, url), { once: true, signal });
  video.disableRemotePlayback = true; // a ManagedMediaSource opens only then
  video.src = blob;
  feed(source, url, onBytes, signal)
    .catch(({ message }) => signal.aborted || console.warn(`LongLive: the growing video broke off: ${message}`))
    .finally(() => source.readyState === "open" && source.endOfStream());
  return () => {
    abort.abort();
    URL.revokeObjectURL(blob);
  };
}

function playPlainly(video, url) {
  video.src = url;
  video.play().catch(() => {}); // a page may refuse; its controls are there
}

async function feed(source, url, onBytes, signal) {
  await once(source, "sourceopen");
  const response = await fetch(url, { signal, cache: "no-store" });
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const reader = response.body.getReader();
  let buffer;
  let head = new Uint8Array();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    head = buffer ? part.value : joined(head, part.value);
    buffer ??= opened(source, codecsOf(head));
    if (buffer && (await append(buffer, head, signal))) onBytes();
  }
}

function opened(source, codecs) {
  return codecs ? source.addSourceBuffer(`video/mp4; codecs="${codecs}"`) : undefined;
}

/** Browsers hold some minutes and drop what was played; what does not fit yet waits for that. */
async function append(buffer, bytes, signal) {
  while (!signal.aborted) {
    try {
      buffer.appendBuffer(bytes);
      await once(buffer, "updateend");
      return true;
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
  return false;
}
