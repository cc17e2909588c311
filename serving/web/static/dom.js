// Small helpers over the document.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A copy of what a template holds. */
export function stamp(id) {
  return $(id).content.cloneNode(true).firstElementChild;
}

/** A text with the choices of a select; the present choice stays if it is among them. */
export function choices(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
  if (names.includes(before)) select.value = before;
}

/** Says something to who listens to the page instead of looking at it. */
export function tell(text) {
  $("news").textContent = text;
}

/** What went wrong, above the button; "" takes it away. */
export function complain(text, field) {
  for (const each of document.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
  $("said").hidden = !text;
  $("said").textContent = text;
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.closest("details")?.setAttribute("open", "");
    field.focus();
  }
}
