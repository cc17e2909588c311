// The jobs of this session: their cards, from the place in the queue to the pictures.

import { ask, events, json, Refusal } from "./api.js";
import { $, complain, element, stamp, tell } from "./dom.js";
import { begin, reuse } from "./form.js";
import { view } from "./viewer.js";

const OVER = ["done", "failed", "cancelled"];
const TRIES = 20; // of a connection that breaks

/** The ids of this session's jobs, and what was asked for; images alone are not kept here. */
const session = new Map(JSON.parse(sessionStorage.getItem("jobs") ?? "[]"));
export const isMine = (id) => session.has(id);

function remember() {
  const rows = [...session].map(([id, { start, controls, ...body }]) => [id, body]);
  sessionStorage.setItem("jobs", JSON.stringify(rows.slice(-100)));
}

/** Makes a job and its card. */
export async function submit(body, extras) {
  const job = await json("v1/jobs", { method: "POST", body });
  session.set(job.id, body);
  remember();
  follow(new Card(job.id, body, extras));
}

/** Cards for what this tab had made before it was loaded again, as far as the server still has it. */
export function restore() {
  for (const [id, body] of session) follow(new Card(id, body));
}

class Card {
  constructor(id, body, extras) {
    Object.assign(this, { id, body, extras, frames: [], links: [] });
    this.element = stamp("job-template");
    this.element.classList.add("busy");
    this.element.dataset.job = id;
    const part = (name) => this.element.querySelector(name);
    Object.assign(this, { bar: part("progress"), state: part(".state"), tools: part(".tools"), pictures: part(".pictures") });
    part(".words").textContent = body.prompt || "(no words)";
    part(".words").title = body.prompt;
    const count = body.images ?? 1;
    this.element.style.setProperty("--shape", body.size.replace("x", " / "));
    this.element.style.setProperty("--columns", count > 1 ? Math.min(4, Math.ceil(Math.sqrt(count))) : 1);
    for (let index = 0; index < count; index += 1) this.frames.push(this.#frame(index, count));
    this.pictures.append(...this.frames);
    this.tool("Cancel", () => ask(`v1/jobs/${encodeURIComponent(id)}`, { method: "DELETE" }));
    $("gallery").prepend(this.element);
    $("empty").hidden = true;
  }

  #frame(index, count) {
    const words = `${this.body.prompt || "image"}${count > 1 ? `, ${index + 1} of ${count}` : ""}`;
    const frame = element("button", { type: "button", className: "frame", disabled: true });
    frame.append(element("img", { alt: words, hidden: true }));
    frame.onclick = () => view(frame);
    return frame;
  }

  /** A button below the images. */
  tool(words, action) {
    const made = element("button", { type: "button", textContent: words });
    made.onclick = () => Promise.resolve(action()).catch((error) => complain(error.message));
    this.tools.append(made);
  }

  show(event) {
    this.bar.value = event.total ? event.done / event.total : 0;
    this.state.textContent =
      event.state === "queued" ? `Place ${event.position} in the queue` : `${event.done} of ${event.total} steps`;
    for (const [index, url] of (event.previews ?? []).entries()) this.#picture(index, url);
  }

  #picture(index, url) {
    const image = this.frames[index]?.firstElementChild;
    if (image) Object.assign(image, { src: url, hidden: false });
  }

  /** Why there is nothing. */
  end(words, failed = false) {
    this.bar.remove();
    this.tools.replaceChildren();
    this.element.classList.remove("busy");
    this.element.classList.toggle("failed", failed);
    this.state.textContent = words;
    if (failed) for (const frame of this.frames) frame.hidden = true;
    this.tool("Reuse", () => reuse(this.body, this.body.seed, this.extras));
    this.tool("Remove", () => this.element.remove());
    tell(words);
  }

  async finish(job) {
    const urls = await Promise.all(job.images.map(async (path) => URL.createObjectURL(await (await ask(path)).blob())));
    this.bar.remove();
    this.tools.replaceChildren();
    this.element.classList.remove("busy");
    const seconds = (job.finished - job.started).toFixed(1);
    this.state.textContent = `Seed ${job.seeds[0]} · ${seconds} s`;
    for (const [index, url] of urls.entries()) {
      const name = `${job.model}-${job.seeds[index]}.png`;
      this.#picture(index, url);
      this.frames[index].picture = { url, name, words: this.body.prompt, text: job.parameters[index] };
      this.frames[index].disabled = false;
      this.frames[index].setAttribute("aria-label", `Enlarge: ${this.frames[index].firstElementChild.alt}`);
      this.links.push(element("a", { className: "button", href: url, download: name, textContent: "Download" }));
    }
    if (urls.length === 1) this.tools.append(...this.links);
    else this.tool("Download all", () => this.links.forEach((link) => link.click()));
    this.tool("Reuse", async () => {
      await reuse(this.body, job.seeds[0], this.extras);
      $("prompt").focus();
    });
    this.tool("Use as start", () => this.#begin(urls[0]));
    tell("An image is done");
  }

  async #begin(url) {
    const { naturalWidth: width, naturalHeight: height } = this.frames[0].firstElementChild;
    const blob = await (await fetch(url)).blob();
    const data = await new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(blob);
    });
    await begin({ url: data, width, height });
    $("strength").focus();
  }
}

/** Follows a job to its end, over broken connections too. */
async function follow(card) {
  for (let tries = 0; tries < TRIES; tries += 1) {
    try {
      for await (const event of events(card.id)) {
        tries = 0;
        if (!OVER.includes(event.state)) card.show(event);
        else if (event.state === "done") return await card.finish(event);
        else return card.end(event.error?.message ?? "Cancelled", event.state === "failed");
      }
    } catch (error) {
      if (error instanceof Refusal) {
        session.delete(card.id);
        remember();
        return card.end(error.status === 404 ? "The server no longer has this job" : error.message, true);
      }
    }
    card.state.textContent = "The connection broke; asking again";
    await new Promise((done) => setTimeout(done, 1000));
  }
  card.end("The server does not answer", true);
}
