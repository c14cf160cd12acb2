// What is visible in which state: shows and hides, and writes the texts.

import { byId } from "./dom.js";
import { stateWords } from "./strip.js";
import { number, words } from "./words.js";

/** Arranges the page for some images, of which one may be shown; `camera` says whether it is on. */
export function arrange(images, current, camera) {
  const focused = document.activeElement;
  const some = images.length > 0;
  const active = some || camera;
  const done = images.filter(({ state }) => state === "done").length;
  const ready = current !== null && current.state === "done";
  document.body.classList.toggle("empty", !active);
  byId("welcome").hidden = active;
  byId("toolbar").hidden = !active;
  byId("strip-frame").hidden = !some;
  byId("found").hidden = byId("times").hidden = !ready;
  byId("download").hidden = done === 0;
  byId("download-scope").textContent = done ? words("download.scope", { n: done }) : "";
  byId("download-image").hidden = !(ready && !current.live);
  byId("name").textContent = current ? current.name : "";
  byId("size").textContent = ready ? `${number(current.width)} × ${number(current.height)}` : "";
  byId("look").hidden = !ready;
  byId("remove").hidden = !images.includes(current);
  byId("remove-all").hidden = images.length < 2;
  byId("note").textContent = ready && current.note ? words(current.note) : "";
  arrangeProgress(images, done);
  arrangeMessage(current);
  // Who works by keyboard goes on where the page does, and not from its top.
  if (focused !== document.body && focused?.checkVisibility() === false) byId(active ? "stage" : "pick").focus({ preventScroll: true });
}

/** The card over the image: that it waits, for what, or why it failed. */
export function arrangeMessage(current) {
  const failed = current?.state === "failed";
  const message = byId("message");
  message.hidden = current === null || current.live || current.state === "done";
  message.classList.toggle("bad", failed);
  if (message.hidden) return;
  byId("message-text").textContent = failed ? current.problem.sentence : stateWords(current);
  const { detail = "", requestId = "" } = failed ? current.problem : {};
  byId("message-detail").textContent = failed && current.problem.status ? detail : "";
  byId("message-request").textContent = requestId ? words("error.request", { id: requestId }) : "";
  byId("retry").hidden = !mayWork(current);
}

/** Whether an image failed, and may work when it is sent again. */
export function mayWork({ state, problem }) {
  return state === "failed" && problem.mayWork;
}

function arrangeProgress(images, done) {
  const failed = images.filter(({ state }) => state === "failed");
  const again = failed.filter(mayWork).length;
  byId("retry-all").hidden = again < 2;
  byId("retry-all").textContent = again ? words("retry.all", { n: again }) : "";
  const ended = done + failed.length;
  byId("progress").hidden = images.length < 2 || ended === images.length;
  byId("progress-bar").max = images.length || 1;
  byId("progress-bar").value = ended;
  byId("progress-text").textContent = words("progress", { done: ended, all: images.length });
}
