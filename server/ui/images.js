// How a file becomes something to look at: its full view, one at a time, and its thumbnail.

import { fetchRendered } from "./requests.js";

const THUMBNAIL_PX = 192;

/**
 * Loads a file into an <img>. Only one full image is kept: many of 12 megapixels would take gigabytes.
 *
 * @returns {Promise<{media, release}|null>} null where the browser can't read it, as TIFF.
 */
export async function loadView(blob) {
  const url = URL.createObjectURL(blob);
  const media = new Image();
  media.alt = "";
  media.src = url;
  const release = () => {
    media.removeAttribute("src");
    URL.revokeObjectURL(url);
  };
  try {
    await media.decode();
  } catch {
    release();
    return null;
  }
  return { media, release };
}

/** Whether a view has the frame that the server's boxes are in: upright, and of that size. */
export function isFrameOf(view, { width, height }) {
  return view !== null && view.media.naturalWidth === width && view.media.naturalHeight === height;
}

/** The view that the server has of a file; null where it is not to be had. */
export async function loadRendered(file, signal) {
  try {
    return await loadView(await fetchRendered(file, signal));
  } catch {
    return null;
  }
}

/** A small canvas of a file; null where the browser can't read it. */
export async function makeThumbnail(file) {
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(file);
    const scale = Math.min(1, THUMBNAIL_PX / Math.min(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(Math.min(bitmap.width * scale, 3 * THUMBNAIL_PX)));
    canvas.height = Math.max(1, Math.round(Math.min(bitmap.height * scale, 3 * THUMBNAIL_PX)));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas;
  } catch {
    return null;
  } finally {
    bitmap?.close(); // at once: it holds the whole image
  }
}
