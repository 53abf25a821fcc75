// The live page: sites as groups, machines as tiles, totals and alerts, brought up to date once a second.

import { AlertList, machineUrl } from "./alerts.js";
import { byId, el, notice, setAttr, setText } from "./dom.js";
import { ago, count, number, plural, stampZoned, time } from "./format.js";
import { labelOf, loadLabels, siteOf, unitOf, valueText } from "./labels.js";
import { Link } from "./link.js";
import { zoneName } from "./prefs.js";
import { areaPath, sparkPath } from "./spark.js";

const SPARK = 60;
const DENSE_FROM = 150;
const ORDER = { critical: 0, warning: 1, quiet: 2, ok: 3 };

const machines = new Map(); // by slot
const sites = new Map(); // by site name
let states = [];
let serverNow = 0;
let heardAt = performance.now();
let show = "all";
let wanted = "";

const now = () => serverNow + (performance.now() - heardAt);
const alerts = new AlertList({ now: () => (serverNow ? now() : Date.now()) });

function tileOf(machine) {
  const path = el("svg:path");
  const since = el("span", { class: "since" });
  const values = el("dl", { class: "tile-values" });
  const glyph = el("i", { class: "glyph" });
  const tile = el(
    "a",
    { class: "tile", href: machineUrl(machine.id), title: machine.id },
    el("div", { class: "tile-head" }, glyph, el("b", {}, machine.id), since),
    el("svg:svg", { class: "spark", viewBox: "0 0 120 28", preserveAspectRatio: "none", "aria-hidden": "true" }, path),
    values,
  );
  return { tile, path, since, values, fields: [] };
}

function siteBox(name) {
  let box = sites.get(name);
  if (box) return box;
  const { title, place } = siteOf(name);
  const counts = el("span", { class: "muted" });
  const marks = el("span", { class: "sub" });
  const tiles = el("div", { class: "tiles" });
  const section = el("section", { class: "site", "aria-label": title }, el("header", { class: "site-head" }, el("h2", {}, title), place ? el("span", { class: "muted" }, place) : null, counts, marks), tiles);
  box = { name, title, section, counts, marks, tiles, members: [] };
  sites.set(name, box);
  const ordered = [...sites.values()].sort((one, other) => one.title.localeCompare(other.title, "en", { numeric: true }));
  byId("fleet-empty")?.remove();
  byId("sites").replaceChildren(...ordered.map((one) => one.section));
  return box;
}

function addMachine([slot, id, site], fresh) {
  if (machines.has(slot)) return;
  const machine = { slot, id, site, values: {}, spark: new Array(SPARK).fill(null), state: "quiet", seen: 0 };
  machine.nodes = tileOf(machine);
  machines.set(slot, machine);
  const box = siteBox(site);
  box.members.push(machine);
  fresh.add(box);
}

function place(fresh) {
  for (const box of fresh) {
    box.members.sort((one, other) => one.id.localeCompare(other.id, "en", { numeric: true }));
    box.tiles.replaceChildren(...box.members.map((machine) => machine.nodes.tile));
  }
  document.body.classList.toggle("dense", machines.size >= DENSE_FROM);
}

function takeRows(rows, sparks, whole) {
  const fields = Object.entries(rows.fields);
  rows.slot.forEach((slot, index) => {
    const machine = machines.get(slot);
    if (!machine) return;
    machine.seen = rows.seen[index];
    machine.rate = rows.rate[index];
    machine.state = states[rows.state[index]];
    for (const [name, values] of fields) if (values[index] !== null) machine.values[name] = values[index];
    if (whole) machine.spark = sparks[index];
    else if (sparks[index] !== null) {
      machine.spark.push(sparks[index]);
      machine.spark.shift();
    }
    draw(machine);
  });
}

function draw(machine) {
  const { tile, path, since, values, fields } = machine.nodes;
  setAttr(tile, "data-state", machine.state);
  setAttr(tile, "aria-label", `${machine.id}, ${machine.state}`);
  setAttr(tile.firstChild, "data-state", machine.state);
  path.setAttribute("d", sparkPath(machine.spark));
  const names = Object.keys(machine.values).slice(0, 3);
  setText(since, corner(machine, names[0]));
  if (names.join() !== fields.join()) {
    machine.nodes.fields = names;
    values.replaceChildren(...names.map((name) => el("div", {}, el("dt", { title: name }, labelOf(name)), el("dd", {}, el("span"), " ", el("small", {}, unitOf(name))))));
  }
  names.forEach((name, index) => setText(values.children[index].lastChild.firstChild, valueText(name, machine.values[name], { steadily: true })));
  filter(machine);
}

// The upper right of a tile: since when it is quiet; where there is no room for values below, the first of them; else the state.
function corner(machine, name) {
  if (machine.state === "quiet" || !machine.seen) return ago(machine.seen, now());
  if (machines.size >= DENSE_FROM) return name ? [valueText(name, machine.values[name], { steadily: true }), unitOf(name)].filter(Boolean).join(" ") : "";
  return machine.state === "ok" ? "" : machine.state;
}

