// How images come in: picked, dropped, pasted, or as a sample.

import { byId, element } from "./dom.js";
import { fetchSample, fetchSamples } from "./requests.js";
import { words } from "./words.js";

/** Watches the page for files; `take` gets a list of them, empty where what came held none. */
export function listenForFiles(take) {
  const picker = byId("picker");
  for (const id of ["pick", "pick-more"]) byId(id).addEventListener("click", () => picker.click());
  picker.addEventListener("change", () => {
    take([...picker.files]);
    picker.value = ""; // or the same file could not be picked again
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      take(files);
      event.preventDefault();
    }
  });
  listenForDrops(take);
}

function listenForDrops(take) {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // each element that is entered says so
  const show = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", (event) => carriesFiles(event) && show(1));
  document.addEventListener("dragleave", (event) => carriesFiles(event) && show(-1));
  document.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  document.addEventListener("drop", async (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    show(0);
    take(await filesOf(event.dataTransfer));
  });
}

/** The files of a drop; of folders those in them, however deep. */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  while (entries.length) {
    const entry = entries.shift();
    if (entry.isFile) {
      const file = await new Promise((done) => entry.file(done, () => done(null)));
      // Folders hold other things, too; a file that was dropped by itself is tried whatever it is.
      if (file && (file.type.startsWith("image/") || /\.(jpe?g|png|webp|bmp|tiff?)$/i.test(file.name))) files.push(file);
    } else {
      const reader = entry.createReader();
      const read = () => new Promise((done) => reader.readEntries(done, () => done([])));
      for (let some = await read(); some.length; some = await read()) entries.push(...some);
    }
  }
  return files;
}

/** Names the samples in the language of the page. */
export function nameSamples() {
  for (const sample of document.querySelectorAll(".sample")) sample.ariaLabel = words("samples.label", { name: sample.title });
}

/** Offers the server's samples, if it has any; may be called again, as when a key has come. */
export async function offerSamples(take, failed) {
  let files;
  try {
    files = await Promise.all((await fetchSamples()).map(fetchSample));
  } catch {
    return; // without them the page is complete
  }
  byId("samples").hidden = files.length === 0;
  byId("sample-list").replaceChildren(...files.map((file) => {
    const image = element("img", { alt: "" });
    image.src = URL.createObjectURL(file);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    image.addEventListener("error", failed, { once: true });
    return element("button", { type: "button", className: "sample", title: file.name, onclick: () => take([file]) }, image);
  }));
  nameSamples();
}
