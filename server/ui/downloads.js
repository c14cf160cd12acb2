// Files out of what is shown.

import { drawDetections } from "./drawing.js";
import { asCoco, asCsv, asJson, asYolo, safeStem } from "./formats.js";
import { detectionsOf, isTruncated, suppress } from "./suppression.js";
import { zip } from "./zip.js";

/**
 * Saves the detections of all images that are done or failed, one of them at least with a result.
 *
 * @param {string} kind "json", "csv", "yolo" or "coco".
 * @param {Object} thresholds as `suppress` takes them.
 * @param {Object} model as in the server's response.
 * @param {string[]} served the model's class names, as far as they are known.
 */
export function downloadDetections(kind, all, thresholds, model, served) {
  const ended = all.filter(({ state }) => state === "done" || state === "failed");
  const images = ended.map((image) => atThresholds(image, thresholds));
  const classNames = allClassNames(ended, served);
  const stem = images.length === 1 ? safeStem(images[0].name) : "detections";
  if (kind === "json") save(asJson(model, images, longestTimes(ended)), "application/json", `${stem}.json`);
  else if (kind === "csv") save(asCsv(images), "text/csv", `${stem}.csv`);
  else if (kind === "coco") save(asCoco(images, classNames), "application/json", `${stem}-coco.json`);
  else if (kind === "yolo") save(zip(Object.entries(asYolo(images, classNames))), "application/zip", `${stem}-yolo.zip`);
  else throw new Error(`no download ${kind}`);
}

/**
 * Saves an image with its boxes drawn in, in its own size.
 *
 * @param {CanvasImageSource|null} media the image; null draws on grey.
 * @returns {Promise<boolean>} false where the browser can't make a canvas of that size.
 */
export async function downloadImage(media, { name, width, height }, detections, labels, type) {
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

function atThresholds(image, thresholds) {
  const { name, state, problem, width, height, candidates } = image;
  if (state === "failed") {
    return { name, width: null, height: null, truncated: false, error: { code: problem.code, detail: problem.detail }, detections: [] };
  }
  const detections = detectionsOf(image, suppress(candidates, thresholds));
  return { name, width, height, truncated: isTruncated(candidates, thresholds), error: null, detections };
}

/** By class id; those of the images count, where the server's were not to be had. */
function allClassNames(images, served) {
  const names = new Map(served.map((name, id) => [id, name]));
  for (const { classNames } of images) for (const [id, name] of classNames) names.set(id, name);
  return Array.from({ length: Math.max(-1, ...names.keys()) + 1 }, (_, id) => names.get(id) ?? String(id));
}

/** As the server does for a request of several images: the longest of each stage. */
function longestTimes(images) {
  const times = images.filter(({ state }) => state === "done").map(({ timings }) => timings);
  return Object.fromEntries(Object.keys(times[0]).map((stage) => [stage, Math.max(...times.map((timings) => timings[stage]))]));
}

function save(content, type, name) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // a browser may read it after the click
}
