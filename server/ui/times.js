// Where the time of one image went.

import { byId, element } from "./dom.js";
import { number, words } from "./words.js";

const STAGES = ["decode", "queue", "inference", "postprocess"];

/** Shows the timings of a response, and what the browser measured around it, in milliseconds. */
export function showTimes(timingsMs, roundTripMs) {
  const known = STAGES.map((stage) => [stage, timingsMs[stage]]);
  const rest = Math.max(0, timingsMs.total - known.reduce((sum, [, ms]) => sum + ms, 0));
  const parts = [...known, ["rest", rest], ["network", Math.max(0, roundTripMs - timingsMs.total)]];
  byId("times-bar").replaceChildren(...parts.map(([stage, ms]) => {
    const part = element("span", { className: `stage-${stage}`, title: `${words(`times.${stage}`)} ${inMs(ms)}` });
    part.style.flexGrow = String(ms);
    return part;
  }));
  byId("times-list").replaceChildren(
    ...parts.flatMap(([stage, ms]) => line(stage, ms, `dot stage-${stage}`)),
    ...line("total", timingsMs.total, "dot none"),
    ...line("roundTrip", roundTripMs, "dot none"),
  );
}

function line(name, ms, dot) {
  const strong = dot.endsWith("none") ? "strong" : "";
  return [
    element("dt", { className: strong }, element("span", { className: dot, ariaHidden: "true" }), words(`times.${name}`)),
    element("dd", { className: strong, textContent: inMs(ms) }),
  ];
}

function inMs(ms) {
  return words("times.ms", { n: number(ms, ms < 100 ? 1 : 0) });
}
