// The picture behind the boxes: loaded from its file, or as the server read it where that differs.

import { isFrameOf, loadRendered, loadView } from "./pictures.js";

/**
 * Keeps one picture loaded. Sets its `framed`, whether what the viewer shows has the frame that the
 * boxes are in, and its `note`, the key of what is to be said about the view, or null.
 *
 * @param {Viewer} viewer shows it.
 * @param {() => void} changed is called when `framed` or `note` may have changed.
 */
export class View {
  #viewer;
  #changed;
  #loaded = null; // {media, release}
  #of = null; // the picture that it is of
  #request = new AbortController();

  constructor(viewer, changed) {
    this.#viewer = viewer;
    this.#changed = changed;
  }

  /** The <img> that is shown; null where there is none. */
  get media() {
    return this.#loaded?.media ?? null;
  }

  /** Shows a picture as far as it is known now; to be called again when it is answered. */
  async show(picture) {
    if (this.#of === picture && (picture.state !== "done" || picture.framed)) return;
    this.#request.abort();
    this.#request = new AbortController();
    const { signal } = this.#request;
    picture.framed = false;
    picture.note = null;
    this.#changed();
    if (this.#of !== picture) {
      const loaded = await loadView(picture.file);
      if (signal.aborted) return loaded?.release();
      this.#replace(picture, loaded);
    }
    if (picture.state === "done" && !isFrameOf(this.#loaded, picture)) {
      // The browser can't read the file, or turned it otherwise: the server is asked for what it sees.
      this.#viewer.show(null, null);
      const rendered = await loadRendered(picture.file, signal);
      if (signal.aborted) return rendered?.release();
      if (!isFrameOf(rendered, picture)) rendered?.release();
      this.#replace(picture, isFrameOf(rendered, picture) ? rendered : null);
      picture.note = this.#loaded ? "stage.rendered" : "stage.plate";
    }
    picture.framed = picture.state === "done";
    const size = picture.framed ? picture : this.media && { width: this.media.naturalWidth, height: this.media.naturalHeight };
    this.#viewer.show(this.media, size && { width: size.width, height: size.height });
    this.#changed();
  }

  /** Lets go of the picture, and of what is still being loaded. */
  drop() {
    this.#request.abort();
    this.#request = new AbortController();
    this.#replace(null, null);
    this.#viewer.show(null, null);
  }

  #replace(picture, loaded) {
    this.#loaded?.release();
    if (this.#of) this.#of.framed = false;
    [this.#loaded, this.#of] = [loaded, picture];
  }
}
