// Shows what the model says: the digit, the ten bars, the 28 x 28 it got; and tells screen readers, once the hand rests.

const QUALITY = {
  BLANK: "There is no ink.",
  INVERTED: "Most of this is ink: bright on dark, perhaps?",
  OUT_OF_RANGE: "There is far more or far less ink than a digit has.",
  LOW_CONFIDENCE: "",               // the verdict says so itself
};
const REST_MS = 600;                // of the hand, before the answer is read out

const $ = (id) => document.getElementById(id);
const percent = (share) => (share > 0.999 ? ">99.9 %" : share < 0.001 ? "<0.1 %" : `${(share * 100).toFixed(1)} %`);

const bars = Array.from({ length: 10 }, (_, digit) => {
  const row = $("bars").appendChild(element("li"));
  const track = row.appendChild(element("span", "track"));
  const bar = track.appendChild(element("span", "bar"));
  row.appendChild(element("span", "name", digit));
  return { row, bar, share: row.appendChild(element("span", "share", "0%")) };
});

let rest;

/** Show an answer of /api/classify; `elapsedMs` is the time since the drawing was looked at. */
export function showAnswer(answer, elapsedMs) {
  const names = answer.top.map((each) => each.digit);
  const isBlank = answer.quality.includes("BLANK");
  const sentence = isBlank ? "Nothing to read" : answer.abstains
    ? `Abstains: ${names[0]} or ${names[1]}?`
    : `${percent(answer.confidence)} sure`;
  look(answer.abstains ? "unsure" : "sure");
  write(isBlank ? "–" : answer.abstains ? "?" : answer.digit, sentence);
  $("top").replaceChildren(...answer.top.slice(0, 3).map(({ digit, probability }) => {
    const item = element("li");
    item.append(element("b", "", digit), percent(probability));
    return item;
  }));
  bars.forEach(({ row, bar, share }, digit) => {
    bar.style.transform = `scaleY(${answer.probabilities[digit]})`;
    share.textContent = `${Math.round(answer.probabilities[digit] * 100)}%`;
    row.classList.toggle("first", digit === names[0]);
  });
  see(answer.pixels);
  $("seen").setAttribute("aria-label", isBlank ? "What the model gets: nothing" : "What the model gets: the drawing in 28 by 28 pixels");
  const odd = answer.quality.map((name) => QUALITY[name] ?? name).filter(Boolean).join(" ");
  const { queue_s: queue, inference_s: inference, batch_size: size } = answer.timing;
  remark(odd || `Update ${elapsedMs.toFixed(0)} ms · queue ${duration(queue)} · model ${duration(inference)} · batch ${size}`, odd);
  document.body.dataset.answers = Number(document.body.dataset.answers) + 1;
  document.body.dataset.lastMs = elapsedMs;
  announce(`${isBlank || answer.abstains ? "" : `${answer.digit}, `}${sentence}. ${odd}`);
}

/** Show that there is nothing to say anything about. */
export function showNothing() {
  look("idle");
  write("–", "Nothing drawn yet");
  remark("");
  $("top").replaceChildren();
  for (const { row, bar, share } of bars) {
    bar.style.transform = "scaleY(0)";
    share.textContent = "0%";
    row.classList.remove("first");
  }
  see(new Array(784).fill(0));
  $("seen").setAttribute("aria-label", "What the model gets: nothing yet");
  announce("");
}

/** Show that a drawing or picture could not be read, and why. */
export function showRefusal(sentence) {
  showNothing();
  write("–", "Can’t be read");
  remark(sentence, true);
  announce(`Can’t be read. ${sentence}`);
}

function look(kind) {
  const card = document.querySelector(".answer");
  card.classList.remove("sure", "unsure", "idle");
  card.classList.add(kind);
}

function write(digit, sentence) {
  $("digit").textContent = digit;
  $("sentence").textContent = sentence;
}

/** Write the line below the bars: one place for the times and for what is odd, so that nothing jumps while somebody draws. */
function remark(text, isOdd = false) {
  $("remark").textContent = text;
  $("remark").classList.toggle("odd", Boolean(isOdd));
}

function see(pixels) {
  const image = new ImageData(28, 28);
  pixels.forEach((value, i) => image.data.set([value, value, value, 255], i * 4));
  $("seen").getContext("2d").putImageData(image, 0, 0);
}

function announce(text) {
  clearTimeout(rest);
  rest = setTimeout(() => { $("announcement").textContent = text; }, REST_MS);
}

function duration(seconds) {
  return seconds < 0.001 ? `${Math.round(seconds * 1e6)} µs` : `${(seconds * 1e3).toFixed(1)} ms`;
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
