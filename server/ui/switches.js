// The two switches in the header: language, and light or dark.

import { byId } from "./dom.js";
import { store, stored } from "./storage.js";
import { currentLanguage, preferredLanguage, speak, words, WORDS } from "./words.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Takes the language and the colours that were chosen here before, or those of the browser. */
export function listenForSwitches(languageChanged) {
  const chosen = stored("localStorage", "language");
  speak(chosen in WORDS ? chosen : preferredLanguage(navigator.languages));
  showTheme();
  byId("language").addEventListener("click", () => {
    const language = currentLanguage() === "en" ? "zh" : "en";
    store("localStorage", "language", language);
    speak(language);
    showTheme();
    languageChanged();
  });
  byId("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    store("localStorage", "theme", theme);
    showTheme();
  });
  dark.addEventListener("change", showTheme);
}

function isDark() {
  return (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
}

function showTheme() {
  const text = words(isDark() ? "theme.toLight" : "theme.toDark");
  byId("theme").ariaLabel = text;
  byId("theme").title = text;
}
