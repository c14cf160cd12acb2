// What was found in the shown image: classes with counts, and the list.

import { byId, element, rove } from "./dom.js";
import { classColour } from "./palette.js";
import { number, words } from "./words.js";

/**
 * @param {{onHover, onToggleClass}} listeners: the index of a row that is pointed at or has the focus, or -1;
 *   a class id whose button was pressed.
 */
export class Results {
  #rows = byId("rows");
  #classes = byId("classes");
  #listeners;

  constructor(listeners) {
    this.#listeners = listeners;
    this.#rows.addEventListener("pointerover", (event) => this.#hover(event.target));
    this.#rows.addEventListener("pointerleave", () => this.#listeners.onHover(-1));
    this.#rows.addEventListener("focusin", (event) => this.#hover(event.target));
    this.#rows.addEventListener("focusout", (event) => {
      if (!this.#rows.contains(event.relatedTarget)) this.#listeners.onHover(-1);
    });
    this.#rows.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Lists detections, best first. */
  show(detections) {
    this.#rows.replaceChildren(...detections.map((detection, i) => this.#row(detection, i)));
    byId("table").hidden = detections.length === 0;
    byId("nothing").hidden = detections.length > 0;
  }

  /**
   * Shows the classes that the candidates have, with how many of each are left.
   *
   * @param {{id, name, count, shown}[]} classes
   */
  showClasses(classes) {
    const focused = document.activeElement?.dataset.classId;
    this.#classes.replaceChildren(...classes.map(({ id, name, count, shown }) => {
      const swatch = element("span", { className: "swatch", ariaHidden: "true" });
      swatch.style.background = classColour(id);
      const button = element("button", {
        type: "button", className: "chip", ariaPressed: String(shown),
        onclick: () => this.#listeners.onToggleClass(id),
      }, swatch, element("span", { className: "chip-name", textContent: name }), element("span", { className: "chip-count", textContent: number(count) }));
      button.dataset.classId = String(id);
      return button;
    }));
    if (focused !== undefined) this.#classes.querySelector(`[data-class-id="${focused}"]`)?.focus();
  }

  /** Lets one row stand out, and scrolls it into the list's view; -1 none. */
  mark(index, { focus = false } = {}) {
    for (const row of this.#rows.querySelectorAll(".marked")) row.classList.remove("marked");
    const row = this.#rows.children[index];
    if (!row) return;
    row.classList.add("marked");
    if (focus) row.focus({ preventScroll: true });
    // Only within the list: the page must not jump under the pointer.
    const list = byId("table-frame");
    const head = 34;
    if (row.offsetTop - head < list.scrollTop) list.scrollTop = row.offsetTop - head;
    else if (row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = row.offsetTop + row.offsetHeight - list.clientHeight;
  }

  #row({ class_id, class_name, score, box }, index) {
    const swatch = element("span", { className: "swatch", ariaHidden: "true" });
    swatch.style.background = classColour(class_id);
    const bar = element("span", { className: "bar", ariaHidden: "true" }, element("span"));
    bar.firstChild.style.width = `${100 * score}%`;
    const pixels = (value) => number(Math.round(value), 0);
    const place = words("found.placeOf", {
      x: pixels(box.x1), y: pixels(box.y1), w: pixels(box.x2 - box.x1), h: pixels(box.y2 - box.y1),
    });
    const row = element("tr", { role: "row", tabIndex: index === 0 ? 0 : -1 },
      element("td", { role: "gridcell" }, swatch, element("span", { className: "name", title: class_name, textContent: class_name })),
      element("td", { role: "gridcell", className: "score" }, number(score, 3), bar),
      element("td", { role: "gridcell", className: "place", textContent: place }));
    row.dataset.index = String(index);
    return row;
  }

  #hover(target) {
    const row = target.closest("tr");
    if (row) this.#listeners.onHover(Number(row.dataset.index));
  }

  #move(event) {
    const rows = [...this.#rows.children];
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -rows.length, End: rows.length };
    if (event.key === "Escape") {
      this.#listeners.onHover(-1);
    } else if (event.key in steps) {
      const from = event.target.closest("tr");
      const to = rove(rows, from, steps[event.key]);
      from.tabIndex = -1;
      to.tabIndex = 0;
      event.preventDefault();
    }
  }
}
