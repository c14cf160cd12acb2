// Candidates to detections, as server/vision/nms.py makes them, so that a
// threshold moves without a request.
//
// The candidates are requested with iou=1 (nothing is suppressed) and clip=false: the server suppresses
// whole boxes and clips what is left, and so does this. It computes in float32 on the model's input
// pixels; here scores come with five decimals and boxes with four, in pixels of the image. So the two
// can differ where a score lies within 0.000005 of `conf`, or an overlap within about 0.00001 of `iou`.
// tests/browser/test_suppression.py holds both against each other.

/** The lowest `conf` that can be chosen: that of the request for candidates. */
export const LEAST_CONF = 0.01;

const FEW_CLASSES = 8; // so many are shown with a count of 0, too

/** What the server takes where a request says nothing. */
export const DEFAULTS = Object.freeze({ conf: 0.25, iou: 0.7, maxDet: 300, agnostic: false, hidden: new Set() });

/**
 * The candidates of one image.
 *
 * @param {Object} result one of the response's `results`, of a request with conf=0.01, iou=1, clip=false.
 * @returns {{count, scores, classIds, boxes, truncated}} best first; boxes are x1, y1, x2, y2 in pixels.
 */
export function candidatesOf(result) {
  const count = result.detections.length;
  const candidates = {
    count,
    scores: new Float64Array(count),
    classIds: new Uint32Array(count),
    boxes: new Float64Array(4 * count),
    truncated: result.truncated,
  };
  result.detections.forEach(({ score, class_id: classId, box }, i) => {
    candidates.scores[i] = score;
    candidates.classIds[i] = classId;
    candidates.boxes.set([box.x1, box.y1, box.x2, box.y2], 4 * i);
  });
  return candidates;
}

/**
 * Chooses candidates by score, each unless it overlaps one of its class that was chosen before.
 *
 * @param {Object} candidates as `candidatesOf` gives them.
 * @param {{conf, iou, maxDet, agnostic, hidden}} thresholds `hidden` are class ids that are not looked for.
 * @returns {number[]} indices of candidates, best first.
 */
export function suppress(candidates, { conf, iou, maxDet, agnostic, hidden }) {
  const { count, scores, classIds, boxes } = candidates;
  const chosen = [];
  for (let i = 0; i < count && scores[i] > conf && chosen.length < maxDet; i++) {
    if (hidden.has(classIds[i])) continue;
    const stays = chosen.every((j) => (!agnostic && classIds[j] !== classIds[i]) || overlap(boxes, i, j) <= iou);
    if (stays) chosen.push(i);
  }
  return chosen;
}

/** Whether the server would say `truncated`: it handed out all it has, and the last one still passes. */
export function isTruncated({ truncated, count, scores }, { conf }) {
  return truncated && count > 0 && scores[count - 1] > conf;
}

/** Detections in the form of the server's response: boxes end where the image does. */
export function detectionsOf(image, indices) {
  const { scores, classIds, boxes } = image.candidates;
  return indices.map((i) => {
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((edge) => {
      const limit = edge % 2 ? image.height : image.width;
      return Math.round(100 * Math.min(Math.max(boxes[4 * i + edge], 0), limit)) / 100;
    });
    return { class_id: classIds[i], class_name: image.classNames.get(classIds[i]), score: scores[i], box: { x1, y1, x2, y2 } };
  });
}

/** The classes that an image's candidates have: {id, name, shown, count}, counted as if all were shown. */
export function classesOf(image, values) {
  const { candidates, classNames } = image;
  const counts = new Map([...classNames.keys()].map((id) => [id, 0]));
  for (const i of suppress(candidates, { ...values, hidden: new Set() })) {
    counts.set(candidates.classIds[i], counts.get(candidates.classIds[i]) + 1);
  }
  const few = counts.size <= FEW_CLASSES;
  return [...counts]
    .filter(([id, count]) => few || count > 0 || values.hidden.has(id))
    .sort(([a], [b]) => a - b)
    .map(([id, count]) => ({ id, count, name: classNames.get(id), shown: !values.hidden.has(id) }));
}

/** Intersection over union; 0 where a box is empty. */
function overlap(boxes, i, j) {
  const [a, b] = [4 * i, 4 * j];
  const width = Math.min(boxes[a + 2], boxes[b + 2]) - Math.max(boxes[a], boxes[b]);
  const height = Math.min(boxes[a + 3], boxes[b + 3]) - Math.max(boxes[a + 1], boxes[b + 1]);
  if (width <= 0 || height <= 0) return 0;
  const both = width * height;
  return both / (area(boxes, a) + area(boxes, b) - both);
}

function area(boxes, at) {
  return Math.max(0, boxes[at + 2] - boxes[at]) * Math.max(0, boxes[at + 3] - boxes[at + 1]);
}
