// Puts the page together: what is drawn goes to the service, what it says is shown, and when it is away the page waits for it.

import { showAnswer, showNothing, showRefusal } from "./answer.js";
import { showNoStats, showStats } from "./live.js";
import { Pad } from "./pad.js";
import { ask, classify, Newest } from "./service.js";

const BEAT_MS = 1000;               // of health and figures
const LARGEST = 800;                // side of a photograph that is sent: the model sees 28 of them

const $ = (id) => document.getElementById(id);
const pad = new Pad($("pad"), $("pen"), drawingChanged);
const update = new Newest(classifyDrawing);
let isUp = null;                    // whether the service answers; null: not known yet

function drawingChanged() {
  $("undo").disabled = !pad.canUndo;
  $("clear").disabled = pad.isEmpty;
  $("hint").hidden = !pad.isEmpty;
  if (pad.isEmpty) showNothing();
  else update.offer();
}

async function classifyDrawing() {
  if (pad.isEmpty) return;
  const epoch = pad.epoch, start = performance.now();
  try {
    const answer = await classify(pad.blob());
    connectionIs(true);
    if (epoch === pad.epoch) showAnswer(answer, performance.now() - start);
  } catch (error) {
    if (error.isAway) connectionIs(false, error.message);
    else if (epoch === pad.epoch) showRefusal(error.message);
  }
}

function connectionIs(up, reason = "") {
  if (up !== isUp) {
    isUp = up;
    $("state").dataset.state = up ? "ready" : "down";
    $("state-text").textContent = up ? "Ready" : "Unreachable";
    $("outage").hidden = up;
    if (up) {
      showModel();
      update.offer();               // what was drawn meanwhile
    }
    $("outage-title").textContent = up ? "" : "The service can’t be reached. Your drawing stays; this page tries again every second.";
  }
  if ($("outage-detail").textContent !== reason) $("outage-detail").textContent = reason;
}

async function showModel() {
  const { models } = await ask("models").catch(() => ({ models: [] }));
  const model = models.find((each) => each.is_default);
  if (model) $("model").textContent = `${model.name}/${model.version} · ${(model.test_accuracy * 100).toFixed(2)} % on MNIST`;
}

async function beat() {
  if (!document.hidden) {
    await Promise.all([
      ask("health").then(() => connectionIs(true), (error) => connectionIs(false, error.message)),
      ask("stats").then(showStats, (error) => showNoStats(error.message)),
    ]);
  }
  setTimeout(beat, BEAT_MS);
}

async function showPhoto(file) {
  try {
    const picture = await createImageBitmap(file);
    pad.show(picture, await smaller(picture, file), file.name, false);
  } catch {
    showRefusal(`${file.name || "This"} is no picture that this browser can read.`);
  }
}

/** Return a JPEG of at most LARGEST pixels a side, or the file itself if it is small enough and of a kind that the API takes. */
async function smaller(picture, file) {
  const scale = LARGEST / Math.max(picture.width, picture.height);
  if (scale >= 1 && ["image/png", "image/jpeg"].includes(file.type)) return file;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * Math.min(1, scale)));
  canvas.height = Math.max(1, Math.round(picture.height * Math.min(1, scale)));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";       // a JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

function listen() {
  $("undo").addEventListener("click", () => pad.undo());
  $("clear").addEventListener("click", () => pad.clear());
  $("photo").addEventListener("change", ({ target }) => {
    if (target.files.length) showPhoto(target.files[0]);
    target.value = "";              // so that the same file can be chosen again
  });
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || !pad.canUndo) return;
    event.preventDefault();
    pad.undo();
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();         // the whole page takes drops: a near miss must not replace it by the photograph
    $("paper").classList.add("dropping");
  });
  document.addEventListener("dragleave", () => $("paper").classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("paper").classList.remove("dropping");
    if (event.dataTransfer.files.length) showPhoto(event.dataTransfer.files[0]);
  });
}

function offerSamples() {
  for (let digit = 0; digit < 10; digit++) {
    const button = $("samples").appendChild(document.createElement("button"));
    button.type = "button";
    button.setAttribute("aria-label", `MNIST’s ${digit}`);
    const image = button.appendChild(document.createElement("img"));
    image.alt = "";
    image.src = `samples/${digit}.png`;
    button.addEventListener("click", async () => {
      const blob = await (await fetch(image.src)).blob();
      pad.show(image, blob, `MNIST’s ${digit}`, true);
      $("paper").scrollIntoView({ block: "nearest" });     // on a telephone it is far above
    });
  }
}

showNothing();
listen();
offerSamples();
beat();
