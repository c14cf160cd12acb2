// The page: images in, boxes drawn, thresholds applied. Read from `start` on.
//
// An image is {file, name, state, attempts, problem} of the queue; once done also {width, height, version,
// candidates, classNames, timings, roundTripMs}; `count` at the thresholds; `framed` and `note` of the view.

import { alarm, announce, say } from "./announcements.js";
import { byId } from "./dom.js";
import { downloadDetections, downloadImage } from "./downloads.js";
import { listenForFiles, nameSamples, offerSamples } from "./inputs.js";
import { listenForKey } from "./key.js";
import { arrange, arrangeMessage, mayWork } from "./layout.js";
import { Live } from "./live.js";
import { makeThumbnail } from "./images.js";
import { Problem } from "./problems.js";
import { Queue } from "./queue.js";
import { fetchCandidates } from "./requests.js";
import { Results } from "./results.js";
import { Served } from "./served.js";
import { inSlices } from "./slices.js";
import { stateWords, Strip } from "./strip.js";
import { candidatesOf, classesOf, detectionsOf, isTruncated, suppress } from "./suppression.js";
import { listenForSwitches } from "./switches.js";
import { Thresholds } from "./thresholds.js";
import { showTimes } from "./times.js";
import { View } from "./view.js";
import { Viewer } from "./viewer.js";
import { number, words } from "./words.js";

const images = [];
const versions = new Set(); // of models that responded
let model = null; // that responded last: {name, version}
let current = null; // the shown image: one of `images`, the camera's frame, or null
let detections = []; // of the shown image, at the thresholds
let recounting = 0;
let thumbnails = Promise.resolve(); // one after the other: each takes a whole image's memory

const thresholds = new Thresholds(applyThresholds);
const viewer = new Viewer({ onHover: mark, onSelect: choose });
const view = new View(viewer, showAll);
const results = new Results({ onHover: mark, onToggleClass: (id) => thresholds.toggleClass(id) });
const strip = new Strip(show);
const queue = new Queue(detect, imageChanged);
const served = new Served(stateChanged);
const live = new Live({
  opened: showCamera,
  responded: takeLive,
  taken: (file) => addFiles([file]),
  stopped: () => show(images.at(-1) ?? null),
  changed: render,
});

start();

function start() {
  listenForSwitches(languageChanged);
  byId("not-started").remove();
  byId("app").hidden = false;
  listenForFiles(addFiles);
  listenForButtons();
  listenForKey(keyAccepted);
  setInterval(countDown, 500);
  render();
  served.poll();
  samples();
}

// -- images -------------------------------------------------------------------------------------

function addFiles(files) {
  say(files.length ? "" : words("drop.nothing"));
  if (!files.length) return;
  const added = files.map((file) => ({ file, name: file.name || "image", state: "waiting", candidates: null, classNames: new Map(), count: 0 }));
  for (const image of added) {
    images.push(image);
    strip.add(image);
    queue.add(image);
    thumbnails = thumbnails.then(() => addThumbnail(image));
  }
  show(added[0]);
}

async function addThumbnail(image) {
  if (!images.includes(image)) return;
  const canvas = await makeThumbnail(image.file);
  if (canvas) strip.setThumbnail(image, canvas);
}

/** The work of the queue: candidates of one image. */
async function detect(image, signal) {
  const { response, roundTripMs } = await fetchCandidates(image.file, signal);
  takeResponse(image, response, roundTripMs);
  // Responses of two models do not go together. Once a version: behind a balancer both may go on.
  if (versions.size > 0 && !versions.has(model.version)) {
    for (const other of images) if (other.state === "done" && other.version !== model.version) queue.add(other);
  }
  versions.add(model.version);
}

function takeResponse(image, response, roundTripMs) {
  const [result] = response.results;
  if (result.error) throw new Problem({ ...result.error, status: 422 });
  model = response.model;
  Object.assign(image, {
    width: result.width,
    height: result.height,
    version: model.version,
    candidates: candidatesOf(result),
    classNames: new Map(result.detections.map(({ class_id, class_name }) => [class_id, class_name])),
    timings: response.timings_ms,
    roundTripMs,
  });
}

function imageChanged(image) {
  if (image.state === "done") image.count = suppress(image.candidates, thresholds.values).length;
  if (image.state === "failed") alarm(`${image.name}: ${image.problem.sentence}`);
  if (image.state === "failed" && image.problem.lost) served.poll();
  strip.update(image);
  if (image === current) showCurrent();
  else if (image.state === "done") recount(thresholds.values);
  render();
}

