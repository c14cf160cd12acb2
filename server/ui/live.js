// The camera's buttons, and its image on the stage.

import { alarm, say } from "./announcements.js";
import { Camera, CameraProblem } from "./camera.js";
import { byId } from "./dom.js";
import { number, words } from "./words.js";

/**
 * At most one camera.
 *
 * @param {{opened, responded, taken, stopped, changed}} listeners: `opened(video, size)`; `responded(response,
 *   roundTripMs)` of a live image; `taken(file)`; `stopped()` by a person or by itself; `changed()` of
 *   what the buttons say.
 */
export class Live {
  /** What stands where else an image does, while the camera is on. */
  frame = { name: "", live: true, state: "waiting", candidates: null, classNames: new Map() };
  #camera = null;
  #openings = 0; // how often a camera was opened or closed
  #count = 0;
  #listeners;

  constructor(listeners) {
    this.#listeners = listeners;
    for (const id of ["camera", "camera-more"]) byId(id).addEventListener("click", () => this.#open());
    byId("camera-stop").addEventListener("click", () => this.#stop());
    byId("camera-take").addEventListener("click", () => this.#take());
    byId("camera-live").addEventListener("click", () => {
      if (this.#camera.live) this.#camera.pause();
      else this.#run();
      listeners.changed();
    });
  }

  get on() {
    return this.#camera !== null;
  }

  /** Turns it off, also while the browser still waits for the permission. */
  close() {
    this.#openings += 1;
    this.#camera?.close();
    this.#camera = null;
  }

  /** Shows the buttons as the camera is. */
  showButtons() {
    byId("camera-bar").hidden = !this.on;
    byId("camera-more").hidden = this.on;
    byId("camera-live").ariaPressed = String(this.#camera?.live ?? false);
    if (!this.#camera?.live) byId("camera-rate").textContent = "";
  }

  async #open() {
    say("");
    this.close();
    const opening = this.#openings;
    let camera;
    try {
      camera = await Camera.open();
    } catch (error) {
      return showProblem(error);
    }
    if (opening !== this.#openings) return camera.close(); // a second click, or images that came meanwhile
    this.#camera = camera;
    camera.onEnded(() => camera === this.#camera && this.#stop());
    Object.assign(this.frame, { name: words("camera.title"), state: "waiting", candidates: null });
    this.#listeners.opened(camera.video, camera.size);
    this.#run();
    this.#listeners.changed();
  }

  #run() {
    const camera = this.#camera;
    let last = performance.now();
    const found = (response, roundTripMs) => {
      if (camera !== this.#camera) return;
      const now = performance.now();
      byId("camera-rate").textContent = words("camera.rate", { n: number(1000 / (now - last), 1) });
      last = now;
      say("");
      this.#listeners.responded(response, roundTripMs);
    };
    camera.run(found, (problem) => {
      say(problem.sentence);
      this.#listeners.changed();
    });
  }

  async #take() {
    try {
      const file = await this.#camera.take(`${words("camera.name")}-${++this.#count}.jpg`);
      this.#listeners.taken(file);
    } catch (error) {
      showProblem(error);
    }
  }

  #stop() {
    this.close();
    this.#listeners.stopped();
  }
}

function showProblem(error) {
  if (!(error instanceof CameraProblem)) throw error;
  say(words(error.key));
  alarm(words(error.key));
}
