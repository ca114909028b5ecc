// The panel of the service's own figures: the newest value in digits, the last minute as a line.

const KEPT = 60;                    // readings, one a second

const $ = (id) => document.getElementById(id);
const SOURCE = $("live-note").textContent;
const panels = {
  requests: { read: (stats) => stats.requests_per_s, write: rate },
  p50: { read: (stats) => stats.latency_s.p50, write: milliseconds },
  p99: { read: (stats) => stats.latency_s.p99, write: milliseconds },
  batch: { read: (stats) => stats.mean_batch_size, write: (value) => [value.toFixed(1), ""] },
};
for (const panel of Object.values(panels)) panel.kept = [];

/** Show an answer of /api/stats. */
export function showStats(stats) {
  for (const [id, { read, write, kept }] of Object.entries(panels)) {
    const value = read(stats);
    kept.push(value ?? 0);
    if (kept.length > KEPT) kept.shift();
    const [number, unit] = value === null ? ["–", ""] : write(value);
    $(id).textContent = `${number} `;
    $(id).appendChild(document.createElement("small")).textContent = unit;
    draw($(`spark-${id}`).firstElementChild, kept);
  }
  note(SOURCE, false);
}

/** Say why there are no figures; the last ones stay, faded. */
export function showNoStats(sentence) { note(sentence, true); }

function note(text, isStale) {
  if ($("live-note").textContent !== text) $("live-note").textContent = text;
  document.querySelector(".figures").classList.toggle("stale", isStale);
}

function draw(line, values) {
  const highest = Math.max(...values) || 1;
  line.setAttribute("points", values.map((value, i) => (
    `${100 - (values.length - 1 - i) * 100 / (KEPT - 1)},${22 - 20 * value / highest}`
  )).join(" "));
}

function rate(value) { return [value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en"), "/s"]; }

function milliseconds(seconds) {
  return seconds < 0.001 ? [Math.round(seconds * 1e6).toString(), "µs"] : [(seconds * 1e3).toFixed(1), "ms"];
}
