// The controls of the thresholds.

import { byId } from "./dom.js";
import { DEFAULTS, LEAST_CONF } from "./suppression.js";

/** Reads the controls, and calls `changed` at each change. */
export class Thresholds {
  #changed;
  #hidden = new Set();

  constructor(changed) {
    this.#changed = changed;
    for (const name of ["conf", "iou"]) {
      const [slider, box] = [byId(name), byId(`${name}-number`)];
      slider.addEventListener("input", () => {
        box.value = Number(slider.value).toFixed(2);
        changed();
      });
      box.addEventListener("input", () => {
        if (!box.checkValidity() || box.value === "") return; // being typed
        slider.value = box.value;
        changed();
      });
      box.addEventListener("change", () => (box.value = Number(slider.value).toFixed(2)));
    }
    const most = byId("max-det");
    most.addEventListener("input", () => most.checkValidity() && most.value !== "" && changed());
    byId("agnostic").addEventListener("change", changed);
    byId("reset").addEventListener("click", () => this.reset());
    byId("conf").min = byId("conf-number").min = String(LEAST_CONF);
    this.#write(DEFAULTS);
  }

  /** The thresholds as `suppress` takes them. */
  get values() {
    const most = byId("max-det");
    return {
      conf: Number(byId("conf").value),
      iou: Number(byId("iou").value),
      maxDet: most.checkValidity() && most.value !== "" ? Number(most.value) : DEFAULTS.maxDet,
      agnostic: byId("agnostic").checked,
      hidden: this.#hidden,
    };
  }

  toggleClass(classId) {
    if (!this.#hidden.delete(classId)) this.#hidden.add(classId);
    this.#changed();
  }

  reset() {
    this.#write(DEFAULTS);
    this.#hidden.clear();
    this.#changed();
  }

  #write({ conf, iou, maxDet, agnostic }) {
    byId("conf").value = String(conf);
    byId("conf-number").value = conf.toFixed(2);
    byId("iou").value = String(iou);
    byId("iou-number").value = iou.toFixed(2);
    byId("max-det").value = String(maxDet);
    byId("agnostic").checked = agnostic;
  }
}
