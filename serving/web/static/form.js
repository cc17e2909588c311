// The form: what a model offers, what is asked for, and parameters that are used again.

import { $, choices, element, stamp } from "./dom.js";
import { Mask } from "./mask.js";
import { Picture } from "./picture.js";

const TEXTS = ["prompt", "negative", "model", "sampler", "schedule"];
const NUMBERS = ["steps", "guidance", "seed", "images"];
const SHAPES = { "1:1": 1, "4:3": 4 / 3, "3:4": 3 / 4, "16:9": 16 / 9, "9:16": 9 / 16 };
const FIELDS = { size: "width", start: "strength", loras: "add-lora", controls: "add-control", upscale: "factor" };

let models = [];
const photo = new Picture($("photo"));
const mask = new Mask();
const controlPictures = new WeakMap();

const model = () => models.find((each) => each.name === $("model").value);

/** The field that an error of the server is about. */
export const fieldOf = (param) => $(FIELDS[param] ?? param ?? "");

/** What the server offers. */
export function offer(found) {
  models = found;
  choices($("model"), models.map((each) => each.name));
  choose();
}

/** Fills the form with what the chosen model has, and its defaults. */
function choose() {
  const { defaults, ...chosen } = model();
  choices($("sampler"), chosen.samplers);
  choices($("schedule"), chosen.schedules);
  for (const side of ["width", "height"]) {
    [$(side).min, $(side).max] = chosen.size_range_px;
    $(side).step = chosen.multiple_px;
  }
  const { size: [width, height], ...others } = defaults;
  put({ ...others, width, height });
  $("shapes").replaceChildren(...Object.entries(SHAPES).map(([name, ratio]) => shape(name, ratio)));
  for (const [part, there] of [["lora-part", chosen.loras.length], ["control-part", chosen.controls.length], ["start-part", chosen.edits]]) {
    $(part).hidden = !there;
  }
  $("space").querySelector("[value=pixel]").disabled = !chosen.edits;
  for (const select of document.querySelectorAll("#loras .name")) choices(select, chosen.loras);
  $("controls").replaceChildren();
  count();
}

function shape(name, ratio) {
  const button = element("button", { type: "button", textContent: name });
  button.onclick = () => {
    const [width, height] = model().defaults.size;
    const side = Math.sqrt(width * height);
    resize(side * Math.sqrt(ratio), side / Math.sqrt(ratio));
  };
  return button;
}

/** The nearest size that the model makes. */
function resize(...sides) {
  const { size_range_px: [low, high], multiple_px: multiple } = model();
  const fitted = sides.map((side) => Math.min(high, Math.max(low, Math.round(side / multiple) * multiple)));
  put({ width: fitted[0], height: fitted[1] });
}

/** Sets fields, and the sliders beside them. */
function put(values) {
  for (const [name, value] of Object.entries(values)) {
    if ($(name)) $(name).value = value ?? "";
    const slider = document.querySelector(`[data-for="${name}"]`);
    if (slider) slider.value = value;
  }
}

/** The body of a job. Pictures are in it as data URLs. */
export function asked() {
  const body = { size: `${$("width").value}x${$("height").value}` };
  for (const name of TEXTS) body[name] = $(name).value;
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  const loras = [...$("loras").children].map((row) => ({ name: row.querySelector(".name").value, scale: number(row, "scale") }));
  if (loras.length) body.loras = loras;
  if (photo.value) body.start = begun();
  const controls = [...$("controls").children].filter((row) => controlPictures.get(row).value).map(controlOf);
  if (controls.length) body.controls = controls;
  if ($("enlarge").checked) body.upscale = { factor: Number($("factor").value), strength: Number($("upscale-strength").value), space: $("space").value };
  return body;
}

const number = (row, name) => Number(row.querySelector(`.${name}`).value);

function begun() {
  const start = { image: photo.value.url, strength: Number($("strength").value) };
  if ($("masked").checked && !mask.empty) {
    start.mask = mask.url();
    if ($("around").checked) start.margin = Number($("margin").value);
  }
  return start;
}

function controlOf(row) {
  return {
    name: row.querySelector(".name").value,
    image: controlPictures.get(row).value.url,
    scale: number(row, "scale"),
    start: number(row, "start"),
    end: number(row, "end"),
    edges: row.querySelector(".edges").checked,
  };
}

/** What the body does not say, and `reuse` needs. */
export const extras = () => ({
  photo: photo.value,
  strokes: structuredClone(mask.strokes),
  controls: [...$("controls").children].map((row) => controlPictures.get(row).value).filter(Boolean),
});

