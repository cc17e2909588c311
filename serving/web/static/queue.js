// What the whole server does: jobs that run and wait, everybody's, and the call of the engine in flight.

import { json } from "./api.js";
import { $, element } from "./dom.js";
import { isMine } from "./jobs.js";

const BUSY_MS = 700;
const IDLE_MS = 4000;
const SHOWN = 12;

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** Looks again and again while the page is seen. */
export async function watch() {
  for (;;) {
    let pause = IDLE_MS;
    if (!document.hidden) {
      try {
        const found = await json("v1/jobs");
        show(found);
        if (found.jobs.length) pause = BUSY_MS;
      } catch {
        $("load").textContent = "The server does not answer";
        $("load").classList.add("bad");
      }
    }
    await new Promise((done) => {
      waiting = done;
      setTimeout(done, pause);
    });
  }
}

let waiting = () => {};
/** Looks now. */
export const look = () => waiting();

function show({ jobs, running, waiting: queued, in_flight: flights }) {
  $("load").classList.remove("bad");
  $("load").textContent = running + queued ? `${running} running, ${queued} waiting` : "Idle";
  $("queue").hidden = jobs.length === 0;
  const calls = Object.entries(flights).filter(([, call]) => Object.keys(call).length);
  const words = calls.map(([model, call]) => {
    const images = Object.values(call).reduce((sum, each) => sum + each, 0);
    return `${model}: ${plural(images, "image")} of ${plural(Object.keys(call).length, "job")} in this step`;
  });
  $("flight").textContent = words.join(" · ") || "Between two steps";
  const present = Object.assign({}, ...calls.map(([, call]) => call));
  const rows = jobs.slice(0, SHOWN).map((job) => line(job, present[job.id]));
  if (jobs.length > SHOWN) rows.push(element("li", {}, element("i"), `and ${jobs.length - SHOWN} more`));
  $("waiting").replaceChildren(...rows);
}

function line(job, images) {
  const mine = isMine(job.id);
  const dot = element("i", { className: images ? "dot on" : "dot", title: images ? "in the present step" : "" });
  const what = `${job.model} ${job.size?.join("×") ?? ""}, ${plural(job.images, "image")}`;
  const name = element("span", { className: mine ? "mine" : "", textContent: mine ? `${what}, yours` : what });
  const bar = element("progress", { max: job.total || 1, value: job.done, ariaLabel: `${job.done} of ${job.total}` });
  const place = job.position ? `place ${job.position}` : `${job.done}/${job.total}`;
  return element("li", {}, dot, name, bar, element("span", { className: "dim", textContent: place }));
}

document.addEventListener("visibilitychange", look);
