// The history page: a stream over a time range as charts and rows, and SQL. The address holds the question, so it can be shared.

import { get, post } from "./api.js";
import { byId, el, empty, notice, setAttr, setText } from "./dom.js";
import { count, duration, fourDigits, plural, stamp } from "./format.js";
import { labelOf, loadLabels } from "./labels.js";
import { PanelSet } from "./panels.js";
import { isUtc, zoneName } from "./prefs.js";
import { Series } from "./series.js";
import { csv, download, fill } from "./table.js";

const ROWS_SHOWN = 300;
const SECONDS = { "15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000 };
const form = byId("ask");
const hidden = new Set();

let set = null;
let series = null;
let question = {};
let round = 0;

function examples(names) {
  const telemetry = names.includes("telemetry") ? "telemetry" : names[0] ?? "telemetry";
  const list = [
    ["newest events", `SELECT * FROM ${telemetry}\nORDER BY _time DESC\nLIMIT 50`],
    ["events by machine", `SELECT _entity_id AS machine, count(*) AS events, max(_time) AS last_heard\nFROM ${telemetry}\nGROUP BY ALL\nORDER BY events DESC`],
    ["by minute", `SELECT time_bucket(INTERVAL 1 minute, _time) AS minute, count(*) AS events\nFROM ${telemetry}\nGROUP BY ALL\nORDER BY minute DESC\nLIMIT 60`],
  ];
  if (names.includes("set_aside")) list.push(["set aside", "SELECT _time, _type, _device, _body FROM set_aside\nORDER BY _time DESC\nLIMIT 100"]);
  byId("examples").append(...list.map(([name, sql]) => el("button", { type: "button", class: "link-button", onclick: () => ((byId("sql").value = sql), runSql()) }, name)));
  if (!byId("sql").value) byId("sql").value = list[1][1];
}

function fromInput(text) {
  return text ? Date.parse(isUtc() ? `${text}Z` : text) : NaN;
}

function toInput(ms) {
  const shifted = isUtc() ? ms : ms - new Date(ms).getTimezoneOffset() * 60_000;
  return new Date(shifted).toISOString().slice(0, 19);
}

function showCustom() {
  const custom = form.range.value === "custom";
  byId("custom").hidden = !custom;
  setText(byId("custom-zone"), zoneName());
  if (custom && !form.since.value) {
    form.since.value = toInput(Date.now() - 3_600_000);
    form.until.value = toInput(Date.now());
  }
}

function ask() {
  const range = form.range.value;
  const ask = { stream: form.stream.value, entity: form.entity.value.trim(), range };
  if (range === "custom") Object.assign(ask, { since: fromInput(form.since.value), until: fromInput(form.until.value) });
  return ask;
}

async function run() {
  const mine = (round += 1);
  question = ask();
  if (!question.stream) return;
  if (question.range === "custom" && !(question.since < question.until)) {
    notice(byId("notice"), "“From” must be before “To”.", "problem");
    return;
  }
  history.replaceState(null, "", `?${new URLSearchParams(Object.entries(question).filter(([, value]) => value !== ""))}`);
  notice(byId("notice"), "");
  set?.clear("Loading…");
  if (!set) byId("panels").replaceChildren(empty("Loading…"));
  byId("table-card").hidden = true;
  const seconds = SECONDS[question.range];
  const range = seconds ? { since: `-${seconds}s`, until: "now" } : { since: question.since, until: question.until };
  try {
    const points = await get("/api/history", { stream: question.stream, entity: question.entity, points: 3000, ...range });
    if (mine !== round) return;
    show(points, seconds ? [Date.now() / 1000 - seconds, Date.now() / 1000] : [question.since / 1000, question.until / 1000]);
  } catch (error) {
    if (mine !== round) return;
    notice(byId("notice"), error.text, "problem");
    byId("panels").replaceChildren(empty("Nothing to show."));
    byId("fields").hidden = true;
  }
}

function show(points, range) {
  set?.clear();
  series = new Series(question.stream);
  series.append(points);
  const none = points.t.length ? "These events hold no numbers." : "No events in this time range. Try a longer one.";
  set = new PanelSet(byId("panels"), series, { skip: (name) => hidden.has(name), none });
  set.setRange(range);
  chips();
  set.arrange();
  set.refresh();
  rows(points);
}

function chips() {
  const names = series.numeric();
  byId("fields").hidden = names.length < 2;
  byId("fields").replaceChildren(
    ...names.map((name) =>
      el("button", { type: "button", class: "chip", "aria-pressed": String(!hidden.has(name)), onclick: (event) => {
        hidden.has(name) ? hidden.delete(name) : hidden.add(name);
        setAttr(event.currentTarget, "aria-pressed", String(!hidden.has(name)));
        set.arrange();
        set.refresh();
      } }, labelOf(name)),
    ),
  );
}

function rows(points) {
  byId("table-card").hidden = !points.t.length;
  const names = Object.keys(points.fields);
  const first = Math.max(0, points.t.length - ROWS_SHOWN);
  const indices = Array.from({ length: points.t.length - first }, (_, index) => points.t.length - 1 - index);
  const ragged = new Map(names.map((name) => [name, points.fields[name].some((value) => typeof value === "number" && !Number.isInteger(value))]));
  const columns = [{ name: `Received (${zoneName()})` }, ...names.map((name) => ({ name: labelOf(name), numeric: series.isNumeric(name) }))];
  fill(byId("table"), columns, indices.map((index) => [el("td", { class: "t" }, stamp(points.t[index])), ...names.map((name) => numeral(points.fields[name][index], ragged.get(name)))]));
  const thinned = "Long ranges are thinned so that extremes survive; SQL gives every row.";
  setText(byId("table-note"), `${indices.length < points.t.length ? `newest ${count(indices.length)} of ${count(points.t.length)} points` : plural(points.t.length, "point")}. ${thinned}`);
  byId("csv").onclick = () => download(`${question.stream}.csv`, csv(["received", ...names], points.t.map((ms, index) => [new Date(ms).toISOString(), ...names.map((name) => points.fields[name][index])])));
}

// Numbers of a column that has decimals all get four digits, so that they line up.
function numeral(value, decimals) {
  if (typeof value !== "number") return value;
  return el("td", { class: "n" }, decimals ? fourDigits(value) : count(value));
}

async function runSql() {
  const button = byId("run");
  if (button.disabled || !byId("sql").value.trim()) return;
  button.disabled = true;
  notice(byId("sql-problem"), "");
  setText(byId("sql-note"), "Running…");
  try {
    const answer = await post("/api/query", { sql: byId("sql").value, limit: 1000 });
    const numeric = answer.columns.map((column) => /^(?:u?int|float|double|decimal)/.test(column.type));
    fill(byId("answer"), answer.columns.map((column, index) => ({ name: column.name, numeric: numeric[index] })), answer.rows);
    byId("answer-box").hidden = false;
    setText(byId("sql-note"), `${answer.truncated ? "first " : ""}${plural(answer.rows.length, "row")} in ${answer.took_ms < 1000 ? `${Math.round(answer.took_ms)} ms` : duration(answer.took_ms / 1000)}`);
  } catch (error) {
    byId("answer-box").hidden = true;
    setText(byId("sql-note"), "");
    notice(byId("sql-problem"), error.text, "problem");
  } finally {
    button.disabled = false;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
form.range.addEventListener("change", showCustom);
byId("sql-form").addEventListener("submit", (event) => {
  event.preventDefault();
  runSql();
});
byId("sql").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    runSql();
  }
});
for (const name of ["themechange", "zonechange"]) {
  document.addEventListener(name, () => {
    set?.rebuild();
    showCustom();
    if (name === "zonechange" && series) run();
  });
}

