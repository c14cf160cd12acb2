// The page: pictures in, boxes drawn, thresholds applied. Read from `start` on.

import { Camera, CameraProblem } from "./camera.js";
import { byId } from "./dom.js";
import { downloadDetections, downloadPicture } from "./downloads.js";
import { listenForFiles, offerSamples } from "./inputs.js";
import { isFrameOf, loadRendered, loadView, makeThumbnail } from "./pictures.js";
import { prefer, preference } from "./preferences.js";
import { Problem } from "./problems.js";
import { Queue } from "./queue.js";
import { askCandidates, askModel, onKeyMissing, useKey } from "./requests.js";
import { Results } from "./results.js";
import { Served } from "./served.js";
import { stateWords, Strip } from "./strip.js";
import { candidatesOf, detectionsOf, isTruncated, suppress } from "./suppression.js";
import { Thresholds } from "./thresholds.js";
import { showTimes } from "./times.js";
import { Viewer } from "./viewer.js";
import { currentLanguage, number, preferredLanguage, speak, words, WORDS } from "./words.js";

const ANNOUNCE_AFTER_MS = 600; // a slider that moves is not read out at each step
const SLICE_MS = 8;

const pictures = [];
const versions = new Set(); // of models that answered
let model = null; // that answered last: {name, version}
let current = null; // the shown picture: one of `pictures`, `liveFrame`, or null
let detections = []; // of the shown picture, at the thresholds
let view = null; // {media, release} of the shown picture
let viewOf = null; // the picture that `view` is of
let viewRequest = new AbortController();
let camera = null;
let cameraCount = 0;
let announcing = 0;
let recounting = 0;
let thumbnails = Promise.resolve(); // one after the other: each takes a whole picture's memory

const liveFrame = { name: "", live: true, state: "waiting", classNames: new Map() };
const thresholds = new Thresholds(applyThresholds);
const viewer = new Viewer({ onHover: mark, onSelect: choose });
const results = new Results({ onHover: mark, onToggleClass: (id) => thresholds.toggleClass(id) });
const strip = new Strip(show);
const queue = new Queue(detect, pictureChanged);
const served = new Served(stateChanged);

start();

function start() {
  const chosen = preference("language");
  speak(chosen in WORDS ? chosen : preferredLanguage(navigator.languages));
  byId("app").hidden = false;
  listenForFiles(addFiles);
  listenForButtons();
  listenForCamera();
  listenForKey();
  setInterval(countDown, 500);
  showTheme();
  render();
  served.ask();
  samples();
}

// -- pictures -------------------------------------------------------------------------------------

