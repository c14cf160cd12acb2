// Which image is sent when: a few at a time, again when the server says so, each by itself.

import { asProblem } from "./problems.js";

const AT_A_TIME = 3;
const MOST_ATTEMPTS = 120; // of a server that goes on saying "later"
const LOST_ATTEMPTS = 3; // of what gets lost on its way

/**
 * @param {(image, signal) => Promise} work sends one image; throws Problems.
 * @param {(image) => void} changed is called at every change of an image's `state`:
 *   waiting, sending, retrying (until `retryAt`, for `problem`), key, done, failed (for `problem`).
 */
export class Queue {
  #work;
  #changed;
  #waiting = [];
  #running = new Map(); // image -> AbortController
  #timers = new Map(); // image -> timer
  #held = []; // until there is a key

  constructor(work, changed) {
    this.#work = work;
    this.#changed = changed;
  }

  /** Takes an image, or takes it again. */
  add(image) {
    this.remove(image);
    image.attempts = 0;
    this.#wait(image);
  }

  /** Forgets an image, whatever becomes of it. */
  remove(image) {
    this.#waiting = this.#waiting.filter((queued) => queued !== image);
    this.#held = this.#held.filter((queued) => queued !== image);
    this.#running.get(image)?.abort();
    this.#running.delete(image);
    clearTimeout(this.#timers.get(image));
    this.#timers.delete(image);
    this.#next();
  }

  /** Asks again what waits for a key. */
  release() {
    for (const image of this.#held.splice(0)) this.#wait(image);
  }

  #wait(image) {
    this.#waiting.push(image);
    this.#become(image, "waiting");
    this.#next();
  }

  #next() {
    while (this.#running.size < AT_A_TIME && this.#waiting.length) this.#run(this.#waiting.shift());
  }

  async #run(image) {
    const aborter = new AbortController();
    this.#running.set(image, aborter);
    image.attempts += 1;
    this.#become(image, "sending");
    let problem = null;
    try {
      await this.#work(image, aborter.signal);
    } catch (error) {
      problem = asProblem(error);
    }
    if (aborter.signal.aborted) return; // removed, or taken again
    this.#running.delete(image);
    image.problem = problem;
    if (problem === null) {
      this.#become(image, "done");
    } else if (problem.status === 401) {
      this.#held.push(image);
      this.#become(image, "key");
    } else if (image.attempts < (problem.passes ? MOST_ATTEMPTS : problem.lost ? LOST_ATTEMPTS : 0)) {
      // Some way apart, or all of them would come back in the same moment.
      const delayMs = 1000 * problem.retryAfterS * (1 + 0.2 * Math.random());
      image.retryAt = performance.now() + delayMs;
      this.#timers.set(image, setTimeout(() => {
        this.#timers.delete(image);
        this.#wait(image);
      }, delayMs));
      this.#become(image, "retrying");
    } else {
      this.#become(image, "failed");
    }
    this.#next();
  }

  #become(image, state) {
    image.state = state;
    this.#changed(image);
  }
}
