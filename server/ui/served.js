// What is served, and the server's state.

import { byId, element } from "./dom.js";
import { Problem } from "./problems.js";
import { askHealth, askModel } from "./requests.js";
import { currentLanguage, hasWords, number, words } from "./words.js";

const CALM_MS = 15_000;
const EAGER_MS = 2_000; // while something is about to change

/** Follows the server. Knows the model's class names as soon as there are any. */
export class Served {
  #health = null;
  #model = null;
  #timer = 0;
  #asking = false;
  #changed;

  /** @param {(state, before) => void} changed is told of each change of the state. */
  constructor(changed) {
    this.#changed = changed;
    document.addEventListener("visibilitychange", () => document.hidden || this.ask());
  }

  /** "asking", "unreachable", or the `status` of `/health`. */
  state = "asking";

  /** The model's class names by id; empty until they are known. */
  get classNames() {
    return this.#model?.metadata.class_names ?? [];
  }

  /** Asks now, and again from time to time. */
  async ask() {
    if (this.#asking) return;
    this.#asking = true;
    clearTimeout(this.#timer);
    const before = this.state;
    try {
      this.#health = await askHealth();
      this.state = hasWords(`status.${this.#health.status}`) ? this.#health.status : "failed";
      if (this.#health.version && this.#health.version !== this.#model?.version) await this.#askModel();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.state = "unreachable";
    } finally {
      this.#asking = false;
    }
    this.show();
    if (this.state !== before) this.#changed(this.state, before);
    if (!document.hidden) this.#timer = setTimeout(() => this.ask(), this.state === "ready" ? CALM_MS : EAGER_MS);
  }

  async #askModel() {
    try {
      this.#model = await askModel();
    } catch {
      this.#model = null; // behind a key, or just being replaced
    }
  }

  /** Writes it all, in the page's language. */
  show() {
    const [health, state] = [this.#health, this.state];
    const chip = byId("status");
    chip.dataset.state = state;
    byId("status-text").textContent = words(`status.${state}`);
    const known = health !== null && state !== "unreachable";
    byId("status-model").textContent = known ? [health.model, health.precision, health.device].filter(Boolean).join(" · ") : "";
    const fallback = known ? health.cpu_fallback : null;
    byId("gpu-banner").hidden = !fallback;
    byId("gpu-reason").textContent = fallback ?? "";
    byId("served").hidden = health === null;
    if (health !== null) this.#describe(health);
  }

  #describe(health) {
    const metadata = this.#model?.metadata;
    const server = [health.server_version, health.revision?.slice(0, 12)].filter(Boolean).join(" · ");
    const size = metadata?.input_hw.map((side) => number(side)).reverse().join(" × ");
    byId("served-list").replaceChildren(
      ...fact("model", metadata ? `${health.model} (${metadata.architecture})` : health.model),
      ...fact("version", health.version, "code"),
      ...fact("precision", health.precision),
      ...fact("provider", health.provider),
      ...fact("device", health.device),
      ...fact("input", size),
      ...fact("classes", metadata && shortened(metadata.class_names)),
      ...fact("reason", health.reason, "english"),
      ...fact("certificate", metadata && inWords(metadata.certificate)),
      ...fact("server", server, "code"),
    );
    byId("certificate").hidden = !metadata;
    byId("certificate-json").textContent = metadata ? JSON.stringify(metadata.certificate, null, 2) : "";
  }
}

/** The certificate as sentences. */
function inWords(certificate) {
  const said = [words(`certificate.${certificate.verdict}`, { n: certificate.detections_compared })];
  if (certificate.verdict === "equal") {
    said.push(words("certificate.apart", {
      px: rounded(certificate.detections_max_box_diff_px), score: rounded(certificate.detections_max_score_diff),
    }));
  }
  const { accuracy } = certificate;
  if (accuracy) {
    said.push(words("certificate.accuracy", {
      artifact: number(accuracy.artifact_map50_95, 3), source: number(accuracy.source_map50_95, 3),
    }));
  }
  said.push(words("certificate.created", { date: certificate.created }));
  return said.join(currentLanguage() === "zh" ? "" : " ");
}

function fact(name, value, kind = "") {
  if (!value) return [];
  const shown = element("dd", { className: kind, textContent: value });
  if (kind === "english") shown.lang = "en"; // the server's own words
  return [element("dt", { textContent: words(`served.${name}`) }), shown];
}

function rounded(value) {
  return value === 0 ? number(0) : new Intl.NumberFormat(document.documentElement.lang, { maximumSignificantDigits: 2 }).format(value);
}

function shortened(names) {
  return names.length > 12 ? `${names.slice(0, 12).join(", ")}, … (${number(names.length)})` : names.join(", ");
}
