// One machine: history, then live from exactly where history ended. Fields that appear later get their panel by themselves.

import { AlertList } from "./alerts.js";
import { get } from "./api.js";
import { byId, el, notice, setAttr, setText } from "./dom.js";
import { ago, duration, number, plural, stampZoned, time } from "./format.js";
import { labelOf, loadLabels, siteOf, valueText, withUnit } from "./labels.js";
import { Link, showLink } from "./link.js";
import { marksOf, momentOf } from "./marks.js";
import { PanelSet } from "./panels.js";
import { Series } from "./series.js";

const { entity, ...streams } = { ...byId("machine").dataset };
const ROLES = ["telemetry", "scored", "aggregates", "anomalies"].filter((role) => streams[role]);
const LIFE = /^(?:rul|remaining)/i;
const ANOMALIES_SHOWN = 12;
const SPAN_MIN_S = 60;

let seconds = 900;
let link = null;
let paused = false;
let round = 0;
let series = {};
let panels = {};
let thinned = 0;

const alerts = new AlertList({ linked: false, none: "No alerts for this machine." });

const EMPTY = {
  telemetry: "No measurements in this time range.",
  scored: "No predictions yet: they appear here once a model scores this machine’s events.",
  aggregates: "No windows yet: they appear here once a job writes them.",
};

function reset() {
  for (const set of Object.values(panels)) set.clear("Loading history…");
  series = Object.fromEntries(ROLES.map((role) => [role, new Series(streams[role])]));
  const skips = { scored: (name) => series.telemetry.fields.has(name) };
  panels = Object.fromEntries(ROLES.filter((role) => role !== "anomalies").map((role) => [role, new PanelSet(byId(`panels-${role}`), series[role], { skip: skips[role], none: EMPTY[role] })]));
}

async function load() {
  const mine = (round += 1);
  link?.close();
  link = null;
  reset();
  notice(byId("notice"), "");
  try {
    const asked = ROLES.map((role) => get("/api/history", { stream: streams[role], entity, since: `-${seconds}s`, points: 1500 }));
    const answers = await Promise.all(asked);
    if (mine !== round) return;
    answers.forEach((points, index) => series[ROLES[index]].append(points));
    follow(answers.map((points) => points.resume).join(";"));
  } catch (error) {
    if (mine !== round) return;
    notice(byId("notice"), error.text, "problem");
    for (const set of Object.values(panels)) set.clear("History could not be loaded.");
    setTimeout(() => mine === round && load(), 5000);
    return;
  }
  for (const set of Object.values(panels)) set.arrange();
  draw();
}

function follow(token) {
  const names = ROLES.map((role) => streams[role]).join(",");
  const url = (last) => `/api/live?${new URLSearchParams({ entity, streams: names, from: last || token })}`;
  link = new Link(url, { points: take, following: () => {}, still: () => {}, thinned: takeThinned, reset: load, problem: (message) => notice(byId("notice"), message.message, "problem") }, onState);
}

function onState(state) {
  if (paused) showLink("paused");
  const last = series.telemetry.t.at(-1);
  notice(byId("notice"), state === "live" ? "" : `Not connected to the console; trying again.${last ? ` The last point is from ${stampZoned(last * 1000)}.` : ""}`);
}

function takeThinned(message) {
  thinned += message.rows;
  setText(byId("chart-note"), `History, then live. ${plural(thinned, "point")} left out to keep up with this machine; history has them all.`);
}

function take(points) {
  const role = ROLES.find((one) => streams[one] === points.stream);
  if (!role) return;
  const fresh = series[role].append(points);
  series[role].trim(Date.now() / 1000 - seconds * 1.1);
  if (fresh.length && panels[role]) panels[role].arrange();
  if (role === "telemetry" && fresh.length) panels.scored?.arrange();
  if (!paused) draw(role);
}

function draw(role = null) {
  const last = Math.max(...ROLES.map((one) => series[one].t.at(-1) ?? 0));
  const end = Math.max(Date.now() / 1000, last);
  const range = [end - shownSpan(end), end];
  for (const [name, set] of Object.entries(panels)) {
    set.setRange(range);
    if (!role || role === name || role === "tick") set.refresh();
  }
  if (!role || role === "anomalies" || role === "telemetry") drawAnomalies();
  if (!role || role === "telemetry") drawLast();
  if (!role || role === "scored") drawLife();
}

// A machine that is younger than the time range fills its charts all the same.
function shownSpan(end) {
  const first = Math.min(...ROLES.map((one) => series[one].t[0] ?? Infinity));
  return Math.min(seconds, Math.max(SPAN_MIN_S, (end - first) * 1.02));
}

