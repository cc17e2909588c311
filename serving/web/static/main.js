// The page: begins everything, and what belongs to no part.

import { json, Refusal } from "./api.js";
import { $, complain } from "./dom.js";
import { asked, extras, fieldOf, offer } from "./form.js";
import { restore, submit } from "./jobs.js";
import { look, watch } from "./queue.js";

const THEMES = { "": ["◐", "as the system has them"], light: ["☀", "light"], dark: ["☾", "dark"] };

async function make(event) {
  event.preventDefault();
  complain("");
  const wrong = [...$("form").elements].find((field) => !field.checkValidity());
  if (wrong) return complain(wrong.validationMessage, wrong);
  $("make").disabled = true;
  try {
    await submit(asked(), extras());
    look();
    if (matchMedia("(max-width: 860px)").matches) $("gallery").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    complain(error.message + again, error instanceof Refusal ? fieldOf(error.param) : null);
  } finally {
    $("make").disabled = false;
  }
}

function theme(name) {
  const [sign, words] = THEMES[name];
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  Object.assign($("theme"), { textContent: sign, title: `Colours: ${words}`, ariaLabel: `Colours: ${words}` });
  localStorage.setItem("theme", name);
}

$("form").addEventListener("submit", make);
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("theme").onclick = () => {
  const names = Object.keys(THEMES);
  theme(names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length]);
};
theme(localStorage.getItem("theme") in THEMES ? localStorage.getItem("theme") : "");

try {
  offer((await json("v1/capabilities")).models);
  restore();
} catch (error) {
  complain(error.message);
}
watch();
