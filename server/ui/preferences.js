// Language and colours that a visitor chose, kept in this browser.

const PREFIX = "yolov8-fla.";

/** What was chosen; null where nothing was, or storage is off. */
export function preference(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** Keeps a choice where it can be kept. */
export function prefer(name, value) {
  try {
    localStorage.setItem(PREFIX + name, value);
  } catch {
    // It holds until the page is left.
  }
}
