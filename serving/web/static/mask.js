// A mask that is painted over a photo: strokes on a canvas of the photo's size, by pointer or by keys.

import { $, element } from "./dom.js";

const TINT = "#ff3d7f";
const STEP = 0.02; // of the longer side, with an arrow key
const BRUSH_KEYS = { "[": 1 / 1.25, "]": 1.25 };

export class Mask {
  constructor() {
    this.canvas = $("mask");
    this.photo = new Image();
    this.strokes = []; // of points, or the word that turns all over
    this.cursor = null; // where the keys paint
    this.erasing = false;
    this.canvas.onpointerdown = (event) => this.#begin(event);
    this.canvas.onpointermove = (event) => this.#go(event);
    this.canvas.onpointerup = this.canvas.onpointercancel = () => (this.stroke = null);
    this.canvas.onkeydown = (event) => this.#key(event);
    this.canvas.onblur = () => this.#point(null);
    $("erase").onclick = () => this.erase(!this.erasing);
    $("undo").onclick = () => this.#change(() => this.strokes.pop());
    $("invert").onclick = () => this.#change(() => this.strokes.push("invert"));
    $("clear").onclick = () => this.clear();
  }

  get empty() {
    return this.strokes.length === 0;
  }

  clear() {
    this.#change(() => (this.strokes = []));
  }

  erase(on) {
    this.erasing = on;
    $("erase").setAttribute("aria-pressed", on);
  }

  /** Another photo; what was painted over the last one is gone. */
  async over(photo) {
    this.strokes = [];
    this.cursor = null;
    if (!photo) return;
    this.canvas.width = photo.width;
    this.canvas.height = photo.height;
    $("brush").value = 40;
    this.photo.src = photo.url;
    await this.photo.decode().catch(() => {});
    this.draw();
  }

  /** Strokes as they were, for parameters that are used again. */
  restore(strokes) {
    this.#change(() => (this.strokes = structuredClone(strokes)));
  }

  /** The mask as a data URL, white where to paint. */
  url() {
    const { width, height } = this.canvas;
    const canvas = element("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    context.drawImage(this.#painted("white"), 0, 0);
    return canvas.toDataURL("image/png");
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    context.clearRect(0, 0, width, height);
    context.drawImage(this.photo, 0, 0, width, height);
    context.globalAlpha = 0.6;
    context.drawImage(this.#painted(TINT), 0, 0);
    context.globalAlpha = 1;
    if (this.cursor) {
      context.lineWidth = 2 * this.#scale();
      for (const [colour, grown] of [["black", 1], ["white", 0]]) {
        context.strokeStyle = colour;
        context.beginPath();
        context.arc(...this.cursor, this.#size() / 2 + grown * context.lineWidth, 0, 2 * Math.PI);
        context.stroke();
      }
    }
  }

  /** All strokes in one colour, on nothing. */
  #painted(colour) {
    const { width, height } = this.canvas;
    const canvas = element("canvas", { width, height });
    const context = canvas.getContext("2d");
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: colour, fillStyle: colour });
    for (const stroke of this.strokes) {
      if (stroke === "invert") {
        context.globalCompositeOperation = "xor";
        context.fillRect(0, 0, width, height);
        continue;
      }
      context.globalCompositeOperation = stroke.erasing ? "destination-out" : "source-over";
      context.lineWidth = stroke.size;
      context.beginPath();
      context.moveTo(...stroke.points[0]);
      for (const point of stroke.points) context.lineTo(...point);
      context.stroke();
    }
    return canvas;
  }

  /** Pixels of the photo in one of the page. */
  #scale() {
    return this.canvas.width / Math.max(1, this.canvas.clientWidth);
  }

  #size() {
    return Number($("brush").value) * this.#scale();
  }

  #begin(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#paint(this.#place(event));
  }

  #go(event) {
    if (!this.stroke) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) this.stroke.points.push(this.#place(each));
    this.draw();
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * this.canvas.width) / box.width,
      ((event.clientY - box.top) * this.canvas.height) / box.height,
    ];
  }

  /** A new stroke that begins here. */
  #paint(point) {
    this.stroke = { points: [point], size: this.#size(), erasing: this.erasing };
    this.#change(() => this.strokes.push(this.stroke));
  }

  #point(place) {
    this.cursor = place;
    this.draw();
  }

  #change(how) {
    how();
    this.draw();
    this.canvas.dispatchEvent(new Event("change"));
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.canvas;
    const [x, y] = this.cursor ?? [width / 2, height / 2];
    const far = STEP * Math.max(width, height) * (event.shiftKey ? 4 : 1);
    const ways = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    if (event.key in ways) {
      const [dx, dy] = ways[event.key];
      const place = [Math.min(width, Math.max(0, x + dx)), Math.min(height, Math.max(0, y + dy))];
      this.#point(place);
      if (this.stroke) this.stroke.points.push(place);
      this.draw();
    } else if (event.key === " " && !event.repeat) {
      this.cursor = [x, y];
      this.#paint([x, y]);
      this.canvas.addEventListener("keyup", () => (this.stroke = null), { once: true });
    } else if (event.key in BRUSH_KEYS) {
      $("brush").value *= BRUSH_KEYS[event.key];
      this.#point([x, y]);
    } else if (event.key === "e") this.erase(!this.erasing);
    else if (event.key === "z") $("undo").click();
    else if (event.key !== " ") return;
    event.preventDefault();
  }
}
