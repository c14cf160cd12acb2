// Messages beside the image: a line for everybody, and words for those who do not see the page.

import { byId } from "./dom.js";

const ANNOUNCE_AFTER_MS = 600; // a slider that moves is not read out at each step

let announcing = 0;

/** Has a screen reader say it when nothing newer came in the meantime. */
export function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => (byId("announcements").textContent = text), ANNOUNCE_AFTER_MS);
}

/** Has a screen reader say it at once. */
export function alarm(text) {
  byId("alerts").textContent = text;
}

/** A line for everybody, above the image; "" takes it away. */
export function say(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = text === "";
}
