// Shows what the model says: of one digit the bars, of a number its digits; and tells screen readers, once the hand rests.

import { $, duration, element } from "./dom.js";

const QUALITY = {
  BLANK: "There is no ink.",
  INVERTED: "Most of this is ink: bright on dark, perhaps?",
  OUT_OF_RANGE: "There is far more or far less ink than a digit has.",
  LOW_CONFIDENCE: "",               // the verdict says so itself
};
const REST_MS = 600;                // of the hand, before the answer is read out
const DIM_MS = 400;                 // an answer may lag so long behind the drawing before it is dimmed

const percent = (share) => (share > 0.999 ? ">99.9 %" : share < 0.001 ? "<0.1 %" : `${(share * 100).toFixed(1)} %`);
let rest, dimming;

/** Show an answer of /api/classify; `elapsedMs` is the time since the drawing was looked at. */
export function showAnswer(answer, elapsedMs) {
  const [first, second] = answer.top;
  const isBlank = answer.quality.includes("BLANK");
  const sentence = isBlank ? "Nothing to read" : answer.abstains
    ? `Abstains: ${[first, second].filter(Boolean).map((each) => each.label).join(" or ")}?`
    : `${percent(answer.confidence)} sure`;
  const rows = answer.top.length === answer.probabilities.length
    ? answer.top.toSorted((a, b) => a.digit - b.digit)
    : [...answer.top, { label: "rest", probability: 1 - answer.top.reduce((sum, each) => sum + each.probability, 0) }];
  show(answer.abstains ? "unsure" : "sure", isBlank ? "–" : answer.abstains ? "?" : answer.label, sentence, rows, first.digit);
  $("top").replaceChildren(...answer.top.slice(0, 3).map(({ label, probability }) => (
    element("li", "", element("b", "", label), percent(probability)))));
  see($("seen"), answer.pixels);
  $("seen").setAttribute("aria-label", isBlank ? "What the model gets: nothing" : "What the model gets: the drawing in 28 by 28 pixels");
  finish([answer], elapsedMs, `${isBlank || answer.abstains ? "" : `${answer.label}, `}${sentence}.`);
}

/** Show an answer of /api/read; `frame` is where its picture lies on the pad, in shares of the pad. */
export function showNumber({ text, width, height, digits }, frame, elapsedMs) {
  const unsure = digits.filter((digit) => digit.abstains).length;
  const sentence = !digits.length ? "Nothing to read" : unsure
    ? `Not sure of ${unsure} of ${digits.length}`
    : `${percent(Math.min(...digits.map((digit) => digit.confidence)))} sure${digits.length > 1 ? ", or more, of each" : ""}`;
  show(unsure ? "unsure" : "sure", text || "–", sentence, []);
  $("number").replaceChildren(...digits.map((digit) => {
    const seen = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
    see(seen, digit.pixels);
    const candidates = digit.top.slice(0, 2).map(({ label, probability }) => `${label} ${percent(probability)}`);
    return element("li", digit.abstains ? "unsure" : "", seen, element("b", "", digit.label),
      ...candidates.map((each) => element("span", "share", each)), element("span", "share", digit.is_touching ? "touching" : ""));
  }));
  $("boxes").replaceChildren(...digits.map(({ box: [x, y, wide, high], label, abstains }) => {
    const box = element("span", abstains ? "unsure" : "");
    box.dataset.label = label;
    const shares = { left: frame.x + frame.width * x / width, top: frame.y + frame.height * y / height,
      width: frame.width * wide / width, height: frame.height * high / height };
    for (const [name, share] of Object.entries(shares)) box.style[name] = `${share * 100}%`;
    return box;
  }));
  finish(digits, elapsedMs, `${text && `${text}, `}${sentence}.`);
}

/** Show that there is nothing to say anything about; `labels` are the model's classes. */
export function showNothing(labels, sentence = "Nothing drawn yet") {
  const rows = labels.length > 10 ? [...Array(10).fill("–"), "rest"] : labels;
  show("idle", "–", sentence, rows.map((label) => ({ label, probability: 0 })));
  remark("");
  announce("");
}

/** Show that a drawing or picture could not be read, and why. */
export function showRefusal(labels, reason) {
  showNothing(labels, "Can’t be read");
  remark(reason, true);
  announce(`Can’t be read. ${reason}`);
}

/** Dim the answer soon: the drawing is no longer the one it belongs to. A newer answer prevents it. */
export function expectAnswer() {
  dimming ??= setTimeout(() => document.body.classList.add("late"), DIM_MS);
}

function show(kind, digit, sentence, rows, first) {
  clearTimeout(dimming);
  dimming = undefined;
  document.body.classList.remove("late");
  document.querySelector(".answer").className = `card answer ${kind}`;
  $("digit").textContent = digit;
  $("digit").style.setProperty("--letters", [...String(digit)].length);
  $("sentence").textContent = sentence;
  $("top").replaceChildren();
  $("number").replaceChildren();
  $("boxes").replaceChildren();
  see($("seen"), new Array(784).fill(0));
  $("seen").setAttribute("aria-label", "What the model gets: nothing yet");
  while ($("bars").children.length > rows.length) $("bars").lastChild.remove();
  while ($("bars").children.length < rows.length) {       // those that are there stay: they move to their new heights
    $("bars").append(element("li", "", element("span", "track", element("span", "bar")), element("span", "name"), element("span", "share")));
  }
  rows.forEach(({ digit: index, label, probability }, i) => {
    const [track, name, share] = $("bars").children[i].children;
    track.firstChild.style.transform = `scaleY(${probability})`;
    name.textContent = name.title = label;
    share.textContent = `${Math.round(probability * 100)}%`;
    $("bars").children[i].className = index !== undefined && index === first ? "first" : "";
  });
}

/** Write what is odd, else the times, and count the answer. */
function finish(answers, elapsedMs, words) {
  const odd = [...new Set(answers.flatMap((each) => each.quality))].map((name) => QUALITY[name] ?? name).filter(Boolean).join(" ");
  const { queue_s: queue, inference_s: inference, batch_size: size } = answers[0]?.timing ?? {};
  remark(odd || `Update ${elapsedMs.toFixed(0)} ms${size ? ` · queue ${duration(queue).join(" ")} · model ${duration(inference).join(" ")} · batch ${size}` : ""}`, odd);
  document.body.dataset.answers = Number(document.body.dataset.answers) + 1;
  document.body.dataset.lastMs = elapsedMs;
  announce(`${words} ${odd}`);
}

/** Write the line below the bars: one place for the times and for what is odd, so that nothing jumps while somebody draws. */
function remark(text, isOdd = false) {
  $("remark").textContent = text;
  $("remark").classList.toggle("odd", Boolean(isOdd));
}

function see(canvas, pixels) {
  const image = new ImageData(28, 28);
  pixels.forEach((value, i) => image.data.set([value, value, value, 255], i * 4));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function announce(text) {
  clearTimeout(rest);
  rest = setTimeout(() => { $("announcement").textContent = text; }, REST_MS);
}