async function begin() {
  const wanted = new URLSearchParams(location.search);
  await loadLabels();
  try {
    const [streams, fleet] = await Promise.all([get("/api/streams"), get("/api/fleet")]);
    const names = streams.map((stream) => stream.name);
    const ids = fleet.names.map(([, id]) => id).sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
    form.stream.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    byId("entities").replaceChildren(...ids.map((id) => el("option", { value: id })));
    form.stream.value = names.includes(wanted.get("stream")) ? wanted.get("stream") : names.includes("telemetry") ? "telemetry" : (names[0] ?? "");
    form.entity.value = wanted.get("entity") ?? ids[0] ?? "";
    if (wanted.get("range") in SECONDS || wanted.get("range") === "custom") form.range.value = wanted.get("range");
    if (wanted.get("since")) form.since.value = toInput(Number(wanted.get("since")));
    if (wanted.get("until")) form.until.value = toInput(Number(wanted.get("until")));
    showCustom();
    if (wanted.get("sql")) byId("sql").value = wanted.get("sql");
    examples(names);
    if (names.length) run();
    else byId("panels").replaceChildren(empty("The log holds no stream yet."));
    if (wanted.get("sql")) {
      await runSql();
      byId("sql").scrollIntoView({ block: "center" });
    }
  } catch (error) {
    notice(byId("notice"), error.text, "problem");
    byId("panels").replaceChildren(empty("Nothing to show."));
  }
}

await begin();
