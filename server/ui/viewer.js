// The stage: one image (or the camera) with its boxes, fitted or zoomed.

import { detectionAt, drawDetections } from "./drawing.js";
import { byId } from "./dom.js";

const LARGEST_SCALE = 16;
const STEP = 1.4;
const KEY_PAN_PX = 60;

/**
 * @param {{onHover, onSelect}} listeners get the index of a detection, or -1.
 */
export class Viewer {
  #stage = byId("stage");
  #canvas = byId("overlay");
  #level = byId("zoom-level");
  #media = null; // <img>, <video> or null for a plate
  #size = { width: 0, height: 0 };
  #zoom = 1; // times the fitted size
  #centre = { x: 0.5, y: 0.5 }; // of the image, in the stage's middle
  #detections = [];
  #marked = -1;
  #labels = true;
  #drag = null; // where the pointer was last, while it pulls the image
  #dragged = false; // what follows is no click
  #drawing = false;
  #listeners;

  constructor(listeners) {
    this.#listeners = listeners;
    new ResizeObserver(() => this.redraw()).observe(this.#stage);
    this.#watchPixelRatio();
    this.#listen();
  }

  /** Shows an <img>, a <video> or, without either, a plate of that size; null shows nothing. */
  show(media, size) {
    if (media !== this.#media) {
      this.#media?.remove();
      this.#media = media;
      if (media) {
        media.classList.add("media");
        this.#stage.prepend(media);
      }
    }
    this.#stage.classList.toggle("plate", media === null && size !== null);
    this.#size = size ?? { width: 0, height: 0 };
    if (size) this.#stage.style.setProperty("--ratio", String(Math.min(Math.max(size.width / size.height, 0.75), 2.4)));
    this.#zoom = 1;
    this.#centre = { x: 0.5, y: 0.5 };
    this.redraw();
  }

  /** Draws these boxes from now on. */
  setDetections(detections) {
    this.#detections = detections;
    this.#marked = -1;
    this.redraw();
  }

  /** Lets one box stand out; -1 none. */
  mark(index) {
    if (index === this.#marked) return;
    this.#marked = index;
    this.redraw();
  }

  /** Whether boxes have labels. */
  setLabels(shown) {
    this.#labels = shown;
    this.redraw();
  }

  zoomBy(factor, at = { x: 0.5, y: 0.5 }) {
    const before = this.#view();
    const scale = Math.min(Math.max(before.scale * factor, before.fit), Math.max(LARGEST_SCALE, before.fit));
    // The point of the image under `at` (shares of the stage) stays where it is.
    const point = { x: (at.x * before.stageWidth - before.x) / before.scale, y: (at.y * before.stageHeight - before.y) / before.scale };
    this.#zoom = scale / before.fit;
    this.#centre = {
      x: (point.x - ((at.x - 0.5) * before.stageWidth) / scale) / this.#size.width,
      y: (point.y - ((at.y - 0.5) * before.stageHeight) / scale) / this.#size.height,
    };
    this.redraw();
  }

  fit() {
    this.#zoom = 1;
    this.redraw();
  }

  /** Places and draws all anew, before the next frame. */
  redraw() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      this.#draw();
    });
  }

  #view() {
    const [stageWidth, stageHeight] = [this.#stage.clientWidth, this.#stage.clientHeight];
    const { width, height } = this.#size;
    const fit = Math.min(stageWidth / width, stageHeight / height);
    const scale = fit * this.#zoom;
    const place = (stage, size, centre) => {
      const shown = size * scale;
      if (shown <= stage) return (stage - shown) / 2;
      return Math.min(0, Math.max(stage - shown, stage / 2 - centre * shown));
    };
    return {
      stageWidth, stageHeight, fit, scale,
      x: place(stageWidth, width, this.#centre.x),
      y: place(stageHeight, height, this.#centre.y),
    };
  }

  #draw() {
    const ratio = window.devicePixelRatio;
    const { stageWidth, stageHeight, scale, x, y } = this.#view();
    const [width, height] = [Math.round(stageWidth * ratio), Math.round(stageHeight * ratio)];
    if (this.#canvas.width !== width || this.#canvas.height !== height) [this.#canvas.width, this.#canvas.height] = [width, height];
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!this.#size.width) return;
    this.#stage.classList.toggle("zoomed", this.#zoom > 1.001);
    this.#level.textContent = `${Math.round(100 * scale)} %`;
    if (this.#media) {
      const style = this.#media.style;
      style.width = `${this.#size.width * scale}px`;
      style.height = `${this.#size.height * scale}px`;
      style.transform = `translate(${x}px, ${y}px)`;
      this.#media.classList.toggle("pixels", scale > 4);
    } else {
      context.fillStyle = "rgb(128 128 128 / 0.25)";
      context.fillRect(x * ratio, y * ratio, this.#size.width * scale * ratio, this.#size.height * scale * ratio);
    }
    const view = { scale: scale * ratio, x: x * ratio, y: y * ratio, width, height };
    const small = stageWidth < 480;
    const style = { line: (small ? 1.5 : 2) * ratio, font: (small ? 10.5 : 12) * ratio, labels: this.#labels, marked: this.#marked };
    drawDetections(context, this.#detections, view, style);
  }

  #at(event) {
    const { x, y, scale } = this.#view();
    const frame = this.#stage.getBoundingClientRect();
    return detectionAt(this.#detections, (event.clientX - frame.left - x) / scale, (event.clientY - frame.top - y) / scale);
  }

  #pan(dx, dy) {
    const { scale, x, y, stageWidth, stageHeight } = this.#view();
    // From where it really is, or pushing against the edge would have to be undone first.
    this.#centre = {
      x: (stageWidth / 2 - x - dx) / (this.#size.width * scale),
      y: (stageHeight / 2 - y - dy) / (this.#size.height * scale),
    };
    this.redraw();
  }

  #listen() {
    const stage = this.#stage;
    stage.addEventListener("pointermove", (event) => {
      if (this.#drag) {
        if (event.pointerId !== this.#drag.id) return; // a second finger
        this.#pan(event.clientX - this.#drag.x, event.clientY - this.#drag.y);
        this.#drag = { id: event.pointerId, x: event.clientX, y: event.clientY };
        this.#dragged = true;
      } else if (this.#size.width) {
        this.#listeners.onHover(this.#at(event));
      }
    });
    stage.addEventListener("pointerleave", () => this.#size.width && this.#listeners.onHover(-1));
    stage.addEventListener("pointerdown", (event) => {
      if (this.#drag) return;
      this.#dragged = false;
      if (this.#zoom <= 1.001 || event.button !== 0) return;
      this.#drag = { id: event.pointerId, x: event.clientX, y: event.clientY };
      stage.setPointerCapture(event.pointerId);
    });
    const end = (event) => {
      if (event.pointerId === this.#drag?.id) this.#drag = null;
    };
    stage.addEventListener("pointercancel", end);
    stage.addEventListener("pointerup", end);
    stage.addEventListener("click", (event) => {
      if (this.#size.width && !this.#dragged) this.#listeners.onSelect(this.#at(event));
    });
    stage.addEventListener("dblclick", (event) => {
      const frame = stage.getBoundingClientRect();
      const at = { x: (event.clientX - frame.left) / frame.width, y: (event.clientY - frame.top) / frame.height };
      if (this.#zoom > 1.001) this.fit();
      else if (this.#size.width) this.zoomBy(Math.max(2, 1 / this.#view().fit), at);
    });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey || !this.#size.width) return; // pinching comes as this, too; else the page scrolls
      event.preventDefault();
      const frame = stage.getBoundingClientRect();
      this.zoomBy(Math.exp(-event.deltaY / 200), { x: (event.clientX - frame.left) / frame.width, y: (event.clientY - frame.top) / frame.height });
    }, { passive: false });
    stage.addEventListener("keydown", (event) => {
      if (event.target !== stage || !this.#size.width || event.ctrlKey || event.metaKey || event.altKey) return;
      const pans = { ArrowLeft: [KEY_PAN_PX, 0], ArrowRight: [-KEY_PAN_PX, 0], ArrowUp: [0, KEY_PAN_PX], ArrowDown: [0, -KEY_PAN_PX] };
      if (event.key === "+" || event.key === "=") this.zoomBy(STEP);
      else if (event.key === "-") this.zoomBy(1 / STEP);
      else if (event.key === "0") this.fit();
      else if (event.key in pans && this.#zoom > 1.001) this.#pan(...pans[event.key]);
      else return;
      event.preventDefault();
    });
    byId("zoom-in").addEventListener("click", () => this.zoomBy(STEP));
    byId("zoom-out").addEventListener("click", () => this.zoomBy(1 / STEP));
    byId("zoom-fit").addEventListener("click", () => this.fit());
  }

  #watchPixelRatio() {
    const query = matchMedia(`(resolution: ${window.devicePixelRatio}dppx)`);
    query.addEventListener("change", () => {
      this.redraw();
      this.#watchPixelRatio();
    }, { once: true });
  }
}
