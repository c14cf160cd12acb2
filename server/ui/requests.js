// Requests to the server: candidates of an image, its state, its model, its samples.
// Paths are relative, so that a proxy may put the page below any prefix.

import { Problem, problemOf } from "./problems.js";
import { store, stored } from "./storage.js";
import { LEAST_CONF } from "./suppression.js";

// All candidates, once; thresholds are applied here. 999999999 is the largest the server reads.
const CANDIDATES = `detect?conf=${LEAST_CONF}&iou=1&max_det=999999999&clip=false`;
// A detection scores at most 1, so this draws nothing: the image as the server sees it.
const RENDERED = "detect?conf=1&format=image";

let key = stored("sessionStorage", "key");
let keyListener = () => {};

/** Calls `listener` whenever a response says that a key is missing or wrong. */
export function onKeyMissing(listener) {
  keyListener = listener;
}

/** Whether a text can be a key: requests carry no other characters than those of a header. */
export function canBeSent(key) {
  try {
    return Boolean(new Headers({ "X-API-Key": key }));
  } catch {
    return false;
  }
}

/** Uses a key from now on, and keeps it for this tab; null forgets it. */
export function useKey(newKey) {
  key = newKey;
  store("sessionStorage", "key", key);
}

/** All candidates of an image: {response, roundTripMs}. Throws a Problem; AbortError where aborted. */
export async function fetchCandidates(file, signal) {
  const started = performance.now();
  const received = await request(CANDIDATES, { method: "POST", body: file, signal }).catch((error) => explained(error, file));
  const response = await readJson(received, signal);
  return { response, roundTripMs: performance.now() - started };
}

/** The image as the server decoded it, without boxes, for browsers that can't. Throws a Problem. */
export async function fetchRendered(file, signal) {
  const response = await request(RENDERED, { method: "POST", body: file, signal, headers: { Accept: "image/jpeg" } });
  return response.blob();
}

/** `GET /model`. Throws a Problem. */
export async function fetchModel() {
  return readJson(await request("model"));
}

/** `GET /health`, also where it is a 503. Throws a Problem where nothing responds. */
export async function fetchHealth() {
  return readJson(await reach("health", {}));
}

/** The samples' names. Throws a Problem. */
export async function fetchSamples() {
  return readJson(await request("samples"));
}

/** One of them, as a file. Throws a Problem. */
export async function fetchSample(name) {
  const response = await request(`samples/${encodeURIComponent(name)}`);
  const blob = await response.blob();
  return new File([blob], name, { type: blob.type });
}

async function request(path, { headers = {}, ...options } = {}) {
  const sent = key === null ? headers : { ...headers, "X-API-Key": key };
  if (options.body) sent["Content-Type"] = "application/octet-stream"; // the server looks at the bytes
  const response = await reach(path, { ...options, headers: sent });
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (problem.status === 401) keyListener(key !== null);
  throw problem;
}

async function reach(path, options) {
  try {
    return await fetch(path, { cache: "no-store", credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ code: "unreachable", detail: error.message });
  }
}

/** A file that changed since it was chosen looks to `fetch` like a network that is gone. */
async function explained(error, file) {
  if (error.code === "unreachable") {
    const reader = file.stream().getReader();
    await reader.read().then(() => reader.cancel(), () => {
      throw new Problem({ code: "unreadableFile", detail: error.detail });
    });
  }
  throw error;
}

async function readJson(response, signal) {
  try {
    return await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem({ code: "unreadableResponse", status: response.status });
  }
}
