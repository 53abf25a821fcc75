// What the page of one device is made of: the verdict, facts, messages, history, modules. Drawing only.

import { AUTHENTICATION, ended } from "./device-words.js";
import { byId, el } from "./dom.js";
import { ago, bytes, stamp, stampZoned, time } from "./format.js";
import { NULL, fill, saying } from "./table.js";

export function drawWhy(why) {
  const box = byId("why");
  box.dataset.state = why.state || "";
  const lines = why.sentences.map((text, index) => el("p", { class: index ? null : "lead" }, text));
  const key = JSON.stringify([why.sentences, why.advice]);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...lines, ...why.advice.map((text) => el("p", { class: "advice" }, "→ ", text)));
}

const at = (ms) => (ms ? `${stamp(ms)} (${ago(ms, Date.now())})` : "never");

export function drawFacts(device) {
  const facts = [
    ["Status", device.status + (device.statusReason ? `: ${device.statusReason}` : "")],
    ["Proves itself by", AUTHENTICATION[device.authentication] ?? device.authentication],
    ...device.thumbprints.map((text, index) => [index ? "Second thumbprint" : "Thumbprint", text]),
    ["Site", device.site || "–"],
    ["Reports on", device.entity],
    ["Edge device", device.iotEdge ? "yes" : "no"],
    ["Model", device.twin.modelId || "–"],
    ["Last heard", at(device.connection.seen)],
    ["Address", device.connection.address || "–"],
    ["Created", at(device.created)],
    ["Changed", at(device.updated)],
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

export function drawHistory(steps) {
  if (!steps.length) return byId("history").replaceChildren(el("li", { class: "empty" }, "It has never been connected."));
  const items = steps.map((step) =>
    el(
      "li",
      { "data-state": step.connected ? "ok" : "quiet" },
      el("i", { class: "glyph" }),
      el("span", {}, step.connected ? "came" : "went"),
      el("time", { title: stampZoned(step.at), datetime: new Date(step.at).toISOString() }, stamp(step.at)),
      el("span", { class: "muted" }, [step.connected ? "" : ended(step.reason), step.address && `from ${step.address}`].filter(Boolean).join(", ")),
    ),
  );
  byId("history").replaceChildren(...items);
}

export function drawMessages(messages) {
  if (!messages.length) return byId("messages").replaceChildren(el("li", { class: "empty" }, "Nothing of late. What it sent longer ago is in History."));
  const items = messages.map((one) => {
    const said = [...Object.entries(one.properties), ...Object.entries(one.system)].map(([name, value]) => (value === null ? name : `${name}=${value}`));
    return el(
      "li",
      { "data-offset": one.offset },
      el("div", { class: "meta" }, el("time", { title: stampZoned(one.t) }, time(one.t)), el("span", {}, bytes(one.size_bytes)), one.module ? el("span", {}, `module ${one.module}`) : null, one.content_type ? el("span", {}, one.content_type) : null, ...said.map((text) => el("span", { class: "tag" }, text))),
      el("pre", {}, one.text === null ? `${bytes(one.size_bytes)} that are no text` : one.text || "(empty)"),
    );
  });
  byId("messages").replaceChildren(...items);
}

export function drawModules(modules, { onTwin, onDelete }) {
  if (!modules.length) return saying(byId("modules"), "It has no modules.");
  const rows = modules.map((module) => [
    el("td", { class: "id" }, module.id),
    el("td", {}, el("span", { class: "state", "data-state": module.connected ? "ok" : "quiet" }, el("i", { class: "glyph" }), module.connected ? "connected" : module.since ? "not connected" : "never connected")),
    el("td", { class: "wide" }, module.managedBy || NULL()),
    el("td", {}, el("span", { class: "row-start" }, el("button", { type: "button", class: "button small", onclick: () => onTwin(module.id) }, "Twin"), onDelete ? el("button", { type: "button", class: "button small danger", onclick: () => onDelete(module.id) }, "Delete") : null)),
  ]);
  fill(byId("modules"), [{ name: "Module" }, { name: "State" }, { name: "Managed by" }, { name: "" }], rows);
  byId("modules").querySelectorAll("th")[2].className = "wide";
}

// Reads the metadata tree beside the values: one row a property, newest first.
export function drawMetadata(twin) {
  const rows = [];
  const walk = (section, tree, path) => {
    for (const [name, inner] of Object.entries(tree)) {
      if (name.startsWith("$") || typeof inner !== "object") continue;
      rows.push([section, [...path, name].join("."), inner.$lastUpdated ?? "", inner.$lastUpdatedVersion ?? null]);
      walk(section, inner, [...path, name]);
    }
  };
  for (const section of ["desired", "reported"]) walk(section, twin.properties[section].$metadata ?? {}, []);
  rows.sort((one, other) => (one[2] < other[2] ? 1 : -1));
  if (!rows.length) return saying(byId("metadata-table"), "Nothing was ever set.");
  fill(
    byId("metadata-table"),
    [{ name: "Section" }, { name: "Property" }, { name: "Set" }, { name: "In version", numeric: true }],
    rows.map(([section, name, when, version]) => [section, name, el("td", { class: "t" }, when ? stampZoned(Date.parse(when)) : "–"), version]),
  );
}

export const pretty = (value) => JSON.stringify(value, null, 2);

// A section's values without what the hub adds to them.
export const bare = (section) => Object.fromEntries(Object.entries(section).filter(([name]) => !name.startsWith("$")));

