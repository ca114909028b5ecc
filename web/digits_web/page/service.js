// Asking the gateway. Errors have a sentence, and say whether the service is away or the request was wrong.

const PATIENCE_MS = 6000;           // a little more than the gateway's own; a gateway that hangs counts as away

export class ServiceError extends Error {
  /** `isAway`: trying again may help, and nothing is wrong with what was asked. */
  constructor(message, isAway) {
    super(message);
    this.isAway = isAway;
  }
}

/** Return the JSON at an API path. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(`api/${path}`, { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  } catch (error) {
    throw new ServiceError(`This page’s gateway does not answer (${error.message}).`, true);
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new ServiceError(body.detail ?? `The gateway answers with status ${response.status}.`, response.status >= 500);
}

/** Return what the model says about a PNG or JPEG. */
export const classify = (blob) => ask("classify", { method: "POST", headers: { "content-type": blob.type }, body: blob });

/** Runs a job again and again as long as there is something new, one run at a time: whatever came while a run was under way is
 *  done in one next run, with the newest. Nothing queues. */
export class Newest {
  #job; #isRunning = false; #isNew = false;

  constructor(job) { this.#job = job; }

  async offer() {
    this.#isNew = true;
    if (this.#isRunning) return;
    this.#isRunning = true;
    try {
      while (this.#isNew) {
        this.#isNew = false;
        await this.#job();
      }
    } finally {
      this.#isRunning = false;
    }
  }
}
