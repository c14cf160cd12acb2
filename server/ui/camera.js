// The camera: what it sees with boxes, and single images of it.

import { element } from "./dom.js";
import { asProblem } from "./problems.js";
import { fetchCandidates } from "./requests.js";

/** Why there is no camera; `key` names the words. */
export class CameraProblem extends Error {
  constructor(key) {
    super(key);
    this.key = key;
  }
}

export class Camera {
  #stream;
  #video;
  #canvas = document.createElement("canvas");
  #aborter = null;

  constructor(stream, video) {
    this.#stream = stream;
    this.#video = video;
  }

  /** Starts it. Throws a CameraProblem. */
  static async open() {
    // Browsers hide the camera from pages that others could have changed on their way.
    if (!navigator.mediaDevices?.getUserMedia) throw new CameraProblem("camera.insecure");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    } catch (error) {
      if (error.name === "NotAllowedError" || error.name === "SecurityError") throw new CameraProblem("camera.refused");
      throw new CameraProblem(error.name === "NotFoundError" ? "camera.missing" : "camera.busy");
    }
    const video = element("video", { muted: true, playsInline: true });
    video.srcObject = stream;
    try {
      await video.play();
    } catch {
      stream.getTracks().forEach((track) => track.stop());
      throw new CameraProblem("camera.busy");
    }
    return new Camera(stream, video);
  }

  get video() {
    return this.#video;
  }

  get size() {
    return { width: this.#video.videoWidth, height: this.#video.videoHeight };
  }

  get live() {
    return this.#aborter !== null;
  }

  /** Calls `ended` when it goes away by itself, as when it is unplugged. */
  onEnded(ended) {
    this.#stream.getVideoTracks()[0].addEventListener("ended", ended);
  }

  /** What it sees now, as a file. Throws a CameraProblem where it sees nothing. */
  async take(name) {
    const { width, height } = this.size;
    [this.#canvas.width, this.#canvas.height] = [width, height];
    this.#canvas.getContext("2d").drawImage(this.#video, 0, 0);
    const blob = await new Promise((done) => this.#canvas.toBlob(done, "image/jpeg", 0.92));
    if (!blob) throw new CameraProblem("camera.busy"); // it went away meanwhile
    return new File([blob], name, { type: "image/jpeg" });
  }

  /**
   * Asks about one image after the other until `pause`; while the page is hidden it waits.
   *
   * @param {(response, roundTripMs) => void} found gets each response.
   * @param {(Problem) => void} failed gets what went wrong; where it passes, it goes on.
   */
  async run(found, failed) {
    const aborter = (this.#aborter = new AbortController());
    const { signal } = aborter;
    for (await inView(); !signal.aborted; await inView()) {
      try {
        const { response, roundTripMs } = await fetchCandidates(await this.take("camera.jpg"), signal);
        if (!signal.aborted) found(response, roundTripMs);
      } catch (error) {
        if (signal.aborted) return;
        const problem = asProblem(error);
        failed(problem);
        if (!problem.passes) return this.pause();
        await new Promise((done) => setTimeout(done, 1000 * problem.retryAfterS));
      }
    }
  }

  /** Asks no more; the image goes on. */
  pause() {
    this.#aborter?.abort();
    this.#aborter = null;
  }

  close() {
    this.pause();
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#video.srcObject = null;
  }
}

async function inView() {
  if (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
}
