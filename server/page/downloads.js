// Files out of what is shown.

import { drawDetections } from "./drawing.js";
import { asCoco, asCsv, asJson, asYolo, safeStem } from "./formats.js";
import { strToU8, zipSync } from "./fflate.js";

/** Saves detections; `model` and `timingsMs` go into the JSON, the class names into YOLO and COCO. */
export function downloadDetections(kind, { model, pictures, timingsMs, classNames }) {
  const stem = pictures.length === 1 ? safeStem(pictures[0].name) : "detections";
  if (kind === "json") save(asJson(model, pictures, timingsMs), "application/json", `${stem}.json`);
  else if (kind === "csv") save(asCsv(pictures), "text/csv", `${stem}.csv`);
  else if (kind === "coco") save(asCoco(pictures, classNames), "application/json", `${stem}-coco.json`);
  else if (kind === "yolo") {
    const files = Object.entries(asYolo(pictures, classNames)).map(([path, text]) => [path, strToU8(text)]);
    save(zipSync(Object.fromEntries(files)), "application/zip", `${stem}-yolo.zip`);
  } else throw new Error(`no download ${kind}`);
}

/**
 * Saves a picture with its boxes drawn in, in its own size.
 *
 * @param {CanvasImageSource|null} media the picture; null draws on grey.
 * @returns {Promise<boolean>} false where the browser can't make a canvas of that size.
 */
export async function downloadPicture(media, { name, width, height }, detections, labels, type) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  if (!context) return false;
  context.fillStyle = "#808080";
  context.fillRect(0, 0, width, height);
  if (media) context.drawImage(media, 0, 0, width, height);
  const shorter = Math.min(width, height);
  const style = { line: Math.max(1.5, shorter / 300), font: Math.max(11, shorter / 40), labels, marked: -1 };
  drawDetections(context, detections, { scale: 1, x: 0, y: 0, width, height }, style);
  const blob = await new Promise((done) => canvas.toBlob(done, type, 0.92));
  [canvas.width, canvas.height] = [0, 0]; // its memory goes now, and not when it is collected
  if (!blob) return false;
  save(blob, type, `${safeStem(name)}-boxes.${type === "image/png" ? "png" : "jpg"}`);
  return true;
}

function save(content, type, name) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // a browser may read it after the click
}