function drawAnomalies() {
  if (!series.anomalies) return;
  const since = Date.now() / 1000 - seconds;
  for (const role of ["telemetry", "scored", "aggregates"]) {
    if (!panels[role] || role === "aggregates") continue;
    const marks = marksOf(series.anomalies, series[role]);
    for (const [name, panel] of panels[role].panels) panel.setMarks(role === "telemetry" ? (marks.get(name) ?? []) : []);
  }
  const found = series.anomalies.t.map((t, index) => ({ t, index })).filter((one) => one.t >= since);
  setText(byId("anomalies-count"), found.length ? `${found.length} in the last ${duration(seconds)}` : "");
  const shown = found.slice(-ANOMALIES_SHOWN).reverse();
  byId("anomalies").replaceChildren(...(shown.length ? shown.map(({ t, index }) => anomaly(t, series.anomalies.row(index))) : [el("li", { class: "empty" }, "None in this time range.")]));
}

function anomaly(t, row) {
  const at = momentOf(row, t) * 1000;
  const named = row.field ?? row.measure ?? row.sensor;
  const fields = named ? [named] : Object.keys(row).filter((name) => series.telemetry.isNumeric(name));
  const value = (name) => (typeof row[name] === "number" ? row[name] : row.value);
  const text = fields.map((name) => (typeof value(name) === "number" ? `${labelOf(name)} ${withUnit(name, value(name))}` : labelOf(name))).join(", ");
  return el("li", {}, el("span", {}, text || row.kind || "anomaly"), el("time", { datetime: new Date(at).toISOString(), title: stampZoned(at) }, time(at)));
}

function drawLast() {
  const last = series.telemetry.t.length - 1;
  if (last < 0) return;
  setText(byId("last-time"), stampZoned(series.telemetry.t[last] * 1000));
  const rows = Object.entries(series.telemetry.row(last)).slice(0, 60);
  byId("last").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", { title: name }, labelOf(name)), el("dd", {}, typeof value === "number" ? withUnit(name, value) : String(value))]));
}

function drawLife() {
  const name = series.scored?.numeric().find((one) => LIFE.test(one) && !series.telemetry.fields.has(one));
  byId("fact-life-box").hidden = !name;
  if (!name) return;
  const last = series.scored.last(name);
  setText(byId("fact-life-label"), /^(?:rul)/i.test(name) ? "Remaining life, predicted" : `${labelOf(name)}, predicted`);
  setText(byId("fact-life"), valueText(name, last.value) + (withUnit(name, last.value).slice(valueText(name, last.value).length) || ""));
}

async function facts() {
  try {
    const device = await get(`/api/devices/${encodeURIComponent(entity)}`);
    const site = siteOf(device.site);
    setText(byId("machine-site"), [site.title, site.place].filter(Boolean).join(", "));
    setAttr(byId("machine-state"), "data-state", device.state);
    setAttr(byId("fact-state"), "data-state", device.state);
    setText(byId("fact-state"), device.state);
    setText(byId("fact-seen"), ago(device.seen, Date.now()));
    byId("fact-seen").title = device.seen ? stampZoned(device.seen) : "";
    setText(byId("fact-rate"), number(device.rate));
    if (JSON.stringify(device.alerts) !== JSON.stringify(alerts.alerts)) alerts.set(device.alerts);
  } catch (error) {
    if (error.status === 404) {
      setText(byId("fact-state"), "unknown");
      alerts.set([]);
      const text = `${error.text}. This page fills in as soon as it sends.`;
      if (!series.telemetry?.t.length) notice(byId("notice"), text, "info");
    }
  }
}

for (const button of document.querySelectorAll("#ranges button")) {
  button.addEventListener("click", () => {
    seconds = Number(button.dataset.seconds);
    for (const other of document.querySelectorAll("#ranges button")) setAttr(other, "aria-pressed", String(other === button));
    load();
  });
}
byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  setAttr(event.currentTarget, "aria-pressed", String(paused));
  setText(event.currentTarget, paused ? "Resume" : "Pause");
  showLink(paused ? "paused" : (link?.state ?? "waiting"));
  if (!paused) draw();
});
for (const name of ["themechange", "zonechange"]) {
  document.addEventListener(name, () => {
    for (const set of Object.values(panels)) set.rebuild();
    draw();
  });
}

await loadLabels();
await Promise.all([load(), facts()]);
setInterval(() => !paused && !document.hidden && draw("tick"), 1000);
setInterval(() => !document.hidden && facts(), 2000);
