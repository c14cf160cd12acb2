// The row of pictures: each with its thumbnail, its state or its count.

import { byId, element, rove } from "./dom.js";
import { number, words } from "./words.js";

export class Strip {
  #list = byId("strip");
  #items = new Map(); // picture -> button
  #select;

  /** @param {(picture) => void} select is told which picture a person chose. */
  constructor(select) {
    this.#select = select;
    this.#list.addEventListener("keydown", (event) => {
      const items = [...this.#list.children];
      const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -items.length, End: items.length };
      if (!(event.key in steps)) return;
      rove(items, event.target.closest("button"), steps[event.key])?.click();
      event.preventDefault();
    });
  }

  add(picture) {
    const item = element("button", { type: "button", className: "item", role: "option", "aria-selected": "false", tabIndex: -1, onclick: () => this.#select(picture) },
      element("span", { className: "thumb" }), element("span", { className: "badge", "aria-hidden": "true" }));
    item.title = picture.name;
    this.#items.set(picture, item);
    this.#list.append(item);
    this.update(picture);
  }

  remove(picture) {
    this.#items.get(picture)?.remove();
    this.#items.delete(picture);
  }

  setThumbnail(picture, canvas) {
    this.#items.get(picture)?.firstChild.replaceChildren(canvas);
  }

  /** Shows the state and the count that a picture has now. */
  update(picture) {
    const item = this.#items.get(picture);
    if (!item) return;
    const { name, state, count = 0 } = picture;
    item.dataset.state = state;
    item.lastChild.textContent = state === "done" ? number(count) : state === "failed" ? "!" : "";
    const label = state === "done"
      ? words("strip.picture", { name, n: count })
      : words("strip.state", { name, state: stateWords(picture) });
    item.setAttribute("aria-label", label);
  }

  /** Marks the shown picture; null none. */
  select(picture) {
    for (const [each, item] of this.#items) {
      item.setAttribute("aria-selected", String(each === picture));
      item.tabIndex = each === picture ? 0 : -1;
    }
    const item = this.#items.get(picture);
    if (item) this.#list.scrollLeft = item.offsetLeft - (this.#list.clientWidth - item.offsetWidth) / 2;
    else if (this.#list.firstChild) this.#list.firstChild.tabIndex = 0;
  }
}

/** Where a picture stands, in words. */
export function stateWords({ state, problem, retryAt }) {
  if (state !== "retrying") return words(`state.${state}`);
  const n = Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
  if (problem.lost) return words("state.lost", { n });
  return words(["not_ready", "draining"].includes(problem.code) ? "state.notReady" : "state.retrying", { n });
}
