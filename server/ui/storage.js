// What a visitor chose, kept by this browser ("localStorage") or for this tab ("sessionStorage").

const PREFIX = "yolov8-fla.";

/** What was kept; null where nothing was, or storage is off. */
export function stored(storage, name) {
  try {
    return window[storage].getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** Keeps a text where it can be kept, else it holds until the page is left; null forgets it. */
export function store(storage, name, value) {
  try {
    if (value === null) window[storage].removeItem(PREFIX + name);
    else window[storage].setItem(PREFIX + name, value);
  } catch {
    // Storage is off.
  }
}
