// Tables of values of any kind.

import { el } from "./dom.js";
import { number } from "./format.js";

export const NULL = () => el("span", { class: "null" }, "–");

export function cell(value, numeric = false) {
  if (value === null || value === undefined) return el("td", { class: numeric ? "n" : null }, NULL());
  if (typeof value === "number") return el("td", { class: "n" }, Number.isInteger(value) ? String(value) : number(value));
  if (typeof value === "boolean") return el("td", {}, String(value));
  const text = String(value);
  return el("td", text.length > 60 ? { class: "code" } : {}, text);
}

// `columns` are {name, numeric}; `rows` are lists of values or ready cells.
export function fill(table, columns, rows) {
  const head = el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.numeric ? "n" : null }, column.name)));
  const body = rows.map((row) => el("tr", {}, row.map((value, index) => (value instanceof Node ? value : cell(value, columns[index]?.numeric)))));
  table.replaceChildren(el("thead", {}, head), el("tbody", {}, body));
}

export const saying = (table, text) => table.replaceChildren(el("tbody", {}, el("tr", {}, el("td", { class: "empty" }, text))));

const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

export function csv(names, rows) {
  const line = (values) => values.map((value) => (value === null || value === undefined ? "" : quoted(String(value)))).join(",");
  return [line(names), ...rows.map(line)].join("\r\n");
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
