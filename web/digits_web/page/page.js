// Puts the page together: what is drawn goes to the service, what it says is shown, and when it is away the page waits for it.

import { expectAnswer, showAnswer, showNothing, showNumber, showRefusal } from "./answer.js";
import { $, element } from "./dom.js";
import { showNoStats, showStats } from "./live.js";
import { Pad } from "./pad.js";
import { ask, newest } from "./service.js";

const POLL_MS = 1000;               // of health and figures
const LARGEST = 800;                // side of a photograph that is sent: the model sees 28 of them

const pad = new Pad($("pad"), $("pen"), drawingChanged);
const update = newest(classifyDrawing);
let isUp = null;                    // whether the service answers; null: not known yet
let models = new Map();             // those that serve, by name
let shownEpoch = 0;                 // of the drawing whose answer is shown

const isNumber = () => $("mode-number").checked;
const labels = () => (isNumber() ? [] : models.get($("model").value)?.labels ?? [..."0123456789"]);

function drawingChanged() {
  $("undo").disabled = !pad.canUndo;
  $("clear").disabled = pad.isEmpty;
  $("hint").hidden = !pad.isEmpty;
  if (pad.isEmpty || pad.epoch !== shownEpoch) showNothing(labels(), pad.isEmpty ? undefined : "…");
  shownEpoch = pad.epoch;
  if (pad.isEmpty) return;
  expectAnswer();
  update();
}

async function classifyDrawing() {
  if (pad.isEmpty) return;
  const { epoch, revision, frame } = pad, number = isNumber(), model = $("model").value, start = performance.now();
  const isOld = () => epoch !== pad.epoch || number !== isNumber() || model !== $("model").value;
  try {
    const query = model && `?model=${encodeURIComponent(model)}`;
    const answer = await ask(`${number ? "read" : "classify"}${query}`, pad.blob());
    connectionIs(true);
    if (isOld()) return;
    const elapsedMs = performance.now() - start;
    number ? showNumber(answer, frame, elapsedMs) : showAnswer(answer, elapsedMs);
    if (revision !== pad.revision) expectAnswer();
  } catch (error) {
    if (error.isAway) {
      if (!pad.isEmpty) showNothing(labels(), "No answer yet");
      connectionIs(false, error.message);
    } else if (!isOld()) showRefusal(labels(), error.message);
  }
}

function connectionIs(up, reason = "") {
  if (up !== isUp) {
    isUp = up;
    $("state").dataset.state = up ? "ready" : "down";
    $("state-text").textContent = up ? "Ready" : "Unreachable";
    $("outage").hidden = up;
    if (up) showModels().then(update);      // also what was drawn meanwhile
    $("outage-title").textContent = up ? "" : "The service can’t be reached. Your drawing stays; this page tries again every second.";
  }
  if ($("outage-detail").textContent !== reason) $("outage-detail").textContent = reason;
}

/** Offer the models that serve. Chosen is, of those with the default's labels, the most accurate: who draws can wait for it. */
async function showModels() {
  const known = await ask("models").then((answer) => answer.models, () => []);
  const serving = known.filter((each) => each.is_serving).sort((a, b) => a.version - b.version);
  if (!serving.length) return;
  const usual = serving.find((each) => each.is_default) ?? serving[0];
  const alike = serving.filter((each) => each.labels.join() === usual.labels.join());
  const best = alike.reduce((best, each) => (each.test_accuracy > best.test_accuracy ? each : best), usual);
  models = new Map(serving.map((each) => [each.name, each]));
  const chosen = models.has($("model").value) ? $("model").value : best.name;
  $("model").replaceChildren(...[...models.values()].map(({ name, version }) => new Option(`${name}/${version}`, name)));
  $("model").value = chosen;
  modelChosen();
}

function modelChosen() {
  const { test_accuracy: accuracy, dataset } = models.get($("model").value);
  $("accuracy").textContent = accuracy ? `${(accuracy * 100).toFixed(2)} % on ${dataset || "its test set"}` : "accuracy unknown";
  drawingIsAskedAnew();
}

function drawingIsAskedAnew() {
  document.body.classList.toggle("reads-number", isNumber());
  pad.setFine(isNumber());
  showNothing(labels(), pad.isEmpty ? undefined : "…");
  update();
}

async function poll() {
  if (!document.hidden) {
    await Promise.all([
      ask("health").then(() => connectionIs(true), (error) => connectionIs(false, error.message)),
      ask("stats").then(showStats, (error) => showNoStats(error.message)),
    ]);
  }
  setTimeout(poll, POLL_MS);
}

async function showPhoto(file) {
  try {
    const picture = await createImageBitmap(file);
    pad.show(picture, await smaller(picture, file), file.name, false);
  } catch {
    pad.clear();
    showRefusal(labels(), `${file.name || "This"} is no picture that this browser can read.`);
  }
}

/** Return a JPEG of at most LARGEST pixels a side, or the file itself if it is small enough and of a kind that the API takes. */
async function smaller(picture, file) {
  const scale = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
  if (scale === 1 && ["image/png", "image/jpeg"].includes(file.type)) return file;
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(picture.width * scale)), Math.max(1, Math.round(picture.height * scale)));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";       // a JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

function listen() {
  $("undo").addEventListener("click", () => pad.undo());
  $("clear").addEventListener("click", () => pad.clear());
  $("model").addEventListener("change", modelChosen);
  $("modes").addEventListener("change", drawingIsAskedAnew);
  $("photo").addEventListener("change", ({ target }) => {
    if (target.files.length) showPhoto(target.files[0]);
    target.value = "";              // so that the same file can be chosen again
  });
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || !pad.canUndo) return;
    event.preventDefault();
    pad.undo();
  });
  // The whole page takes drops: a near miss must not replace it by the photograph.
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $("paper").classList.toggle("dropping", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) showPhoto(event.dataTransfer.files[0]);
    });
  }
}

function offerSamples() {
  for (let digit = 0; digit < 10; digit++) {
    const image = Object.assign(element("img"), { alt: "", src: `samples/${digit}.png` });
    const button = $("samples").appendChild(Object.assign(element("button", "", image), { type: "button" }));
    button.setAttribute("aria-label", `MNIST’s ${digit}`);
    button.addEventListener("click", async () => {
      const blob = await (await fetch(image.src)).blob();
      pad.show(image, blob, `MNIST’s ${digit}`, true);
      $("paper").scrollIntoView({ block: "nearest" });     // on a telephone it is far above
    });
  }
}

showNothing(labels());
listen();
offerSamples();
poll();
