// Elements, made without HTML in texts: what comes from files and servers stays text.

/** The element of an id that index.html has. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

/** Makes an element of a tag's name, with the properties of the DOM (`className`, `ariaHidden`) and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
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
