// Long work in pieces, between which the page stays alive.

const SLICE_MS = 8;

/**
 * Calls `work` with every item, a few milliseconds at a time.
 *
 * @param {() => boolean} isCurrent is called between the pieces.
 * @returns {Promise<boolean>} false where it was given up because it was no longer current.
 */
export async function inSlices(items, work, isCurrent) {
  let until = performance.now() + SLICE_MS;
  for (const item of items) {
    work(item);
    if (performance.now() < until) continue;
    await new Promise((done) => setTimeout(done));
    if (!isCurrent()) return false;
    until = performance.now() + SLICE_MS;
  }
  return true;
}
