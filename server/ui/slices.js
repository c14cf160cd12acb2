// Long work in pieces, between which the page stays alive.

const SLICE_MS = 8;

/**
 * Calls `each` with every item, a few milliseconds at a time.
 *
 * @param {() => boolean} wanted is asked between the pieces.
 * @returns {Promise<boolean>} false where it was given up because it was not wanted any more.
 */
export async function inSlices(items, each, wanted) {
  let until = performance.now() + SLICE_MS;
  for (const item of items) {
    each(item);
    if (performance.now() < until) continue;
    await new Promise((done) => setTimeout(done));
    if (!wanted()) return false;
    until = performance.now() + SLICE_MS;
  }
  return true;
}
