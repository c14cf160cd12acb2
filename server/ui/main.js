// The page: pictures in, boxes drawn, thresholds applied. Read from `start` on.
//
// A picture is {file, name, state, attempts, problem} of the queue; answered also {width, height, version,
// candidates, classNames, timings, roundTripMs}; `count` at the thresholds; `framed` and `note` of the view.

import { alarm, announce, say } from "./announcements.js";
import { byId } from "./dom.js";
import { downloadDetections, downloadPicture } from "./downloads.js";
import { listenForFiles, nameSamples, offerSamples } from "./inputs.js";
import { listenForKey } from "./key.js";
import { arrange, arrangeMessage, mayWork } from "./layout.js";
import { Live } from "./live.js";
import { makeThumbnail } from "./pictures.js";
import { Problem } from "./problems.js";
import { Queue } from "./queue.js";
import { askCandidates } from "./requests.js";
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

const pictures = [];
const versions = new Set(); // of models that answered
let model = null; // that answered last: {name, version}
let current = null; // the shown picture: one of `pictures`, the camera's frame, or null
let detections = []; // of the shown picture, at the thresholds
let recounting = 0;
let thumbnails = Promise.resolve(); // one after the other: each takes a whole picture's memory

const thresholds = new Thresholds(applyThresholds);
const viewer = new Viewer({ onHover: mark, onSelect: choose });
const view = new View(viewer, showAll);
const results = new Results({ onHover: mark, onToggleClass: (id) => thresholds.toggleClass(id) });
const strip = new Strip(show);
const queue = new Queue(detect, pictureChanged);
const served = new Served(stateChanged);
const live = new Live({
  opened: showCamera,
  answered: takeLive,
  taken: (file) => addFiles([file]),
  stopped: () => show(pictures.at(-1) ?? null),
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
  served.ask();
  samples();
}

// -- pictures -------------------------------------------------------------------------------------

function addFiles(files) {
  say(files.length ? "" : words("drop.nothing"));
  if (!files.length) return;
  const added = files.map((file) => ({ file, name: file.name || "picture", state: "waiting", candidates: null, classNames: new Map(), count: 0 }));
  for (const picture of added) {
    pictures.push(picture);
    strip.add(picture);
    queue.add(picture);
    thumbnails = thumbnails.then(() => addThumbnail(picture));
  }
  show(added[0]);
}

async function addThumbnail(picture) {
  if (!pictures.includes(picture)) return;
  const canvas = await makeThumbnail(picture.file);
  if (canvas) strip.setThumbnail(picture, canvas);
}

/** The work of the queue: candidates of one picture. */
async function detect(picture, signal) {
  const { answer, roundTripMs } = await askCandidates(picture.file, signal);
  takeAnswer(picture, answer, roundTripMs);
  // Answers of two models do not go together. Once a version: behind a balancer both may go on.
  if (versions.size > 0 && !versions.has(model.version)) {
    for (const other of pictures) if (other.state === "done" && other.version !== model.version) queue.add(other);
  }
  versions.add(model.version);
}

function takeAnswer(picture, answer, roundTripMs) {
  const [result] = answer.results;
  if (result.error) throw new Problem({ ...result.error, status: 422 });
  model = answer.model;
  Object.assign(picture, {
    width: result.width,
    height: result.height,
    version: model.version,
    candidates: candidatesOf(result),
    classNames: new Map(result.detections.map((each) => [each.class_id, each.class_name])),
    timings: answer.timings_ms,
    roundTripMs,
  });
}

function pictureChanged(picture) {
  if (picture.state === "done") picture.count = suppress(picture.candidates, thresholds.values).length;
  if (picture.state === "failed") alarm(`${picture.name}: ${picture.problem.sentence}`);
  if (picture.state === "failed" && picture.problem.lost) served.ask();
  strip.update(picture);
  if (picture === current) showCurrent();
  else if (picture.state === "done") recount(thresholds.values);
  render();
}

function remove(picture) {
  const at = pictures.indexOf(picture);
  if (at < 0) return;
  pictures.splice(at, 1);
  queue.remove(picture);
  strip.remove(picture);
  if (picture === current) show(pictures[Math.min(at, pictures.length - 1)] ?? null);
  else applyThresholds();
}

function removeAll() {
  show(null); // or each that goes would show the next
  [...pictures].forEach(remove);
  render();
}

/** Shows a picture; null none. The camera goes off. */
function show(picture) {
  if (live.on) viewer.show(null, null);
  live.close();
  current = picture;
  strip.select(picture);
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

function takeLive(answer, roundTripMs) {
  takeAnswer(live.frame, answer, roundTripMs);
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
  byId("overlay").setAttribute("aria-label", overlayLabel(ready));
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
  if (ready) return words("stage.picture", { name: current.name, n: detections.length });
  return current ? words("strip.state", { name: current.name, state: stateWords(current) }) : words("stage.label");
}

/** Counts in the other pictures. */
async function recount(values) {
  const round = ++recounting;
  const others = pictures.filter((picture) => picture !== current && picture.candidates);
  const count = (picture) => {
    picture.count = suppress(picture.candidates, values).length;
    strip.update(picture);
  };
  if (!(await inSlices(others, count, () => round === recounting))) return;
  const done = pictures.filter(({ state }) => state === "done");
  const n = done.reduce((sum, picture) => sum + picture.count, 0);
  byId("found-all").textContent = done.length > 1 ? words("found.inAll", { n, pictures: done.length }) : "";
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
  arrange(pictures, current, live.on);
}

function showAll() {
  applyThresholds();
  render();
}

function countDown() {
  for (const picture of pictures) if (picture.state === "retrying") strip.update(picture);
  if (current?.state === "retrying") arrangeMessage(current);
}

function stateChanged(state, before) {
  // What the network had lost is asked for again when it is back.
  if (before === "unreachable" && state === "ready") {
    pictures.filter((picture) => mayWork(picture) && picture.problem.lost).forEach((picture) => queue.add(picture));
    if (byId("samples").hidden) samples();
  }
  if (state !== "ready" && before !== "asking") alarm(words(`status.${state}`));
}

function languageChanged() {
  served.show();
  pictures.forEach((picture) => strip.update(picture));
  nameSamples();
  showAll();
}

function keyAccepted() {
  served.ask();
  samples();
  queue.release();
  render();
}

function samples() {
  offerSamples(addFiles, () => say(words("samples.failed")));
}

// -- buttons --------------------------------------------------------------------------------------

function listenForButtons() {
  const onClick = (id, does) => byId(id).addEventListener("click", does);
  byId("labels").addEventListener("change", (event) => viewer.setLabels(event.target.checked));
  onClick("remove", () => remove(current));
  onClick("remove-all", removeAll);
  onClick("retry", () => queue.add(current));
  onClick("retry-all", () => pictures.filter(mayWork).forEach((picture) => queue.add(picture)));
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => downloadDetections(button.dataset.download, pictures, thresholds.values, model, served.classNames));
  }
  for (const button of document.querySelectorAll("[data-picture]")) {
    button.addEventListener("click", async () => {
      const made = await downloadPicture(view.media, current, detections, byId("labels").checked, button.dataset.picture);
      say(made ? "" : words("download.failed"));
    });
  }
}
