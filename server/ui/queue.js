// Which picture is asked about when: a few at a time, again when the server says so, each for itself.

import { asProblem } from "./problems.js";

const AT_A_TIME = 3;
const MOST_ATTEMPTS = 120; // of a server that goes on saying "later"
const LOST_ATTEMPTS = 3; // of what gets lost on its way

/**
 * @param {(picture, signal) => Promise} work asks about one picture; throws Problems.
 * @param {(picture) => void} changed is told of every change of a picture's `state`:
 *   waiting, sending, retrying (until `retryAt`, for `problem`), key, done, failed (for `problem`).
 */
export class Queue {
  #work;
  #changed;
  #waiting = [];
  #running = new Map(); // picture -> AbortController
  #timers = new Map(); // picture -> timer
  #held = []; // until there is a key

  constructor(work, changed) {
    this.#work = work;
    this.#changed = changed;
  }

  /** Takes a picture, or takes it again. */
  add(picture) {
    this.remove(picture);
    picture.attempts = 0;
    this.#wait(picture);
  }

  /** Forgets a picture, whatever becomes of it. */
  remove(picture) {
    this.#waiting = this.#waiting.filter((each) => each !== picture);
    this.#held = this.#held.filter((each) => each !== picture);
    this.#running.get(picture)?.abort();
    this.#running.delete(picture);
    clearTimeout(this.#timers.get(picture));
    this.#timers.delete(picture);
    this.#next();
  }

  /** Asks again what waits for a key. */
  release() {
    for (const picture of this.#held.splice(0)) this.#wait(picture);
  }

  #wait(picture) {
    this.#waiting.push(picture);
    this.#become(picture, "waiting");
    this.#next();
  }

  #next() {
    while (this.#running.size < AT_A_TIME && this.#waiting.length) this.#run(this.#waiting.shift());
  }

  async #run(picture) {
    const aborter = new AbortController();
    this.#running.set(picture, aborter);
    picture.attempts += 1;
    this.#become(picture, "sending");
    let problem = null;
    try {
      await this.#work(picture, aborter.signal);
    } catch (error) {
      problem = asProblem(error);
    }
    if (aborter.signal.aborted) return; // removed, or taken again
    this.#running.delete(picture);
    picture.problem = problem;
    if (problem === null) {
      this.#become(picture, "done");
    } else if (problem.status === 401) {
      this.#held.push(picture);
      this.#become(picture, "key");
    } else if (picture.attempts < (problem.passes ? MOST_ATTEMPTS : problem.lost ? LOST_ATTEMPTS : 0)) {
      // Some way apart, or all of them would come back in the same moment.
      const delayMs = 1000 * problem.retryAfterS * (1 + 0.2 * Math.random());
      picture.retryAt = performance.now() + delayMs;
      this.#timers.set(picture, setTimeout(() => {
        this.#timers.delete(picture);
        this.#wait(picture);
      }, delayMs));
      this.#become(picture, "retrying");
    } else {
      this.#become(picture, "failed");
    }
    this.#next();
  }

  #become(picture, state) {
    picture.state = state;
    this.#changed(picture);
  }
}
