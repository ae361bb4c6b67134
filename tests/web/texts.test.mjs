/** The page's texts: translated where there is a translation, English elsewhere. */

import assert from "node:assert/strict";
import test from "node:test";

import { view } from "../../web/js/live/view.js";
import { loadTexts, setTexts, t } from "../../web/js/texts.js";
import { shortcuts } from "../../web/js/timeline/keys.js";

const JAPANESE = { "block {block} of {blocks}": "ブロック {block}/{blocks}", paused: "一時停止中", send: "" };

function page(language, fetched) {
  const app = { ui: { settings: { getSettingValue: (name) => name === "Comfy.Locale" && language } } };
  return [app, { fetchApi: async (path) => ({ json: async () => fetched(path) }) }];
}

const served = (path) => path === "/i18n" && { ja: { longlive: JAPANESE }, fr: { other: {} } };

test("values take their places, and what looks like a place in a value stays", () => {
  setTexts({});
  assert.equal(t("{a} of {b}, {c}", { a: 1, b: "{a}" }), "1 of {a}, {c}");
  setTexts({ "{a} of {b}": "{b}: {a}" });
  assert.equal(t("{a} of {b}", { a: 1, b: 2 }), "2: 1");
});

test("a page shows the language that ComfyUI is set to, and English where a sentence has no translation", async () => {
  await loadTexts(...page("ja", served));
  const paused = { state: "paused", block: 2, num_blocks: 8, seconds: 2, fps: 0, pace: "full speed", cues: [] };
  assert.equal(view(paused).status, "一時停止中 · ブロック 3/8 · 2.0 s");
  assert.equal(t("send"), "send");
  assert.match(shortcuts(), /^Arrows: /);
});

test("any other language, and a server without translations, shows English", async () => {
  const failing = () => {
    throw new Error("404");
  };
  const { warn } = console;
  console.warn = () => {};
  for (const [language, fetched] of [["fr", served], ["de", served], ["ja", () => ({})], ["ja", failing]]) {
    setTexts({});
    await loadTexts(...page(language, fetched));
    assert.equal(t("paused"), "paused");
  }
  console.warn = warn;
});