function filter(machine) {
  const alerting = machine.state === "warning" || machine.state === "critical";
  const shown = show === "all" || (show === "alert" ? alerting : machine.state === "quiet");
  const hidden = !shown || (wanted !== "" && !machine.id.toLowerCase().includes(wanted));
  if (machine.nodes.tile.hidden !== hidden) machine.nodes.tile.hidden = hidden;
}

function filterAll() {
  for (const machine of machines.values()) filter(machine);
  hideEmptySites();
}

function hideEmptySites() {
  let any = false;
  for (const box of sites.values()) {
    const shown = box.members.some((machine) => !machine.nodes.tile.hidden);
    box.section.hidden = !shown;
    any ||= shown;
  }
  const words = { all: `No machine's name contains “${wanted}”.`, alert: "No machine has an open alert.", quiet: "No machine is quiet: all were heard lately." };
  let note = byId("none");
  if (any || !machines.size) note?.remove();
  else {
    note ??= byId("sites").appendChild(el("p", { class: "empty", id: "none" }));
    setText(note, wanted && show !== "all" ? `${words[show]} (filtered by “${wanted}”)` : words[show]);
  }
}

function mark(state, amount, word = state) {
  return el("span", { "data-state": state }, el("i", { class: "glyph" }), `${count(amount)} ${word}`);
}

function takeHead(message) {
  serverNow = message.now;
  heardAt = performance.now();
  states = message.states;
  const { totals } = message;
  setText(byId("total-rate"), number(totals.events_per_s));
  setText(byId("total-active"), count(totals.active));
  setText(byId("total-devices"), ` of ${count(totals.devices)}`);
  setText(byId("total-quiet"), [totals.quiet ? `${count(totals.quiet)} quiet` : "all heard lately", totals.unlisted ? `${count(totals.unlisted)} events of unlisted machines` : ""].filter(Boolean).join(" · "));
  setText(byId("total-sites"), count(Object.keys(message.sites).length));
  setText(byId("total-clock"), `${time(serverNow)} ${zoneName()}`);
  const line = sparkPath(totals.per_second, 28, { zero: true });
  const spark = byId("total-spark");
  if (!spark.firstChild) spark.append(el("svg:path", { class: "area" }), el("svg:path"));
  spark.firstChild.setAttribute("d", areaPath(line));
  spark.lastChild.setAttribute("d", line);
  for (const [name, counts] of Object.entries(message.sites)) {
    const box = sites.get(name);
    if (!box) continue;
    setText(box.counts, `${counts.active} of ${plural(counts.devices, "machine")} active · ${number(counts.events_per_s)} events/s`);
    const marks = `${counts.critical}/${counts.warning}/${counts.quiet}`;
    if (box.marks.dataset.shown === marks) continue;
    box.marks.dataset.shown = marks;
    box.marks.replaceChildren(...["critical", "warning", "quiet"].filter((state) => counts[state]).map((state) => mark(state, counts[state])));
  }
}

function take(message, whole) {
  const fresh = new Set();
  if (whole) {
    machines.clear();
    sites.clear();
    byId("sites").replaceChildren();
  }
  states = message.states;
  for (const name of message.names) addMachine(name, fresh);
  place(fresh);
  takeHead(message);
  takeRows(message.rows, message.spark, whole);
  hideEmptySites();
  if (!machines.size) nobody();
}

function nobody() {
  byId("sites").replaceChildren(
    el("div", { class: "card", id: "fleet-empty" }, el("h2", {}, "No machine has sent anything yet"), el("p", { class: "muted" }, "Register one with "), el("code", {}, "headrace device create ID"), el("p", { class: "muted" }, "or let the simulator send: "), el("code", {}, "headrace simulate factory")),
  );
}

function takeAlerts(message) {
  const found = [...message.alerts].sort((one, other) => (one.state === "open" ? 0 : 1) - (other.state === "open" ? 0 : 1) || (ORDER[one.severity] ?? 3) - (ORDER[other.severity] ?? 3) || other.opened - one.opened);
  alerts.set(found);
  setText(byId("total-alerts"), count(found.length));
  const of = (severity) => found.filter((alert) => alert.severity === severity).length;
  const marks = ["critical", "warning", "info"].filter(of).map((severity) => mark(severity, of(severity)));
  byId("total-severity").replaceChildren(...(marks.length ? marks : ["nothing to do"]));
}

for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    show = button.dataset.show;
    for (const other of document.querySelectorAll("[data-show]")) setAttr(other, "aria-pressed", String(other === button));
    filterAll();
  });
}
byId("find").addEventListener("input", (event) => {
  wanted = event.target.value.trim().toLowerCase();
  filterAll();
});

function onState(state) {
  const since = serverNow ? ` What you see is from ${stampZoned(serverNow)}.` : "";
  notice(byId("notice"), state === "live" ? "" : `Not connected to the console; trying again.${since}`);
}

await loadLabels();
new Link(() => "/api/live/fleet", { snapshot: (message) => take(message, true), delta: (message) => take(message, false), alerts: takeAlerts }, onState);
