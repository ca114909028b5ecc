// What the page's parts share: elements found and made, and durations in words.

export const $ = (id) => document.getElementById(id);

export function element(name, className = "", ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

/** Return a number of seconds in the unit that fits, and that unit. */
export function duration(seconds) {
  return seconds < 0.001 ? [Math.round(seconds * 1e6).toString(), "µs"] : [(seconds * 1e3).toFixed(1), "ms"];
}
