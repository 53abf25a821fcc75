// The list of devices: found, filtered and sorted by the server, a page at a time; or the answer to a query.

import { get, post } from "./api.js";
import { AUTHENTICATION, devicePage, ended, stateCell } from "./device-words.js";
import { onSubmit, wire } from "./dialog.js";
import { byId, el, notice, setAttr, setText } from "./dom.js";
import { ago, count, stampZoned } from "./format.js";
import { NULL, fill, saying } from "./table.js";

const LIMIT = 50;
const EVERY_MS = 5000;
const COLUMNS = [
  ["id", "Device"],
  ["connected", "State"],
  ["site", "Site", "wide"],
  ["authentication", "Proves itself by", "wide"],
  ["seen", "Last heard"],
  ["since", "Came or went", "wide"],
];
const EXAMPLES = [
  ["connected", "SELECT * FROM devices WHERE connectionState = 'Connected'"],
  ["by tag", "SELECT * FROM devices WHERE tags.line = 'A'"],
  ["columns", "SELECT deviceId, properties.reported.firmware FROM devices"],
  ["counted", "SELECT COUNT() AS devices, status FROM devices GROUP BY status"],
];

const asked = { text: "", connected: "", status: "", authentication: "", site: "", sort: "id", descending: false, offset: 0 };
let pages = [""]; // continuations of a query, one a page
let query = "";
let round = 0;
let timer = null;

function fromAddress() {
  const said = new URLSearchParams(location.search);
  for (const [name, value] of said) {
    if (name === "offset") asked.offset = Number(value) || 0;
    else if (name === "descending") asked.descending = value === "true";
    else if (name in asked) asked[name] = value;
  }
  query = said.get("q") ?? "";
}

function toAddress() {
  const said = new URLSearchParams(Object.entries(asked).filter(([name, value]) => value && !(name === "sort" && value === "id")));
  if (query) said.set("q", query);
  history.replaceState(null, "", said.size ? `?${said}` : location.pathname);
}

// "" is any site; what has none is asked for with a flag of its own.
const NO_SITE = "\u0000";

async function load({ quietly = false } = {}) {
  clearTimeout(timer);
  const mine = (round += 1);
  toAddress();
  try {
    await (query ? loadQuery(mine, quietly) : loadList(mine));
    if (mine === round) notice(byId("notice"), "");
  } catch (error) {
    if (mine !== round) return;
    const box = query && error.status === 400 ? byId("query-problem") : byId("notice");
    notice(box, error.text, "problem");
    if (box === byId("query-problem")) return;
  }
  timer = setTimeout(() => (document.hidden || query ? rest() : load({ quietly: true })), EVERY_MS);
}

function rest() {
  timer = setTimeout(() => (document.hidden || query ? rest() : load({ quietly: true })), EVERY_MS);
}

async function loadList(mine) {
  const { site, ...others } = asked;
  const parameters = { ...others, limit: LIMIT, ...(site ? { site: site === NO_SITE ? "" : site } : {}) };
  const words = new URLSearchParams(Object.entries(parameters).filter(([name, value]) => name === "site" || value !== ""));
  const page = await get(`/api/hub/devices?${words}`);
  if (mine !== round) return;
  if (!page.devices.length && page.matching && asked.offset) {
    asked.offset = Math.floor((page.matching - 1) / LIMIT) * LIMIT;
    return load();
  }
  byId("filters").hidden = false;
  drawTotals(page);
  drawLines(page.devices, page.total ? "No device is like that." : "There is no device yet. Create one, or let them enrol.");
  const last = Math.min(asked.offset + LIMIT, page.matching);
  setText(byId("range"), page.matching ? `${count(asked.offset + 1)}–${count(last)} of ${count(page.matching)}${page.matching < page.total ? ` (${count(page.total)} in all)` : ""}` : "");
  byId("previous").disabled = asked.offset === 0;
  byId("next").disabled = last >= page.matching;
}

async function loadQuery(mine, quietly) {
  if (!quietly) setText(byId("query-note"), "Running…");
  const started = performance.now();
  try {
    const page = await get("/api/hub/query", { q: query, continuation: pages.at(-1), limit: LIMIT });
    if (mine !== round) return;
    notice(byId("query-problem"), "");
    byId("filters").hidden = true;
    if (page.rows.length) drawRows(page.rows);
    else drawLines(page.lines, "No device answers to that.");
    const rows = page.rows.length || page.lines.length;
    setText(byId("range"), rows ? `page ${pages.length}, ${count(rows)} rows` : "");
    byId("previous").disabled = pages.length < 2;
    byId("next").disabled = !page.continuation;
    byId("next").dataset.continuation = page.continuation;
  } finally {
    if (mine === round) setText(byId("query-note"), `${((performance.now() - started) / 1000).toFixed(2)} s`);
  }
}

function drawTotals(page) {
  setText(byId("total"), count(page.total));
  setText(byId("connected"), count(page.connected));
  setText(byId("connected-of"), page.total ? ` of ${count(page.total)}` : "");
  setText(byId("disabled"), count(page.disabled));
  const sites = Object.keys(page.sites).filter(Boolean).sort();
  setText(byId("sites"), count(sites.length));
  const options = [["", "Any site"], ...sites.map((site) => [site, `${site} (${count(page.sites[site])})`])];
  if (page.sites[""] && sites.length) options.push([NO_SITE, `No site (${count(page.sites[""])})`]);
  const key = JSON.stringify(options);
  if (byId("site").dataset.key !== key) {
    byId("site").replaceChildren(...options.map(([value, text]) => el("option", { value, selected: value === asked.site }, text)));
    byId("site").dataset.key = key;
    byId("known-sites").replaceChildren(...sites.map((site) => el("option", { value: site })));
  }
}

