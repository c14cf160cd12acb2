// What is served, and the server's state.

import { byId, element } from "./dom.js";
import { Problem } from "./problems.js";
import { fetchHealth, fetchModel } from "./requests.js";
import { currentLanguage, hasWords, number, words } from "./words.js";

const CALM_MS = 15_000;
const EAGER_MS = 2_000; // while something is about to change

/** Follows the server. Knows the model's class names as soon as there are any. */
export class Served {
  #health = null;
  #model = null;
  #timer = 0;
  #polling = false;
  #changed;

  /** @param {(state, before) => void} changed is called at each change of the state. */
  constructor(changed) {
    this.#changed = changed;
    document.addEventListener("visibilitychange", () => document.hidden || this.poll());
  }

  /** "connecting", "unreachable", or the `status` of `/health`. */
  state = "connecting";

  /** The model's class names by id; empty until they are known. */
  get classNames() {
    return this.#model?.metadata.class_names ?? [];
  }

  /** Polls now, and again from time to time. */
  async poll() {
    if (this.#polling) return;
    this.#polling = true;
    clearTimeout(this.#timer);
    const before = this.state;
    try {
      this.#health = await fetchHealth();
      this.state = hasWords(`status.${this.#health.status}`) ? this.#health.status : "failed";
      if (this.#health.version && this.#health.version !== this.#model?.version) await this.#fetchModel();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.state = "unreachable";
    } finally {
      this.#polling = false;
    }
    this.show();
    if (this.state !== before) this.#changed(this.state, before);
    if (!document.hidden) this.#timer = setTimeout(() => this.poll(), this.state === "ready" ? CALM_MS : EAGER_MS);
  }

  async #fetchModel() {
    try {
      this.#model = await fetchModel();
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
  const sentences = [words(`certificate.${certificate.verdict}`, { n: certificate.detections_compared })];
  if (certificate.verdict === "equal") {
    sentences.push(words("certificate.apart", {
      px: rounded(certificate.detections_max_box_diff_px), score: rounded(certificate.detections_max_score_diff),
    }));
  }
  const { accuracy } = certificate;
  if (accuracy) {
    sentences.push(words("certificate.accuracy", {
      artifact: number(accuracy.artifact_map50_95, 3), source: number(accuracy.source_map50_95, 3),
    }));
  }
  sentences.push(words("certificate.created", { date: certificate.created }));
  return sentences.join(currentLanguage() === "zh" ? "" : " ");
}

function fact(name, value, kind = "") {
  if (!value) return [];
  const language = kind === "english" ? { lang: "en" } : {}; // the server's own words
  return [element("dt", { textContent: words(`served.${name}`) }), element("dd", { className: kind, textContent: value, ...language })];
}

function rounded(value) {
  return value === 0 ? number(0) : new Intl.NumberFormat(document.documentElement.lang, { maximumSignificantDigits: 2 }).format(value);
}

function shortened(names) {
  return names.length > 12 ? `${names.slice(0, 12).join(", ")}, … (${number(names.length)})` : names.join(", ");
}
