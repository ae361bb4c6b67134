// Dragging on the timeline: edges, and cues to another place.

import * as model from "./model.js";

const DRAG_PIXELS = 5;

/** Seconds under the pointer, however far the host has zoomed the node. */
export function secondsAt({ lane, pixels }, event) {
  const box = lane.getBoundingClientRect();
  return ((event.clientX - box.left) / box.width) * (lane.offsetWidth / pixels);
}

/** The pointer went down on the track: select the cue, and follow a drag of it or of its edge. */
export function onPress(view, event) {
  const pressed = event.target.closest(".ll-cue");
  if (!pressed || event.button !== 0) return;
  const index = [...view.track.querySelectorAll(".ll-cue")].indexOf(pressed);
  view.select(index);
  event.preventDefault();
  if (view.error || view.isReadOnly) return;
  const isEdge = event.target.classList.contains("ll-edge");
  follow(view, event.pointerId, isEdge ? edgeDrag(view, index) : cueDrag(view, index, event));
}

/** Follow the pointer until it is released (drop), taken away, or Esc is pressed. */
function follow(view, pointer, { move, drop }) {
  const before = view.schedule;
  const stop = new AbortController();
  const done = (act) => (event) => {
    stop.abort();
    view.drop.hidden = true;
    view.schedule = before;
    act(event);
    view.draw();
  };
  const cancel = done(() => {});
  const { signal } = stop;
  view.track.setPointerCapture(pointer);
  view.track.addEventListener("pointermove", move, { signal });
  view.track.addEventListener("pointerup", done(drop), { signal });
  view.track.addEventListener("pointercancel", cancel, { signal });
  view.element.addEventListener("keydown", (event) => event.key === "Escape" && cancel(), { signal });
}

function edgeDrag(view, index) {
  const before = view.schedule;
  const at = (event) => view.beats.near(secondsAt(view, event), event, view.pixels);
  const dragged = (event) => model.moveEdge(before, index, at(event));
  return {
    move: (event) => {
      view.schedule = dragged(event);
      view.draw();
    },
    drop: (event) => view.commit(dragged(event)),
  };
}

function cueDrag(view, index, pressed) {
  const isFar = (event) => Math.abs(event.clientX - pressed.clientX) > DRAG_PIXELS;
  return {
    move: (event) => {
      view.drop.hidden = !isFar(event);
      view.drop.style.left = `${gapSeconds(view, gapAt(view, event)) * view.pixels}px`;
    },
    drop: (event) => {
      const gap = gapAt(view, event);
      const to = gap > index ? gap - 1 : gap;
      if (isFar(event) && to !== index) view.reorder(index, to);
    },
  };
}

/** Between which cues the pointer is: 0 is before the first. */
function gapAt(view, event) {
  const seconds = secondsAt(view, event);
  const lengths = model.lengthsOf(view.schedule, view.endBlock);
  const begins = (block) => model.secondsOf(view.schedule, block);
  const middles = model
    .blocksOf(view.schedule)
    .map((block, index) => (begins(block) + begins(block + lengths[index])) / 2);
  return middles.filter((middle) => middle < seconds).length;
}

function gapSeconds({ schedule, endBlock }, gap) {
  const blocks = model.blocksOf(schedule);
  const end = blocks.at(-1) + model.lengthsOf(schedule, endBlock).at(-1);
  return model.secondsOf(schedule, blocks[gap] ?? end);
}