/** Fills the form with a job's parameters. */
export async function reuse(body, seed, { photo: value = null, strokes = [], controls = [] } = {}) {
  if (models.some((each) => each.name === body.model) && body.model !== $("model").value) {
    $("model").value = body.model;
    choose();
  }
  const [width, height] = body.size.split("x");
  put(Object.fromEntries([...TEXTS, ...NUMBERS].map((name) => [name, body[name]])));
  put({ width, height, seed, images: 1 });
  $("loras").replaceChildren();
  for (const each of body.loras ?? []) addLora(each);
  $("controls").replaceChildren();
  for (const [index, picture] of controls.entries()) addControl(body.controls[index], picture);
  const { start, upscale } = body;
  put({ factor: upscale?.factor ?? 2, "upscale-strength": upscale?.strength ?? 0.5, space: upscale?.space ?? "latent" });
  $("enlarge").checked = Boolean(upscale);
  put({ strength: start?.strength ?? 0.75, margin: start?.margin ?? 32 });
  $("masked").checked = Boolean(start?.mask);
  $("around").checked = !start?.mask || start.margin !== undefined;
  photo.set(value, { quiet: true });
  await settle();
  mask.restore(strokes);
}

/** Begins with a picture: {url, width, height}. */
export async function begin(value) {
  photo.set(value, { quiet: true });
  $("masked").checked = false;
  await settle({ fit: true });
  $("start-part").open = true;
}

/** After the photo is another one. */
async function settle({ fit = false } = {}) {
  await mask.over(photo.value);
  if (photo.value && fit) resize(...sizeFor(photo.value));
  show();
  count();
}

/** A picture's own size, if the model makes it, or one of its shape and the model's area. */
function sizeFor({ width, height }) {
  const { size_range_px: [low, high], multiple_px: multiple, defaults } = model();
  if ([width, height].every((side) => side >= low && side <= high && side % multiple === 0)) return [width, height];
  const scale = Math.sqrt((defaults.size[0] * defaults.size[1]) / (width * height));
  return [width * scale, height * scale];
}

/** Shows the parts that have a meaning now. */
function show() {
  $("photo-settings").hidden = !photo.value;
  $("painter").hidden = !$("masked").checked;
  $("margin-part").hidden = !$("around").checked;
  $("upscale-settings").hidden = !$("enlarge").checked;
  if (!$("painter").hidden) mask.draw();
}

function count() {
  const say = (part, number) => ($(part).querySelector(".count").textContent = number || "");
  say("lora-part", $("loras").children.length);
  say("control-part", $("controls").children.length);
  say("start-part", photo.value ? "on" : "");
  say("upscale-part", $("enlarge").checked ? "on" : "");
}

function addLora({ name, scale } = {}) {
  const row = add("lora-template", $("loras"));
  choices(row.querySelector(".name"), model().loras);
  if (name) row.querySelector(".name").value = name;
  if (scale !== undefined) row.querySelector(".scale").value = scale;
  return row;
}

function addControl(given = {}, value = null) {
  const row = add("control-template", $("controls"));
  choices(row.querySelector(".name"), model().controls);
  const picture = new Picture(row.querySelector(".picture"));
  controlPictures.set(row, picture);
  for (const name of ["name", "scale", "start", "end"]) if (given[name] !== undefined) row.querySelector(`.${name}`).value = given[name];
  row.querySelector(".edges").checked = Boolean(given.edges);
  if (value) picture.set(value);
  return row;
}

function add(template, place) {
  const row = stamp(template);
  row.querySelector(":scope > .remove").onclick = () => {
    row.remove();
    count();
  };
  place.append(row);
  count();
  return row;
}

photo.addEventListener("change", () => settle({ fit: true }));
$("masked").onchange = () => {
  put({ strength: $("masked").checked ? 1 : 0.75 });
  show();
};
$("around").onchange = show;
$("enlarge").onchange = () => {
  show();
  count();
};
$("model").onchange = choose;
$("add-lora").onclick = () => addLora().querySelector("select").focus();
$("add-control").onclick = () => addControl().querySelector("select").focus();
$("swap").onclick = () => put({ width: $("height").value, height: $("width").value });
$("reseed").onclick = () => put({ seed: "" });
for (const slider of document.querySelectorAll("[data-for]")) {
  const field = $(slider.dataset.for);
  slider.oninput = () => (field.value = slider.value);
  field.oninput = () => (slider.value = field.value);
}
