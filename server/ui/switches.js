// The two switches in the header: language, and light or dark.

import { byId } from "./dom.js";
import { prefer, preference } from "./preferences.js";
import { currentLanguage, preferredLanguage, speak, words, WORDS } from "./words.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Takes the language and the colours that were chosen here before, or those of the browser. */
export function listenForSwitches(languageChanged) {
  const chosen = preference("language");
  speak(chosen in WORDS ? chosen : preferredLanguage(navigator.languages));
  showTheme();
  byId("language").addEventListener("click", () => {
    const other = currentLanguage() === "en" ? "zh" : "en";
    prefer("language", other);
    speak(other);
    showTheme();
    languageChanged();
  });
  byId("theme").addEventListener("click", () => {
    const other = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = other;
    prefer("theme", other);
    showTheme();
  });
  dark.addEventListener("change", showTheme);
}

function isDark() {
  return (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
}

function showTheme() {
  const text = words(isDark() ? "theme.toLight" : "theme.toDark");
  byId("theme").setAttribute("aria-label", text);
  byId("theme").title = text;
}
