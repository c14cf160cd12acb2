// Elements, made without HTML in texts: what comes from files and servers stays text.

/** The element of an id that index.html has. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

/**
 * Makes an element.
 *
 * @param {string} tag its name.
 * @param {Object} given properties; those with a dash, and `role`, become attributes, `on…` listeners.
 * @param {...(Node|string)} children what it holds.
 */
export function element(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "lang" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Gives the focus to the next or previous of some elements; for lists in which one can be reached by Tab. */
export function rove(elements, current, step) {
  const at = elements.indexOf(current);
  const next = elements[Math.min(Math.max(at + step, 0), elements.length - 1)];
  next?.focus();
  return next;
}
