// What went wrong, as a person reads it.

import { hasWords, words } from "./words.js";

/** A response that is an error, or none at all (`code` "unreachable"). */
export class Problem extends Error {
  /** @param {{code, status, detail, requestId, retryAfterS}} of what the server said. */
  constructor({ code, status = 0, detail = "", requestId = "", retryAfterS = 1 }) {
    super(detail || code);
    Object.assign(this, { code, status, detail, requestId, retryAfterS });
  }

  /** Whether the same request may work later, by itself: the server, or what stands before it, says so. */
  get passes() {
    return this.status === 503 || this.status === 429;
  }

  /** Whether it was lost on its way, as when a network changes or a proxy has no server behind it. */
  get lost() {
    return ["unreachable", "unreadableResponse"].includes(this.code) || this.status === 502 || (this.status === 504 && this.code === "");
  }

  /** Whether sending it again may work, when a person says so. */
  get mayWork() {
    return this.lost || this.status === 0 || this.status >= 500 || this.status === 408 || this.status === 429;
  }

  /** A sentence in the page's language; `detail` is the server's own. */
  get sentence() {
    const key = `error.${this.code}`;
    return hasWords(key) ? words(key) : words("error.other", { status: String(this.status) });
  }
}

/** What was thrown, as a Problem: what is none came of a response that is not as it should be. */
export function asProblem(error) {
  return error instanceof Problem ? error : new Problem({ code: "unreadableResponse", detail: String(error) });
}

/** Reads an error response: `application/problem+json`, or whatever a proxy made of it. */
export async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy's own page: the status says enough.
  }
  const after = Number(response.headers.get("Retry-After"));
  return new Problem({
    code: typeof body?.code === "string" ? body.code : "",
    status: response.status,
    detail: typeof body?.detail === "string" ? body.detail : "",
    requestId: response.headers.get("X-Request-ID") ?? "",
    retryAfterS: Number.isFinite(after) && after > 0 ? Math.min(after, 60) : 1,
  });
}