function drawLines(lines, none) {
  if (!lines.length) return saying(byId("list"), none);
  const focused = document.activeElement?.dataset?.sort;
  const now = Date.now();
  const head = COLUMNS.map(([name, title, kind]) => {
    const sorted = asked.sort === name && !query;
    const button = query ? title : el("button", { type: "button", class: "sort", "data-sort": name, onclick: () => sortBy(name) }, title);
    return el("th", { scope: "col", class: kind ?? null, "aria-sort": sorted ? (asked.descending ? "descending" : "ascending") : null }, button);
  });
  const rows = lines.map((line) =>
    el(
      "tr",
      { "data-id": line.id },
      el("td", { class: "id" }, el("a", { href: devicePage(line.id) }, line.id), line.entity !== line.id ? el("div", { class: "hint" }, `reports on ${line.entity}`) : null),
      el("td", {}, stateCell(line), line.reason && !line.connected ? el("div", { class: "hint" }, ended(line.reason)) : null),
      el("td", { class: "wide" }, line.site || NULL()),
      el("td", { class: "wide" }, AUTHENTICATION[line.authentication] ?? line.authentication),
      el("td", { class: "nowrap", title: line.seen ? stampZoned(line.seen) : null }, ago(line.seen, now)),
      el("td", { class: "wide nowrap", title: line.since ? stampZoned(line.since) : null }, line.since ? ago(line.since, now) : NULL()),
    ),
  );
  byId("list").replaceChildren(el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
  if (focused) byId("list").querySelector(`[data-sort="${focused}"]`)?.focus();
}

function drawRows(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const shown = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : value);
  const cells = rows.map((row) => names.map((name) => (name === "deviceId" ? el("td", { class: "id" }, el("a", { href: devicePage(row[name]) }, row[name])) : shown(row[name]))));
  fill(byId("list"), names.map((name) => ({ name, numeric: rows.every((row) => typeof (row[name] ?? 0) === "number") })), cells);
}

function sortBy(name) {
  const first = name === "connected" || name === "seen" || name === "since";
  asked.descending = asked.sort === name ? !asked.descending : first;
  asked.sort = name;
  restart();
}

function restart() {
  asked.offset = 0;
  load();
}

function runQuery(text) {
  query = text.trim();
  pages = [""];
  notice(byId("query-problem"), "");
  load();
}

let typing = null;
byId("find").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    asked.text = event.target.value;
    restart();
  }, 200);
});
for (const name of ["status", "authentication", "site"]) {
  byId(name).addEventListener("change", (event) => {
    asked[name] = event.target.value;
    restart();
  });
}
for (const button of document.querySelectorAll("[data-connected]")) {
  button.addEventListener("click", () => {
    asked.connected = button.dataset.connected;
    showFilters();
    restart();
  });
}

function showFilters() {
  for (const button of document.querySelectorAll("[data-connected]")) setAttr(button, "aria-pressed", String(button.dataset.connected === asked.connected));
  byId("find").value = asked.text;
  byId("status").value = asked.status;
  byId("authentication").value = asked.authentication;
}

byId("previous").addEventListener("click", () => {
  if (query) pages.pop();
  else asked.offset = Math.max(0, asked.offset - LIMIT);
  load();
});
byId("next").addEventListener("click", (event) => {
  if (query) pages.push(event.currentTarget.dataset.continuation);
  else asked.offset += LIMIT;
  load();
});
byId("query-form").addEventListener("submit", (event) => {
  event.preventDefault();
  runQuery(byId("query").value);
});
byId("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    runQuery(byId("query").value);
  }
});
byId("clear").addEventListener("click", () => {
  byId("query").value = "";
  setText(byId("query-note"), "");
  runQuery("");
});
byId("examples").append(
  ...EXAMPLES.map(([name, text]) =>
    el("button", { type: "button", class: "link-button", onclick: () => ((byId("query").value = text), runQuery(text)) }, name),
  ),
);

const create = wire(byId("create"));
const form = byId("create-form");
byId("new")?.addEventListener("click", () => {
  form.reset();
  showThumbprints();
  notice(byId("create-problem"), "");
  create.showModal();
});
const showThumbprints = () => (byId("thumbprints").hidden = form.authentication.value !== "selfSigned");
form.authentication.addEventListener("change", showThumbprints);
onSubmit(form, byId("create-problem"), async (data) => {
  const body = Object.fromEntries([...data].map(([name, value]) => [name, value.trim()]));
  const made = await post("/api/hub/devices", { ...body, enabled: form.enabled.checked, iotEdge: form.iotEdge.checked });
  location.href = devicePage(made.id);
});

async function hubLine() {
  try {
    const hub = await get("/api/hub");
    const text = hub.running ? `Hub ${hub.host} · MQTT ${hub.mqttPort ?? "off"} · HTTPS ${hub.httpsPort ?? "off"}${hub.brokerPort ? ` · broker ${hub.brokerPort}` : ""}` : "The hub does not run: the list is as it was, and nothing can be changed.";
    setText(byId("hub-line"), text);
    if (byId("new")) byId("new").disabled = !hub.running;
  } catch (error) {
    setText(byId("hub-line"), error.text);
  }
}

document.addEventListener("zonechange", () => load({ quietly: true }));
fromAddress();
showFilters();
if (query) {
  byId("query").value = query;
  byId("query-card").open = true;
}
await Promise.all([load(), hubLine()]);
