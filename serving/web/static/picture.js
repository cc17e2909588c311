// A place for a picture, which is chosen, dropped or pasted.

import { element } from "./dom.js";

const MOST_SIDE = 2048;

/** A file as a data URL, upright and at most MOST_SIDE long; small ones are sent as they are. */
async function read(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1) return { url: await dataURL(file), width: bitmap.width, height: bitmap.height };
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.round(side * scale));
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  return { url: canvas.toDataURL("image/png"), width, height };
}

const dataURL = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });

export class Picture extends EventTarget {
  /** @param place - the element that becomes it; its event "change" tells of another picture, or of none. */
  constructor(place) {
    super();
    this.place = place;
    this.value = null;
    place.append(...stampAll());
    this.input = place.querySelector("input");
    this.image = place.querySelector("img");
    this.words = place.querySelector(".drop span");
    this.button = place.querySelector(".remove");
    const what = place.dataset.what;
    this.input.setAttribute("aria-label", `Choose the ${what}`);
    this.button.setAttribute("aria-label", `Remove the ${what}`);
    this.input.onchange = () => this.take(this.input.files[0]);
    this.button.onclick = () => this.set(null);
    const drop = place.querySelector(".drop");
    for (const name of ["dragenter", "dragover"]) {
      drop.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
    }
    for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this.take(event.dataTransfer.files[0]);
    });
    drop.addEventListener("paste", (event) => this.take(event.clipboardData.files[0]));
  }

  /** Takes a file, if it is a picture. */
  async take(file) {
    if (!file) return;
    try {
      this.set(await read(file));
    } catch {
      this.words.textContent = "This browser does not read that as an image";
    }
  }

  /** @param value - {url, width, height}, or null.
   *  @param quiet - whoever sets it knows. */
  set(value, { quiet = false } = {}) {
    this.value = value;
    this.image.hidden = this.button.hidden = value === null;
    this.words.hidden = value !== null;
    this.words.textContent = "Choose, drop or paste an image";
    if (value === null) this.image.removeAttribute("src");
    else Object.assign(this.image, { src: value.url, alt: `${value.width} by ${value.height} pixels` });
    this.input.value = "";
    if (!quiet) this.dispatchEvent(new Event("change"));
  }
}

function stampAll() {
  const holder = element("div");
  holder.append(document.getElementById("picture-template").content.cloneNode(true));
  return [...holder.children];
}
