// The page's language: its texts and its numbers.

import { ZH } from "./chinese.js";
import { EN } from "./english.js";

export const WORDS = { en: EN, zh: ZH };
const TAGS = { en: "en", zh: "zh-CN" };

const formats = new Map();
let language = "en";

/** The language of the texts: "en" or "zh". */
export function currentLanguage() {
  return language;
}

/** The first of a browser's languages that the page has; English otherwise. */
export function preferredLanguage(languages) {
  const found = languages.map((tag) => tag.toLowerCase().split("-")[0]).find((language) => language in WORDS);
  return found ?? "en";
}

/** Takes a language for all texts to come, and writes the texts of index.html in it. */
export function speak(chosen) {
  language = chosen;
  document.documentElement.lang = TAGS[language];
  document.title = words("page.title");
  for (const node of document.querySelectorAll("[data-words]")) node.textContent = words(node.dataset.words);
  for (const node of document.querySelectorAll("[data-label]")) node.ariaLabel = words(node.dataset.label);
  for (const node of document.querySelectorAll("[data-tip]")) node.title = words(node.dataset.tip);
}

/** A text; `values` fill its braces, and `values.n` chooses its plural. */
export function words(key, values = {}) {
  let text = WORDS[language][key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  if (typeof text === "object") text = text[plurals().select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : value;
  });
}

/** Whether there is a text. */
export function hasWords(key) {
  return key in WORDS[language];
}

/** A number as the language writes it. */
export function number(value, decimals) {
  const digits = decimals === undefined ? {} : { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return kept(`number ${language} ${decimals}`, () => new Intl.NumberFormat(TAGS[language], digits)).format(value);
}

function plurals() {
  return kept(`plurals ${language}`, () => new Intl.PluralRules(TAGS[language]));
}

// Making one takes longer than a hundred uses, and a list of detections has thousands.
function kept(name, make) {
  if (!formats.has(name)) formats.set(name, make());
  return formats.get(name);
}