function addFiles(files) {
  say(files.length ? "" : words("drop.nothing"));
  for (const file of files) {
    const picture = { file, name: file.name || "picture", state: "waiting", candidates: null, classNames: new Map(), count: 0 };
    pictures.push(picture);
    strip.add(picture);
    queue.add(picture);
    thumbnails = thumbnails.then(async () => {
      if (!pictures.includes(picture)) return;
      const canvas = await makeThumbnail(file);
      if (canvas) strip.setThumbnail(picture, canvas);
    });
  }
  if (files.length) {
    closeCamera();
    show(pictures[pictures.length - files.length]);
  }
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
  if (picture.state === "failed") announce(`${picture.name}: ${picture.problem.sentence}`, "alerts");
  if (picture.state === "failed" && picture.problem.code === "unreachable") served.ask();
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

/** Shows a picture; null none. */
function show(picture) {
  if (picture !== liveFrame) closeCamera();
  current = picture;
  strip.select(picture);
  showCurrent();
  render();
}

function showCurrent() {
  const picture = current;
  if (picture === null) {
    dropView();
    viewer.show(null, null);
  } else if (!picture.live) {
    showView(picture);
  }
  applyThresholds();
}

async function showView(picture) {
  const done = picture.state === "done";
  if (viewOf === picture && (!done || picture.framed)) return;
  viewRequest.abort();
  viewRequest = new AbortController();
  const { signal } = viewRequest;
  picture.framed = false;
  picture.note = null;
  render();
  if (viewOf !== picture) {
    const loaded = await loadView(picture.file);
    if (signal.aborted) return loaded?.release();
    replaceView(picture, loaded);
  }
  if (picture.state === "done" && !isFrameOf(view, picture)) {
    // The browser can't read the file, or turned it otherwise: the server is asked for what it sees.
    viewer.show(null, null);
    const rendered = await loadRendered(picture.file, signal);
    if (signal.aborted) return rendered?.release();
    replaceView(picture, isFrameOf(rendered, picture) ? rendered : null);
    picture.note = view ? "stage.rendered" : "stage.plate";
  }
  picture.framed = picture.state === "done";
  const size = picture.framed ? picture : view && { width: view.media.naturalWidth, height: view.media.naturalHeight };
  viewer.show(view?.media ?? null, size && { width: size.width, height: size.height });
  applyThresholds();
  render();
}

function dropView() {
  viewRequest.abort(); // what is still being loaded is not wanted, either
  viewRequest = new AbortController();
  replaceView(null, null);
}

function replaceView(picture, loaded) {
  view?.release();
  if (viewOf) viewOf.framed = false;
  [view, viewOf] = [loaded, picture];
}

// -- thresholds -----------------------------------------------------------------------------------

function applyThresholds() {
  const values = thresholds.values;
  const ready = current?.candidates && current.state === "done";
  detections = ready ? detectionsOf(current, suppress(current.candidates, values)) : [];
  if (ready) current.count = detections.length;
  viewer.setDetections(current?.framed || current?.live ? detections : []);
  results.show(detections);
  results.showClasses(ready ? classesOf(current, values) : []);
  byId("truncated").hidden = !(ready && isTruncated(current.candidates, values));
  if (ready) {
    byId("found-count").textContent = number(detections.length);
    byId("overlay").setAttribute("aria-label", words("stage.picture", { name: current.name, n: detections.length }));
    showTimes(current.timings, current.roundTripMs);
    if (!current.live) {
      strip.update(current);
      announce(words("found.announce", { n: detections.length, name: current.name }));
    }
  }
  recount(values);
}

/** Counts in the other pictures, a few milliseconds at a time. */
async function recount(values) {
  const round = ++recounting;
  let until = performance.now() + SLICE_MS;
  for (const picture of [...pictures]) {
    if (picture === current || !picture.candidates) continue;
    picture.count = suppress(picture.candidates, values).length;
    strip.update(picture);
    if (performance.now() < until) continue;
    await new Promise((done) => setTimeout(done));
    if (round !== recounting) return;
    until = performance.now() + SLICE_MS;
  }
  const done = pictures.filter(({ state }) => state === "done");
  const n = done.reduce((sum, { count }) => sum + count, 0);
  byId("found-all").textContent = done.length > 1 ? words("found.inAll", { n, pictures: done.length }) : "";
}

function classesOf(picture, values) {
  const all = suppress(picture.candidates, { ...values, hidden: new Set() });
  const counts = new Map([...picture.classNames.keys()].map((id) => [id, 0]));
  for (const i of all) counts.set(picture.candidates.classIds[i], counts.get(picture.candidates.classIds[i]) + 1);
  const few = counts.size <= 8;
  return [...counts]
    .filter(([id, count]) => few || count > 0 || values.hidden.has(id))
    .sort(([one], [other]) => one - other)
    .map(([id, count]) => ({ id, count, name: picture.classNames.get(id), shown: !values.hidden.has(id) }));
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

/** Shows and hides what depends on the state; the rest of the page knows nothing of it. */
function render() {
  const some = pictures.length > 0;
  const active = some || camera !== null;
  document.body.classList.toggle("empty", !active);
  byId("welcome").hidden = active;
  byId("toolbar").hidden = !active;
  byId("strip-frame").hidden = !some;
  const done = pictures.filter(({ state }) => state === "done");
  const failed = pictures.filter(({ state, problem }) => state === "failed" && problem.mayWork);
  const ready = current !== null && current.state === "done";
  byId("found").hidden = byId("times").hidden = !ready;
  byId("download").hidden = done.length === 0;
  byId("download-scope").textContent = done.length ? words("download.scope", { n: done.length }) : "";
  byId("download-picture").hidden = !(ready && !current.live);
  byId("name").textContent = current ? current.name : "";
  byId("size").textContent = ready ? `${number(current.width)} × ${number(current.height)}` : "";
  byId("look").hidden = !ready;
  byId("remove").hidden = !pictures.includes(current);
  byId("remove-all").hidden = pictures.length < 2;
  byId("retry-all").hidden = failed.length < 2;
  byId("retry-all").textContent = failed.length ? words("retry.all", { n: failed.length }) : "";
  const pending = pictures.length - done.length - pictures.filter(({ state }) => state === "failed").length;
  byId("progress").hidden = pictures.length < 2 || pending === 0;
  byId("progress-bar").max = pictures.length || 1;
  byId("progress-bar").value = pictures.length - pending;
  byId("progress-text").textContent = words("progress", { done: pictures.length - pending, all: pictures.length });
  byId("note").textContent = ready && current.note ? words(current.note) : "";
  renderCamera();
  renderState();
}

function renderState() {
  const failed = current?.state === "failed";
  const message = byId("message");
  message.hidden = current === null || current.live || current.state === "done";
  message.classList.toggle("bad", failed);
  if (message.hidden) return;
  byId("message-text").textContent = failed ? current.problem.sentence : stateWords(current);
  const { detail = "", requestId = "" } = failed ? current.problem : {};
  byId("message-detail").textContent = failed && current.problem.status ? detail : "";
  byId("message-request").textContent = requestId ? words("error.request", { id: requestId }) : "";
  byId("retry").hidden = !(failed && current.problem.mayWork);
}

function countDown() {
  for (const picture of pictures) if (picture.state === "retrying") strip.update(picture);
  if (current?.state === "retrying") renderState();
}

function stateChanged(state, before) {
  // What the network had lost is asked for again when it is back.
  if (before === "unreachable" && state === "ready") {
    for (const picture of pictures) if (picture.state === "failed" && picture.problem.code === "unreachable") queue.add(picture);
  }
  if (state === "ready" && before === "unreachable" && byId("samples").hidden) samples();
  if (state !== "ready" && before !== "asking") announce(words(`status.${state}`), "alerts");
}

/** Tells it to who does not see the page; counts politely, errors at once. */
function announce(text, region = "announcements") {
  if (region === "alerts") {
    byId(region).textContent = text;
    return;
  }
  clearTimeout(announcing);
  announcing = setTimeout(() => (byId(region).textContent = text), ANNOUNCE_AFTER_MS);
}

/** A line for everybody, above the picture; "" takes it away. */
function say(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = text === "";
}

// -- buttons --------------------------------------------------------------------------------------

function listenForButtons() {
  byId("labels").addEventListener("change", (event) => viewer.setLabels(event.target.checked));
  byId("remove").addEventListener("click", () => remove(current));
  byId("remove-all").addEventListener("click", () => {
    show(null); // or each that goes would show the next
    [...pictures].forEach(remove);
    render();
  });
  byId("retry").addEventListener("click", () => queue.add(current));
  byId("retry-all").addEventListener("click", () => {
    pictures.filter(({ state, problem }) => state === "failed" && problem.mayWork).forEach((picture) => queue.add(picture));
  });
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => downloadDetections(button.dataset.download, downloadable()));
  }
  for (const button of document.querySelectorAll("[data-picture]")) {
    button.addEventListener("click", async () => {
      const made = await downloadPicture(view?.media ?? null, current, detections, byId("labels").checked, button.dataset.picture);
      say(made ? "" : words("download.failed"));
    });
  }
  byId("language").addEventListener("click", () => {
    const other = currentLanguage() === "en" ? "zh" : "en";
    prefer("language", other);
    speak(other);
    showTheme();
    served.show();
    pictures.forEach((picture) => strip.update(picture));
    samples();
    applyThresholds();
    render();
  });
  byId("theme").addEventListener("click", () => {
    const other = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = other;
    prefer("theme", other);
    showTheme();
  });
}

