// One picture in full size, with the text that says how it was made.

import { $, tell } from "./dom.js";

const viewer = $("viewer");
let shown = null;

/** Shows a frame of the gallery, which has a `picture`: {url, name, words, text}. */
export function view(frame) {
  shown = frame;
  const { url, name, words, text } = frame.picture;
  Object.assign($("large"), { src: url, alt: words });
  $("parameters").textContent = text;
  Object.assign($("save"), { href: url, download: name });
  $("earlier").disabled = !neighbour(1);
  $("later").disabled = !neighbour(-1);
  if (!viewer.open) viewer.showModal();
}

/** The frame that is so many places further in the gallery, where the newest comes first. */
function neighbour(by) {
  const frames = [...document.querySelectorAll("#gallery .frame")].filter((frame) => frame.picture);
  return frames[frames.indexOf(shown) + by];
}

function turn(by) {
  const frame = neighbour(by);
  if (frame) view(frame);
}

$("earlier").onclick = () => turn(1);
$("later").onclick = () => turn(-1);
$("close").onclick = () => viewer.close();
$("copy").onclick = async () => {
  await navigator.clipboard.writeText($("parameters").textContent);
  tell("copied");
};
viewer.onclick = (event) => event.target === viewer && viewer.close();
viewer.onclose = () => shown?.focus();
viewer.onkeydown = (event) => {
  if (event.key === "ArrowLeft") turn(1);
  if (event.key === "ArrowRight") turn(-1);
};
