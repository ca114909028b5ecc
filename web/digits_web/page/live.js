// The panel of the service's own figures: the newest value as a number, the last minute as a line.

import { $, duration, element } from "./dom.js";

const KEPT = 60;                    // readings, one a second

const SOURCE = $("live-note").textContent;
const panels = [
  ["requests", (stats) => stats.requests_per_s, rate],
  ["p50", (stats) => stats.latency_s.p50, duration],
  ["p99", (stats) => stats.latency_s.p99, duration],
  ["batch", (stats) => stats.mean_batch_size, (value) => [value.toFixed(1), ""]],
].map(([id, read, write]) => ({ value: $(id), line: document.querySelector(`#${id} + svg polyline`), read, write, kept: [] }));

/** Show an answer of /api/stats. */
export function showStats(stats) {
  for (const { value, line, read, write, kept } of panels) {
    const newest = read(stats);
    kept.push(newest ?? 0);
    if (kept.length > KEPT) kept.shift();
    const [number, unit] = newest === null ? ["–", ""] : write(newest);
    value.replaceChildren(`${number} `, element("small", "", unit));
    const highest = Math.max(...kept) || 1;
    line.setAttribute("points", kept.map((each, i) => `${100 - (kept.length - 1 - i) * 100 / (KEPT - 1)},${22 - 20 * each / highest}`).join(" "));
  }
  note(SOURCE, false);
}

/** Say why there are no figures; the last ones stay, dimmed. */
export function showNoStats(sentence) { note(sentence, true); }

function note(text, isStale) {
  if ($("live-note").textContent !== text) $("live-note").textContent = text;
  document.querySelector(".figures").classList.toggle("stale", isStale);
}

function rate(value) { return [value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en"), "/s"]; }
