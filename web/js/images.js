// Images from the page: chosen in a dialog, or dropped on an element.

import { made } from "./timeline/parts.js";

/** Ask for an image; `take(file)` gets it, if there is an answer. */
export function chooseImage(take) {
  const input = made("input", { type: "file", accept: "image/*" });
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  input.click();
}

/** Let an element take images that are dropped on it: `take(file, event)`. ComfyUI would open them as workflows. */
export function takeDropped(element, take) {
  element.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
  element.addEventListener("drop", (event) => {
    const file = [...event.dataTransfer.files].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    event.stopPropagation();
    take(file, event);
  });
}
