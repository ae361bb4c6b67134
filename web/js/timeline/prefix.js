// What stands between the time of a cue and the colon, a policy, a seed, an image; and what nearly does. The same rules
// as longlive_core/schedule/prefix.py.

import { AUTO, IMAGE_FILE, POLICIES, SECONDS, SPACE, ScheduleError, quoted, spelled } from "./cues.js";

// A policy, or a blend with what looks like its seconds: `blend the two: x` is a prompt, `blend 3x: x` a slip.
const KINDS = {
  policy: new RegExp(
    `^[\\t-\\r ]*(?:(${[...POLICIES, AUTO].join("|")})|blend[\\t-\\r ]+([-+]?\\.?[0-9][^\\t-\\r :]*))[\\t-\\r ]*$`,
    "i",
  ),
  seed: /^[\t-\r ]*seed[\t-\r ]+([0-9]+)[\t-\r ]*$/i,
  image: new RegExp(`^[\\t-\\r ]*image[\\t-\\r ]+(${IMAGE_FILE})[\\t-\\r ]*$`, "i"),
};
const BLEND = new RegExp(`^${SECONDS}$`);
const LIKE_A_SEED = /^([a-z]{3,5})[ =#+-]{0,2}([0-9]+)[.0-9a-z]{0,4}$/i;
const LIKE_AN_IMAGE = new RegExp(`^([a-z]{3,7})[ =]{1,2}(${IMAGE_FILE})$`, "i");
const SLIPS = [
  [LIKE_A_SEED, "seed", 1],
  [LIKE_AN_IMAGE, "image", 2],
];
const IMAGE_WITHOUT_COMMA = new RegExp(` (image ${IMAGE_FILE})`, "gi");
const SEED_WITHOUT_COMMAS = / ?(seed [0-9]+)(?![.0-9a-z]) ?/gi;
const ENDS_IN_SPACE = new RegExp(`${SPACE}$`);

/** What follows a time -> prompt, policy, blendSeconds, seed, image. */
export function readWords(words) {
  const kinds = kindsOf(words);
  if (!kinds.length) return { prompt: words };
  const head = headOf(words);
  const { policy, seed, image } = Object.fromEntries(kinds);
  if (new Set(kinds.map(([name]) => name)).size < kinds.length) {
    throw new ScheduleError(
      `${quoted(head)} names a policy, a seed or an image twice; a cue has at most one of each (where it is meant as ` +
        "words of the prompt, write auto: before it)",
    );
  }
  const prompt = words.slice(head.length + 1);
  return { prompt, ...(policy && readPolicy(policy)), seed: seed?.[1], image: image?.[1] };
}

/** What is before the colon; null where there is none. */
const headOf = (words) => (words.includes(":") ? words.slice(0, words.indexOf(":")) : null);

/**
 * What is named before the colon, in order, as in KINDS; nothing where all is words of a prompt. A list of policies
 * alone is words: `cut, keep: x` was a prompt before cues had seeds.
 */
export function kindsOf(words) {
  const head = headOf(words);
  if (head === null || ENDS_IN_SPACE.test(head)) return [];
  const alone = KINDS.policy.exec(head);
  if (alone) return [["policy", alone]];
  const kinds = head.split(",").map(kindOf);
  return kinds.every(Boolean) && kinds.some(([name]) => name !== "policy") ? kinds : [];
}

function kindOf(part) {
  const named = Object.entries(KINDS).map(([name, kind]) => [name, kind.exec(part)]);
  return named.find(([, found]) => found) ?? null;
}

function readPolicy([, name, seconds]) {
  return name ? { policy: name.toLowerCase() } : { policy: "blend", blendSeconds: readBlend(seconds) };
}

function readBlend(text) {
  if (BLEND.test(text)) return Number(text.replace(/s$/, ""));
  throw new ScheduleError(
    `${quoted(text)} is not how long a blend takes; write it as blend 3s: or blend 2.5s: (where it is meant ` +
      "as words of the prompt, write auto: before it)",
  );
}

/** What comes before the colon of a cue, in parts. */
export function writtenKinds({ policy, blendSeconds, seed, image }) {
  const change = policy === "blend" ? `blend ${spelled(blendSeconds)}` : policy;
  return [change, seed && `seed ${seed}`, image && `image ${image}`].filter(Boolean);
}

/** What a cue lacks and may be meant by the first words of its prompt: { kind, meant }; null where nothing is. */
export function slipOf(cue) {
  const own = writtenKinds(cue);
  const meant = own.length ? moreKinds(own, cue.prompt) : meantPrefix(cue.prompt);
  return meant && { kind: mainKind(own.length ? cue.prompt : `${meant}:`), meant };
}

/** What the prefix of some words is called: image, seed or policy. */
function mainKind(words) {
  const names = kindsOf(words).map(([name]) => name);
  return Object.keys(KINDS).findLast((name) => names.includes(name));
}

/** `cut, seed 7` where a cue is `cut: seed 7: x`; null where its prompt names nothing that it lacks. */
function moreKinds(own, prompt) {
  const [has, named] = [own.map(kindOf), kindsOf(prompt)].map((kinds) => kinds.map(([name]) => name));
  return named.length && !named.some((name) => has.includes(name)) ? [...own, headOf(prompt)].join(", ") : null;
}

/** What a prompt may begin with by a slip: recache for `recahce:`, cut, seed 7 for `cut seed 7:`; else null. */
export function meantPrefix(prompt) {
  const policy = meantPolicy(prompt);
  if (policy || !prompt.includes(":") || kindsOf(prompt).length) return policy;
  const head = headOf(prompt).replace(SEED_WITHOUT_COMMAS, ",$1,").replace(IMAGE_WITHOUT_COMMA, ",$1");
  const parts = head.split(",").map((part) => part.replace(/^ +| +$/g, "")).filter(Boolean).map(meantPart);
  return parts.every(Boolean) && parts.some((part) => /^(seed|image) /.test(part)) ? parts.join(", ") : null;
}

function meantPart(part) {
  const [name, found] = kindOf(part) ?? [];
  if (name) return name === "image" ? `image ${found[1]}` : part.toLowerCase();
  for (const [like, word, most] of SLIPS) {
    const [, typed, value] = like.exec(part) ?? [];
    if (typed && numSlips(typed.toLowerCase(), word) <= most) return `${word} ${value}`;
  }
  return meantPolicy(`${part}:`);
}

const LIKE_A_POLICY = new RegExp(`^([^${SPACE.slice(1)}{2,9}?)(?:${SPACE}+${SECONDS})?(${SPACE}?):`);

/** The policy that a prompt may begin with by a slip of at most two letters (recahce:, blnd 3s:), or null. */
function meantPolicy(prompt) {
  const [, word, space] = LIKE_A_POLICY.exec(prompt) ?? [];
  if (!word) return null;
  const isNear = (policy, slips) => slips > 0 && slips <= Math.min(2, (policy.length - 1) >> 1);
  return POLICIES.find((policy) => isNear(policy, numSlips(word.toLowerCase(), policy) + space.length)) ?? null;
}

/** How many letters are wrong, missing, too many or exchanged with their neighbour. */
function numSlips(word, due) {
  let [before, older, row] = [[], [], [...Array(due.length + 1).keys()]];
  for (let i = 0; i < word.length; i += 1) {
    [before, older, row] = [older, row, [i + 1]];
    for (let j = 0; j < due.length; j += 1) {
      const ways = [older[j + 1] + 1, row[j] + 1, older[j] + Number(word[i] !== due[j])];
      if (i && j && word[i] === due[j - 1] && word[i - 1] === due[j]) ways.push(before[j - 1] + 1);
      row.push(Math.min(...ways));
    }
  }
  return row.at(-1);
}
