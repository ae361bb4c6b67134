/** Prompt cards without a page: what is saved, moved and said; keys and notes. */

import assert from "node:assert/strict";
import test from "node:test";

import { cardsOf, indexOfKey, labelOf, moved, replaced, titleOf } from "../../web/js/live/cards.js";
import { noteName, noteOf } from "../../web/js/live/midi.js";

test("of a saved value only cards are taken, and of a card what it needs", () => {
  for (const value of [undefined, null, "rain", 5, {}, [null, 3, {}, { prompt: " " }, { prompt: 4 }]]) {
    assert.deepEqual(cardsOf(value), []);
  }
  const saved = [{ prompt: " it rains\n", name: " ", policy: "auto", blend: 3, note: 200, more: 1 }];
  assert.deepEqual(cardsOf(saved), [{ prompt: "it rains" }]);
  const full = { prompt: "a forest at night", name: "night", policy: "blend", blend: 3, note: 60 };
  assert.deepEqual(cardsOf([full]), [full]);
  assert.deepEqual(cardsOf(JSON.parse(JSON.stringify(cardsOf([full, ...saved])))), cardsOf([full, ...saved]));
  for (const blend of [undefined, "x", 0, -1, 61, NaN]) {
    assert.equal(cardsOf([{ prompt: "a", policy: "blend", blend }])[0].blend, 2.25);
  }
  assert.equal(cardsOf(Array(100).fill({ prompt: "a" })).length, 64);
});

test("cards are moved as far as there is a place", () => {
  const cards = ["a", "b", "c"];
  assert.deepEqual(moved(cards, 0, 2), ["b", "c", "a"]);
  assert.deepEqual(moved(cards, 2, 0), ["c", "a", "b"]);
  assert.deepEqual([moved(cards, 0, -1), moved(cards, 2, 9)], [cards, cards]);
});

test("a note presses one card: the last that learned it", () => {
  const cards = [{ prompt: "a", note: 60 }, { prompt: "b", note: 62 }];
  assert.deepEqual(replaced(cards, 1, { prompt: "b", note: 60 }), [{ prompt: "a" }, { prompt: "b", note: 60 }]);
  assert.deepEqual(replaced(cards, 2, { prompt: "c" }), [...cards, { prompt: "c" }]);
});

test("a card is called by its name, else by the first words of its prompt", () => {
  assert.equal(labelOf({ prompt: "it rains", name: "rain" }), "rain");
  assert.equal(labelOf({ prompt: "it rains" }), "it rains");
  assert.equal(labelOf({ prompt: "a forest at night with rain" }), "a forest at night with\u2026");
  assert.equal(titleOf({ prompt: "it rains", policy: "blend", blend: 3, note: 61 }), "it rains \u00b7 blend 3 s \u00b7 C#4");
  assert.equal(titleOf({ prompt: "it rains", policy: "cut" }), "it rains \u00b7 cut");
});

test("the keys 1 to 9 are cards, of any keyboard, and not where one types", () => {
  const target = { closest: () => null };
  const press = (code, more = {}) => indexOfKey({ code, target, ...more });
  assert.deepEqual([press("Digit1"), press("Numpad9"), press("Digit0"), press("KeyA")], [0, 8, null, null]);
  for (const key of ["ctrlKey", "metaKey", "altKey"]) assert.equal(press("Digit1", { [key]: true }), null);
  assert.equal(press("Digit1", { target: { closest: () => ({}) } }), null);
});

test("of MIDI messages the beginning of a note counts, on any channel", () => {
  assert.deepEqual([[0x90, 60, 1], [0x9f, 0, 127], [0x90, 60, 0], [0x80, 60, 64], [0xb0, 60, 1]].map(noteOf), [
    ...[60, 0, null, null, null],
  ]);
  assert.deepEqual([0, 60, 61, 127].map(noteName), ["C-1", "C4", "C#4", "G9"]);
});
