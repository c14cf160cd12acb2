// The image behind the boxes: loaded from its file, or as the server read it where that differs.

import { isFrameOf, loadRendered, loadView } from "./images.js";

/**
 * Keeps one image loaded. Sets its `framed`, whether what the viewer shows has the frame that the
 * boxes are in, and its `note`, the key of what is to be said about the view, or null.
 *
 * @param {Viewer} viewer shows it.
 * @param {() => void} changed is called when `framed` or `note` may have changed.
 */
export class View {
  #viewer;
  #changed;
  #loaded = null; // {media, release}
  #of = null; // the image that it is of
  #request = new AbortController();

  constructor(viewer, changed) {
    this.#viewer = viewer;
    this.#changed = changed;
  }

  /** The <img> that is shown; null where there is none. */
  get media() {
    return this.#loaded?.media ?? null;
  }

  /** Shows an image as far as it is known now; to be called again when it is done. */
  async show(image) {
    if (this.#of === image && (image.state !== "done" || image.framed)) return;
    this.#request.abort();
    this.#request = new AbortController();
    const { signal } = this.#request;
    image.framed = false;
    image.note = null;
    this.#changed();
    if (this.#of !== image) {
      const loaded = await loadView(image.file);
      if (signal.aborted) return loaded?.release();
      this.#replace(image, loaded);
    }
    if (image.state === "done" && !isFrameOf(this.#loaded, image)) {
      // The browser can't read the file, or turned it otherwise: the server renders what it sees.
      this.#viewer.show(null, null);
      const rendered = await loadRendered(image.file, signal);
      if (signal.aborted) return rendered?.release();
      if (!isFrameOf(rendered, image)) rendered?.release();
      this.#replace(image, isFrameOf(rendered, image) ? rendered : null);
      image.note = this.#loaded ? "stage.rendered" : "stage.plate";
    }
    image.framed = image.state === "done";
    const size = image.framed ? image : this.media && { width: this.media.naturalWidth, height: this.media.naturalHeight };
    this.#viewer.show(this.media, size && { width: size.width, height: size.height });
    this.#changed();
  }

  /** Lets go of the image, and of what is still being loaded. */
  drop() {
    this.#request.abort();
    this.#request = new AbortController();
    this.#replace(null, null);
    this.#viewer.show(null, null);
  }

  #replace(image, loaded) {
    this.#loaded?.release();
    if (this.#of) this.#of.framed = false;
    [this.#loaded, this.#of] = [loaded, image];
  }
}