function remove(image) {
  const at = images.indexOf(image);
  if (at < 0) return;
  images.splice(at, 1);
  queue.remove(image);
  strip.remove(image);
  if (image === current) show(images[Math.min(at, images.length - 1)] ?? null);
  else applyThresholds();
}

function removeAll() {
  show(null); // or each that goes would show the next
  [...images].forEach(remove);
  render();
}

/** Shows an image; null none. The camera goes off. */
function show(image) {
  if (live.on) viewer.show(null, null);
  live.close();
  current = image;
  strip.select(image);
  showCurrent();
  render();
}

function showCurrent() {
  if (current === null) view.drop();
  else if (!current.live) view.show(current);
  applyThresholds();
}

function showCamera(video, size) {
  current = live.frame;
  strip.select(null);
  view.drop();
  viewer.show(video, size);
  showAll();
}

function takeLive(response, roundTripMs) {
  takeResponse(live.frame, response, roundTripMs);
  live.frame.state = "done";
  showAll();
}

// -- thresholds -----------------------------------------------------------------------------------

function applyThresholds() {
  const values = thresholds.values;
  const ready = current?.candidates && current.state === "done";
  detections = ready ? detectionsOf(current, suppress(current.candidates, values)) : [];
  viewer.setDetections(current?.framed || current?.live ? detections : []);
  results.show(detections);
  results.showClasses(ready ? classesOf(current, values) : []);
  byId("truncated").hidden = !(ready && isTruncated(current.candidates, values));
  byId("overlay").ariaLabel = overlayLabel(ready);
  if (ready) {
    current.count = detections.length;
    byId("found-count").textContent = number(detections.length);
    showTimes(current.timings, current.roundTripMs);
  }
  if (ready && !current.live) {
    strip.update(current);
    announce(words("found.announce", { n: detections.length, name: current.name }));
  }
  recount(values);
}

function overlayLabel(ready) {
  if (ready) return words("stage.image", { name: current.name, n: detections.length });
  return current ? words("strip.state", { name: current.name, state: stateWords(current) }) : words("stage.label");
}

/** Counts in the other images. */
async function recount(values) {
  const round = ++recounting;
  const others = images.filter((image) => image !== current && image.candidates);
  const count = (image) => {
    image.count = suppress(image.candidates, values).length;
    strip.update(image);
  };
  if (!(await inSlices(others, count, () => round === recounting))) return;
  const done = images.filter(({ state }) => state === "done");
  const n = done.reduce((sum, image) => sum + image.count, 0);
  byId("found-all").textContent = done.length > 1 ? words("found.inAll", { n, images: done.length }) : "";
}

function mark(index) {
  viewer.mark(index);
  results.mark(index);
}

function choose(index) {
  if (index < 0) return mark(-1);
  results.mark(index, { focus: true });
  viewer.mark(index);
}

// -- what is shown --------------------------------------------------------------------------------

function render() {
  live.showButtons();
  arrange(images, current, live.on);
}

function showAll() {
  applyThresholds();
  render();
}

function countDown() {
  for (const image of images) if (image.state === "retrying") strip.update(image);
  if (current?.state === "retrying") arrangeMessage(current);
}

function stateChanged(state, before) {
  // What the network had lost is sent again when it is back.
  if (before === "unreachable" && state === "ready") {
    images.filter((image) => mayWork(image) && image.problem.lost).forEach((image) => queue.add(image));
    if (byId("samples").hidden) samples();
  }
  if (state !== "ready" && before !== "connecting") alarm(words(`status.${state}`));
}

function languageChanged() {
  served.show();
  images.forEach((image) => strip.update(image));
  nameSamples();
  showAll();
}

function keyAccepted() {
  served.poll();
  samples();
  queue.release();
  render();
}

function samples() {
  offerSamples(addFiles, () => say(words("samples.failed")));
}

// -- buttons --------------------------------------------------------------------------------------

function listenForButtons() {
  const onClick = (id, listener) => byId(id).addEventListener("click", listener);
  byId("labels").addEventListener("change", (event) => viewer.setLabels(event.target.checked));
  onClick("remove", () => remove(current));
  onClick("remove-all", removeAll);
  onClick("retry", () => queue.add(current));
  onClick("retry-all", () => images.filter(mayWork).forEach((image) => queue.add(image)));
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => downloadDetections(button.dataset.download, images, thresholds.values, model, served.classNames));
  }
  for (const button of document.querySelectorAll("[data-image]")) {
    button.addEventListener("click", async () => {
      const made = await downloadImage(view.media, current, detections, byId("labels").checked, button.dataset.image);
      say(made ? "" : words("download.failed"));
    });
  }
}
