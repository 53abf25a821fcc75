// Dialogs: opened, closed by their buttons, and forms whose mistakes are told where they happen.

import { el, notice, setText } from "./dom.js";

export function wire(dialog) {
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}

// Runs `work(data)` when the form is sent; the button rests meanwhile, and an error is shown in `problem`.
export function onSubmit(form, problem, work) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    notice(problem, "");
    try {
      await work(new FormData(form), form);
    } catch (error) {
      notice(problem, error.text ?? error.message, "problem");
    } finally {
      button.disabled = false;
    }
  });
}

// Asks before something that cannot be undone. `typed`: a text that must be typed. Resolves to true or false.
export function confirmed(title, text, { yes = "Go on", typed = "" } = {}) {
  const sure = el("button", { type: "submit", class: "button primary danger", disabled: Boolean(typed) }, yes);
  const field = typed ? el("input", { spellcheck: "false", autocomplete: "off", "aria-label": `Type ${typed}`, oninput: (event) => (sure.disabled = event.target.value !== typed) }) : null;
  const cancel = el("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel");
  const asked = typed ? el("label", {}, `Type ${typed} to go on`, field) : null;
  const form = el("form", { class: "stack", method: "dialog" }, el("p", {}, text), asked, el("div", { class: "row-end" }, cancel, sure));
  const dialog = el("dialog", {}, el("h2", {}, title), form);
  form.addEventListener("submit", () => (dialog.returnValue = "yes"));
  document.body.append(dialog);
  dialog.showModal();
  (field ?? cancel).focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}

export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    setText(button, "Copied");
  } catch {
    setText(button, "Select and copy");
  }
  setTimeout(() => setText(button, before), 1500);
}

// A value to copy, under its name.
export function secret(name, value) {
  const field = el("input", { readonly: true, value, "aria-label": name, onfocus: (event) => event.target.select() });
  const button = el("button", { type: "button", class: "button small", onclick: (event) => copy(value, event.currentTarget) }, "Copy");
  return el("div", { class: "secret" }, name, el("div", {}, field, button));
}
