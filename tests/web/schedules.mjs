// Reads [[text, switch frames], ...] as JSON, prints what the timeline makes of each: cues, or the error.

import { readFileSync } from "node:fs";
import { blocksOf, parse, serialise } from "../../web/js/timeline/model.js";

const fieldsOf = (schedule) =>
  schedule.cues.map((cue) => [cue.seconds, cue.prompt, cue.policy, cue.blendSeconds, cue.seed, cue.image, cue.extra]);

const bare = ({ lead, source, ...cue }) => cue;

function read([text, switchFrames]) {
  try {
    const schedule = parse(text, switchFrames);
    return {
      cues: fieldsOf(schedule),
      extra: schedule.extra,
      always: schedule.always,
      blocks: blocksOf(schedule),
      written: serialise(schedule),
      rewritten: serialise({ ...schedule, head: undefined, tail: "", cues: schedule.cues.map(bare) }),
    };
  } catch (error) {
    if (error.name !== "ScheduleError") throw error;
    return { error: error.message, line: error.line, column: error.column, cue: error.cue };
  }
}

console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(read)));
