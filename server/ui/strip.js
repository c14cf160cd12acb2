// The row of images: each with its thumbnail, its state or its count.

import { byId, element, rove } from "./dom.js";
import { number, words } from "./words.js";

export class Strip {
  #list = byId("strip");
  #items = new Map(); // image -> button
  #select;

  /** @param {(image) => void} select is called with the image that a person chose. */
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

  add(image) {
    const item = element("button", { type: "button", className: "item", role: "option", ariaSelected: "false", tabIndex: -1, onclick: () => this.#select(image) },
      element("span", { className: "thumb" }), element("span", { className: "badge", ariaHidden: "true" }));
    item.title = image.name;
    this.#items.set(image, item);
    this.#list.append(item);
    this.update(image);
  }

  remove(image) {
    this.#items.get(image)?.remove();
    this.#items.delete(image);
  }

  setThumbnail(image, canvas) {
    this.#items.get(image)?.firstChild.replaceChildren(canvas);
  }

  /** Shows the state and the count that an image has now. */
  update(image) {
    const item = this.#items.get(image);
    if (!item) return;
    const { name, state, count = 0 } = image;
    item.dataset.state = state;
    item.lastChild.textContent = state === "done" ? number(count) : state === "failed" ? "!" : "";
    const label = state === "done"
      ? words("strip.image", { name, n: count })
      : words("strip.state", { name, state: stateWords(image) });
    item.ariaLabel = label;
  }

  /** Marks the shown image; null none. */
  select(image) {
    for (const [candidate, item] of this.#items) {
      item.ariaSelected = String(candidate === image);
      item.tabIndex = candidate === image ? 0 : -1;
    }
    const item = this.#items.get(image);
    if (item) this.#list.scrollLeft = item.offsetLeft - (this.#list.clientWidth - item.offsetWidth) / 2;
    else if (this.#list.firstChild) this.#list.firstChild.tabIndex = 0;
  }
}

/** Where an image stands, in words. */
export function stateWords({ state, problem, retryAt }) {
  if (state !== "retrying") return words(`state.${state}`);
  const n = Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
  if (problem.lost) return words("state.lost", { n });
  return words(["not_ready", "draining"].includes(problem.code) ? "state.notReady" : "state.retrying", { n });
}