function downloadable() {
  const values = thresholds.values;
  const over = pictures.filter(({ state }) => state === "done" || state === "failed");
  const timings = over.filter(({ state }) => state === "done").map((picture) => picture.timings);
  const names = new Map(served.classNames.map((name, id) => [id, name]));
  for (const { classNames } of pictures) for (const [id, name] of classNames) names.set(id, name);
  return {
    model,
    // As the server does for a request of several pictures: the longest of each stage.
    timingsMs: Object.fromEntries(Object.keys(timings[0]).map((stage) => [stage, Math.max(...timings.map((each) => each[stage]))])),
    classNames: Array.from({ length: Math.max(-1, ...names.keys()) + 1 }, (_, id) => names.get(id) ?? String(id)),
    pictures: over.map((picture) => {
      const { name, state, problem, width, height, candidates } = picture;
      if (state === "failed") {
        return { name, width: null, height: null, truncated: false, error: { code: problem.code, detail: problem.detail }, detections: [] };
      }
      const found = detectionsOf(picture, suppress(candidates, values));
      return { name, width, height, truncated: isTruncated(candidates, values), error: null, detections: found };
    }),
  };
}

function isDark() {
  return (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function showTheme() {
  byId("theme").setAttribute("aria-label", words(isDark() ? "theme.toLight" : "theme.toDark"));
  byId("theme").title = words(isDark() ? "theme.toLight" : "theme.toDark");
}

function samples() {
  offerSamples(addFiles, () => say(words("samples.failed")));
}

// -- the key --------------------------------------------------------------------------------------

function listenForKey() {
  onKeyMissing((wasSent) => {
    byId("key-form").hidden = false;
    byId("key-wrong").hidden = !wasSent;
  });
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
    try {
      await askModel();
    } catch (error) {
      if (error.status === 401) {
        useKey(null);
        byId("key").select();
        return;
      }
    }
    byId("key").value = "";
    byId("key-form").hidden = true;
    served.ask();
    samples();
    queue.release();
  });
}

