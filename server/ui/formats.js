// Detections as other programs read them. Plain functions from images to texts.
//
// An image here is {name, width, height, truncated, error, detections}, the detections in the form of
// the server's response; where `error` is set there are no sizes and no detections.

/** The server's response to a request of these images. */
export function asJson(model, images, timingsMs) {
  const results = images.map(({ name, width, height, truncated, error, detections }) => ({
    filename: name, width, height, truncated, error, detections,
  }));
  return JSON.stringify({ model, results, timings_ms: timingsMs }, null, 1);
}

/** One line per detection. Begins with a byte order mark, or Excel takes names for another encoding. */
export function asCsv(images) {
  const rows = [["filename", "width", "height", "class_id", "class_name", "score", "x1", "y1", "x2", "y2"]];
  for (const { name, width, height, detections } of images) {
    for (const { class_id, class_name, score, box } of detections) {
      rows.push([name, width, height, class_id, class_name, score, box.x1, box.y1, box.x2, box.y2]);
    }
  }
  return "\ufeff" + rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/** COCO's form; categories have the model's class ids. Images that can't be read are not in it. */
export function asCoco(images, classNames) {
  const readable = images.filter(({ error }) => !error);
  const annotations = readable.flatMap(({ detections }, at) =>
    detections.map(({ class_id, score, box }) => {
      const [width, height] = [round(box.x2 - box.x1, 2), round(box.y2 - box.y1, 2)];
      return {
        image_id: at + 1, category_id: class_id, bbox: [box.x1, box.y1, width, height],
        area: round(width * height, 2), iscrowd: 0, score,
      };
    }),
  );
  return JSON.stringify({
    info: { description: "yolov8-fla" },
    images: readable.map(({ name, width, height }, at) => ({ id: at + 1, file_name: name, width, height })),
    categories: classNames.map((name, id) => ({ id, name })),
    annotations: annotations.map((annotation, at) => ({ id: at + 1, ...annotation })),
  }, null, 1);
}

/** YOLO's label files by path: class, centre and size as shares of the image; and the classes' names. */
export function asYolo(images, classNames) {
  const readable = images.filter(({ error }) => !error);
  const stems = distinctStems(readable.map(({ name }) => name));
  const files = { "classes.txt": classNames.map((name) => oneLine(name) + "\n").join("") };
  readable.forEach(({ width, height, detections }, at) => {
    files[`labels/${stems[at]}.txt`] = detections.map(({ class_id, box: { x1, y1, x2, y2 } }) => {
      const shares = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height];
      return `${class_id} ${shares.map((share) => share.toFixed(6)).join(" ")}\n`;
    }).join("");
  });
  return files;
}

const DEVICES = /^(con|prn|aux|nul|com\d|lpt\d)(\.|$)/i; // names that Windows keeps for itself

/** A file name without folders and extension, that every system takes. */
export function safeStem(name) {
  const stem = name.normalize("NFC").replace(/^.*[/\\]/s, "").replace(/\.[^.]*$/, "");
  // eslint-disable-next-line no-control-regex
  const harmless = stem.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069<>:"'`$|?*]/g, "_").replace(/^[.\s-]+|[.\s]+$/g, "");
  const short = [...harmless].slice(0, 100).join("") || "image";
  return DEVICES.test(short) ? `_${short}` : short;
}

/** Stems of which no two are equal, also where upper and lower case are. */
export function distinctStems(names) {
  const taken = new Set();
  return names.map((name) => {
    const stem = safeStem(name);
    let free = stem;
    for (let n = 2; taken.has(free.toLowerCase()); n++) free = `${stem}-${n}`;
    taken.add(free.toLowerCase());
    return free;
  });
}

function cell(value) {
  if (typeof value === "number") return String(value);
  // A spreadsheet would compute what begins like a formula.
  const text = /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function oneLine(text) {
  return text.replace(/[\r\n\u2028\u2029]+/g, " ");
}

function round(value, decimals) {
  return Math.round(value * 10 ** decimals) / 10 ** decimals;
}
