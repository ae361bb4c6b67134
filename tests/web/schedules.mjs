// Reads [[text, switch frames], ...] as JSON, prints what the timeline makes of each: cues, or the error.

import { readFileSync } from "node:fs";
import { blocksOf, parse, serialise } from "../../web/js/timeline/model.js";

const fieldsOf = (schedule) =>
  schedule.cues.map(({ seconds, prompt, policy, blendSeconds, extra }) => [seconds, prompt, policy, blendSeconds, extra]);

function read([text, switchFrames]) {
  try {
    const schedule = parse(text, switchFrames);
    return {
      cues: fieldsOf(schedule),
      extra: schedule.extra,
      blocks: blocksOf(schedule),
      written: serialise(schedule),
      rewritten: serialise({ cues: schedule.cues.map(({ lead, source, ...cue }) => cue), extra: schedule.extra }),
    };
  } catch (error) {
    if (error.name !== "ScheduleError") throw error;
    return { error: error.message, line: error.line, column: error.column, cue: error.cue };
  }
}

console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(read)));
