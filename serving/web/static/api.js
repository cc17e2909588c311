// The server's own interface. Every path is relative, so that the page works below any prefix.

const lock = document.getElementById("lock");
let opening = null;

export class Refusal extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message ?? `the server answers ${status}`);
    Object.assign(this, { status, param: error?.param ?? null, retryAfter });
  }
}

/** Asks for a key until the dialog is closed; all that wait for one share it. */
function unlock() {
  opening ??= new Promise((done) => {
    lock.addEventListener("close", () => {
      sessionStorage.setItem("key", document.getElementById("key").value);
      opening = null;
      done();
    }, { once: true });
    lock.showModal();
  });
  return opening;
}

/** The answer to a request.
 *  Throws a Refusal where the server refuses, and a TypeError where there is none. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (key) headers.Authorization = `Bearer ${key}`;
    const answer = await fetch(path.replace(/^\//, ""), { method, headers, body: body && JSON.stringify(body), signal });
    if (answer.status === 401) {
      await unlock();
      continue;
    }
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({}));
    throw new Refusal(answer.status, told.error, Number(answer.headers.get("Retry-After")) || null);
  }
}

export const json = async (path, options) => (await ask(path, options)).json();

/** A job's events, of which each is an object. */
export async function* events(id, signal) {
  const answer = await ask(`v1/jobs/${encodeURIComponent(id)}/events`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const records = (text + value).split("\n\n");
    text = records.pop();
    for (const record of records) yield JSON.parse(record.split("\ndata: ")[1]);
  }
}
