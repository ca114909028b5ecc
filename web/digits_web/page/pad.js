// The drawing area: strokes by pointer and keyboard, pictures, undo. It knows nothing of the service.

const SIZE = 280;           // its own coordinates, whatever the screen
// The pen's width makes strokes as thick as MNIST's: of a digit that fills the pad, or of each of several. What is sent of one
// digit has 6 pixels for each of the model's 28: enough for smooth edges, small enough to send often.
const COARSE = { width: 21, sent: 168 }, FINE = { width: 11, sent: 560 };
const STEP = 7;             // of the pen by one arrow key

export class Pad {
  #canvas; #context; #pen; #small; #smallContext; #detail = COARSE;
  #actions = [];            // {points} | {picture, blob, name, isInk} | {cleared}: what undo takes back, one by one
  #stroke = null;           // the action that a pointer or the keyboard is at
  #cursor = [SIZE / 2, SIZE / 2];
  #changed;

  /** Counts what makes earlier drawings worthless: a clear, an undo, a picture. More ink does not. */
  epoch = 0;
  /** Counts all changes. */
  revision = 0;

  constructor(canvas, pen, changed) {
    this.#canvas = canvas;
    this.#pen = pen;
    this.#changed = changed;
    this.#context = canvas.getContext("2d");
    this.#small = document.createElement("canvas");
    this.#smallContext = this.#small.getContext("2d", { willReadFrequently: true });
    this.#listen();
    this.#penIs("up");
  }

  get isEmpty() { return this.#visible().length === 0; }
  get canUndo() { return this.#actions.length > 0; }

  /** Where on the pad that lies what is sent, in shares of the pad. */
  get frame() {
    const [{ picture } = {}] = this.#visible();
    const { x, y, width, height } = placed(picture ?? this.#canvas);
    return { x: x / SIZE, y: y / SIZE, width: width / SIZE, height: height / SIZE };
  }

  /** Draw from now on with the pen for several digits, and send more pixels; or with that for one. */
  setFine(isFine) { this.#detail = isFine ? FINE : COARSE; }

  clear() {
    this.#stroke = null;
    if (!this.isEmpty) this.#add({ cleared: true });
  }

  undo() {
    this.#stroke = null;
    this.#penIs("up");
    this.#actions.pop();
    this.epoch++;
    this.#redraw();
  }

  /** Show a picture instead of what is drawn; `blob` is what is sent of it, `isInk` says that it is ink on nothing. */
  show(picture, blob, name, isInk) {
    this.#stroke = null;
    this.#add({ picture, blob, name, isInk });
  }

  /** Return what to send: a PNG or JPEG; of MNIST's own images their bytes, which nobody prepares again. */
  blob() {
    const [first] = this.#visible();
    if (first?.picture) return first.isInk && this.#detail === COARSE ? bytes(first.picture) : first.blob;
    const context = this.#smallContext, { sent } = this.#detail;
    this.#small.width = this.#small.height = sent;          // which clears it
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#canvas, 0, 0, sent, sent);
    // Not toBlob: browsers do that when they are idle, and while somebody draws they are not.
    const binary = atob(this.#small.toDataURL("image/png").split(",")[1]);
    return new Blob([Uint8Array.from(binary, (letter) => letter.charCodeAt(0))], { type: "image/png" });
  }

  /** Return the actions since the last one that cleared; a picture clears, and so does ink upon a picture. */
  #visible() {
    let start = 0;
    this.#actions.forEach((action, i) => {
      if (action.cleared) start = i + 1;
      else if (action.picture || this.#actions[i - 1]?.picture) start = i;
    });
    return this.#actions.slice(start);
  }

  #add(action) {
    if (!action.points || this.#actions.at(-1)?.picture) this.epoch++;
    this.#actions.push(action);
    this.#redraw();
  }

  #redraw() {
    const { width, height } = this.#canvas;
    const context = this.#context;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.setTransform(width / SIZE, 0, 0, height / SIZE, 0, 0);
    const visible = this.#visible();
    for (const action of visible) action.picture ? place(context, action.picture) : ink(context, action);
    const picture = visible[0]?.picture && visible[0];
    this.#canvas.classList.toggle("photo", Boolean(picture) && !picture.isInk);
    const content = picture ? `showing ${picture.name}` : visible.length ? `${visible.length} strokes` : "empty";
    this.#canvas.setAttribute("aria-label", `Drawing area, ${content}`);
    this.revision++;
    this.#changed();
  }

  #begin(point) {
    this.#stroke = { points: [point], width: this.#detail.width };
    this.#add(this.#stroke);
  }

  #extend(...points) {
    this.#stroke.points.push(...points);
    this.#redraw();
  }

  #listen() {
    const canvas = this.#canvas;
    let pointer = null;     // the one that draws; a second finger does not
    canvas.addEventListener("pointerdown", (event) => {
      if (pointer !== null || event.button !== 0) return;
      pointer = event.pointerId;
      canvas.setPointerCapture(pointer);
      canvas.focus({ preventScroll: true, focusVisible: false });
      event.preventDefault();
      this.#penIs("away");
      this.#begin(this.#at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== pointer || !this.#stroke) return;
      const events = event.getCoalescedEvents?.() ?? [];
      this.#extend(...(events.length ? events : [event]).map((each) => this.#at(each)));
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => {
        if (event.pointerId !== pointer) return;
        pointer = null;
        this.#stroke = null;
      });
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => { if (pointer === null) this.#lift(); });
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * SIZE, (event.clientY - box.top) / box.height * SIZE];
  }

  #key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) {
      this.#cursor = this.#cursor.map((value, axis) => Math.min(SIZE, Math.max(0, value + STEP * move[axis])));
      if (this.#stroke) this.#extend(this.#cursor);
      this.#penIs(this.#stroke ? "down" : "up");
    } else if (event.key === " ") {
      if (this.#stroke) this.#lift();
      else {
        this.#begin(this.#cursor);
        this.#penIs("down");
      }
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
      this.#penIs("up");
    } else return;
    event.preventDefault();
  }

  #lift() {
    this.#stroke = null;
    this.#penIs("up");
  }

  #penIs(state) {
    this.#pen.classList.toggle("down", state === "down");
    this.#pen.classList.toggle("away", state === "away");
    this.#pen.style.left = `${this.#cursor[0] / SIZE * 100}%`;
    this.#pen.style.top = `${this.#cursor[1] / SIZE * 100}%`;
  }
}

/** Draw one stroke, smooth through the middles of its pieces. */
function ink(context, { points, width }) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...points[0]);
  for (let i = 1; i < points.length - 1; i++) {
    const [x, y] = points[i], [nextX, nextY] = points[i + 1];
    context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  }
  const [x, y] = points.at(-1);
  context.lineTo(x + 0.01, y);      // a line of no length would not be drawn, and a dot is a stroke
  context.stroke();
}

/** Return the ink of a 28 x 28 image, one byte for each pixel. */
function bytes(picture) {
  const context = new OffscreenCanvas(28, 28).getContext("2d");
  context.drawImage(picture, 0, 0);
  const ink = context.getImageData(0, 0, 28, 28).data.filter((_, i) => i % 4 === 3);
  return new Blob([ink], { type: "application/octet-stream" });
}

/** Draw a picture as large as it fits. */
function place(context, picture) {
  const { x, y, width, height } = placed(picture);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, width, height);
}

function placed({ width, height }) {
  const scale = SIZE / Math.max(width, height);
  return { x: (SIZE - width * scale) / 2, y: (SIZE - height * scale) / 2, width: width * scale, height: height * scale };
}