// -- the camera -----------------------------------------------------------------------------------

function listenForCamera() {
  for (const id of ["camera", "camera-more"]) byId(id).addEventListener("click", openCamera);
  byId("camera-stop").addEventListener("click", () => {
    closeCamera();
    show(pictures.at(-1) ?? null);
  });
  byId("camera-take").addEventListener("click", async () => {
    const file = await camera.take(`${words("camera.name")}-${++cameraCount}.jpg`);
    addFiles([file]);
  });
  byId("camera-live").addEventListener("click", () => {
    if (camera.live) camera.pause();
    else runCamera();
    render();
  });
}

async function openCamera() {
  say("");
  closeCamera();
  try {
    camera = await Camera.open();
  } catch (error) {
    if (!(error instanceof CameraProblem)) throw error;
    say(words(error.key));
    announce(words(error.key), "alerts");
    return;
  }
  camera.onEnded(() => byId("camera-stop").click());
  Object.assign(liveFrame, { name: words("camera.title"), state: "waiting", candidates: null });
  dropView();
  viewer.show(camera.video, camera.size);
  show(liveFrame);
  runCamera();
  render();
}

function runCamera() {
  const using = camera;
  let last = performance.now();
  using.run(
    (answer, roundTripMs) => {
      if (using !== camera) return;
      takeAnswer(liveFrame, answer, roundTripMs);
      liveFrame.state = "done";
      const now = performance.now();
      byId("camera-rate").textContent = words("camera.rate", { n: number(1000 / (now - last), 1) });
      last = now;
      say("");
      applyThresholds();
      render();
    },
    (problem) => {
      say(problem.sentence);
      render();
    },
  );
}

function closeCamera() {
  if (!camera) return;
  camera.close();
  camera = null;
  if (current === liveFrame) current = null;
  viewer.show(null, null);
}

function renderCamera() {
  byId("camera-bar").hidden = camera === null;
  byId("camera-more").hidden = camera !== null;
  byId("camera-live").setAttribute("aria-pressed", String(camera?.live ?? false));
  if (!camera?.live) byId("camera-rate").textContent = "";
}
