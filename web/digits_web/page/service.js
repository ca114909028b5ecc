// Asking the gateway. Errors have a sentence, and `isAway` where trying again may help and nothing is wrong with what was asked.

const TIMEOUT_MS = 6000;            // a little more than the gateway's own; a gateway that hangs counts as away

const failure = (sentence, isAway) => Object.assign(new Error(sentence), { isAway });

/** Return the JSON at an API path; with a blob, post that. */
export async function ask(path, blob) {
  const post = blob && { method: "POST", headers: { "content-type": blob.type }, body: blob };
  let response;
  try {
    response = await fetch(`api/${path}`, { signal: AbortSignal.timeout(TIMEOUT_MS), ...post });
  } catch (error) {
    throw failure(`This page’s gateway does not answer (${error.message}).`, true);
  }
  const body = await response.json().catch(() => null);     // also where the connection ends before the answer does
  if (response.ok && body) return body;
  throw failure(body?.detail ?? `The gateway’s answer can’t be read, status ${response.status}.`, response.ok || response.status > 500);
}

/** Return a function that runs a job, one run at a time: whatever came while a run was under way is done in one next run. */
export function newest(job) {
  let isRunning = false, isNew = false;
  return async () => {
    isNew = true;
    if (isRunning) return;
    isRunning = true;
    try {
      while (isNew) {
        isNew = false;
        await job();
      }
    } finally {
      isRunning = false;
    }
  };
}
