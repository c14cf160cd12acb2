// Boxes and labels on a canvas: over the image on the screen, and in the image that is downloaded.

import { classColour, textColour } from "./palette.js";
import { number } from "./words.js";

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans SC', sans-serif";

/**
 * Draws detections.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Object[]} detections in the form of the server's response, best first.
 * @param {{scale, x, y, width, height}} view canvas pixels per image pixel, where the image's corner
 *   lies, and the canvas' size, in canvas pixels.
 * @param {{line, font, labels, marked}} style line and font size in canvas pixels; whether there are
 *   labels; the index of the detection that stands out, or -1.
 */
export function drawDetections(context, detections, view, { line, font, labels, marked }) {
  const placed = detections.map(({ box }) => ({
    left: view.x + box.x1 * view.scale,
    top: view.y + box.y1 * view.scale,
    right: view.x + box.x2 * view.scale,
    bottom: view.y + box.y2 * view.scale,
  }));
  const order = detections.map((_, i) => i).reverse(); // worst first, so that the best stay on top
  if (marked >= 0) order.push(order.splice(order.indexOf(marked), 1)[0]);
  context.lineJoin = "round";
  for (const i of order) {
    const { left, top, right, bottom } = placed[i];
    const colour = classColour(detections[i].class_id);
    context.globalAlpha = marked < 0 || i === marked ? 1 : 0.35;
    const width = i === marked ? line * 1.5 : line;
    // A pale line below: the colour stands out on images of its own colour, too.
    context.strokeStyle = "rgb(255 255 255 / 0.75)";
    context.lineWidth = width * 2;
    context.strokeRect(left, top, right - left, bottom - top);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(left, top, right - left, bottom - top);
    if (i === marked) {
      context.globalAlpha = 0.18;
      context.fillStyle = colour;
      context.fillRect(left, top, right - left, bottom - top);
    }
  }
  context.globalAlpha = 1;
  drawLabels(context, detections, placed, view, { font, labels, marked });
}

/** The smallest box that holds a point of the image; -1 where none does. */
export function detectionAt(detections, x, y) {
  let found = -1;
  let smallest = Infinity;
  detections.forEach(({ box }, i) => {
    const area = (box.x2 - box.x1) * (box.y2 - box.y1);
    if (x >= box.x1 && x <= box.x2 && y >= box.y1 && y <= box.y2 && area < smallest) [found, smallest] = [i, area];
  });
  return found;
}

function drawLabels(context, detections, placed, view, { font, labels, marked }) {
  context.font = `600 ${font}px ${FONT}`;
  context.textBaseline = "middle";
  const [pad, height] = [font * 0.4, font * 1.45];
  const taken = [];
  // The best first: where labels would lie on each other, theirs are read. The list has all of them.
  const order = detections.map((_, i) => i);
  if (marked >= 0) order.unshift(order.splice(marked, 1)[0]);
  for (const i of order) {
    if (!labels && i !== marked) continue;
    const { class_id, class_name, score } = detections[i];
    const text = `${class_name} ${number(score, 2)}`;
    const width = context.measureText(text).width + 2 * pad;
    const spot = freeSpot(placed[i], width, height, view, taken) ?? (i === marked ? spots(placed[i], width, height, view)[0] : null);
    if (spot === null) continue;
    taken.push(spot);
    context.globalAlpha = marked < 0 || i === marked ? 1 : 0.5;
    context.fillStyle = classColour(class_id);
    context.beginPath();
    context.roundRect(spot.left, spot.top, width, height, font * 0.22);
    context.fill();
    context.fillStyle = textColour(class_id);
    context.fillText(text, spot.left + pad, spot.top + height / 2 + font * 0.04);
  }
  context.globalAlpha = 1;
}

/** Above the box, inside at its top, below it, at its right edge; kept on the canvas. */
function spots({ left, top, right, bottom }, width, height, view) {
  const inside = (x, y) => ({
    left: Math.min(Math.max(x, 0), Math.max(0, view.width - width)),
    top: Math.min(Math.max(y, 0), Math.max(0, view.height - height)),
    width,
    height,
  });
  return [inside(left, top - height), inside(left, top), inside(right - width, top), inside(left, bottom), inside(left, bottom - height), inside(right - width, bottom)];
}

function freeSpot(box, width, height, view, taken) {
  if (box.right < 0 || box.bottom < 0 || box.left > view.width || box.top > view.height) return null;
  const free = (spot) => taken.every((other) =>
    spot.left + width <= other.left || other.left + other.width <= spot.left ||
    spot.top + height <= other.top || other.top + other.height <= spot.top);
  return spots(box, width, height, view).find(free) ?? null;
}
