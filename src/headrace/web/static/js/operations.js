// Ledger and health: the books by stage, the parts that run, the streams, and what was set aside. Read again every few seconds.

import { get } from "./api.js";
import { byId, el, notice, setText } from "./dom.js";
import { bytes, count, number, plural, stamp, stampZoned } from "./format.js";
import { NULL, fill, saying } from "./table.js";

const EVERY_MS = 5000;
const STATES = { running: "ok", ready: "ok", starting: "quiet", stopped: "quiet", disabled: "quiet", degraded: "warning", retrying: "warning", failed: "critical", crashed: "critical" };
const opened = new Set();

const amount = (value, extra = "") => el("td", { class: `n ${extra}` }, value === null || value === undefined ? NULL() : count(value));

function summed(stages) {
  const groups = new Map();
  for (const row of stages) {
    const key = `${row.stage} ${row.stream}`;
    if (!groups.has(key)) groups.set(key, { ...row, key, rows_in: 0, rows_out: 0, gap: 0, pending: 0, set_aside: {}, parts: [] });
    const group = groups.get(key);
    for (const name of ["rows_in", "rows_out", "gap", "pending"]) group[name] += row[name] ?? 0;
    for (const [reason, rows] of Object.entries(row.set_aside ?? {})) group.set_aside[reason] = (group.set_aside[reason] ?? 0) + rows;
    group.parts.push(row);
  }
  return [...groups.values()];
}

const total = (aside) => Object.values(aside ?? {}).reduce((sum, rows) => sum + rows, 0);

function asideCell(aside) {
  const reasons = Object.entries(aside ?? {}).filter(([, rows]) => rows);
  if (!reasons.length) return amount(0);
  return el("td", { class: "n" }, count(total(aside)), el("span", { class: "muted" }, ` ${reasons.map(([reason, rows]) => (reasons.length > 1 ? `${reason} ${count(rows)}` : reason)).join(", ")}`));
}

function numbers(row) {
  return [amount(row.rows_in), amount(row.rows_out), asideCell(row.set_aside), amount(row.gap, row.gap ? "gap" : ""), amount(row.pending)];
}

function drawStages(report) {
  const stages = report.stages ?? [];
  const groups = summed(stages);
  const gap = groups.reduce((sum, group) => sum + Math.abs(group.gap), 0);
  byId("verdict").dataset.balanced = String(Boolean(report.balanced));
  setText(byId("verdict-text"), report.balanced ? "The books balance" : `${plural(gap, "event")} unaccounted for`);
  const waiting = groups.reduce((sum, group) => sum + group.pending, 0);
  setText(byId("verdict-sub"), stages.length ? `${plural(groups.length, "stage")} checked; ${plural(waiting, "event")} on the way` : "No stage has written its books yet.");
  if (!groups.length) return saying(byId("stages"), "No stage has written its books yet. Rows appear with the first events.");
  const rows = groups.flatMap((group) => {
    const open = opened.has(group.key);
    const fold = el("button", { type: "button", class: "fold", "aria-expanded": String(open), "data-key": group.key, onclick: () => (open ? opened.delete(group.key) : opened.add(group.key), drawStages(report)) }, group.stage);
    const main = el("tr", {}, el("td", { class: "t" }, fold), el("td", {}, group.stream), ...numbers(group), el("td", {}, group.counted ?? ""));
    const details = open ? group.parts.map((part) => el("tr", { class: "detail" }, el("td", {}, ""), el("td", {}, `partition ${part.partition}`), ...numbers(part), el("td", {}, part.counted ?? ""))) : [];
    return [main, ...details];
  });
  const focused = document.activeElement?.dataset?.key;
  fill(byId("stages"), [{ name: "Stage" }, { name: "Stream" }, ...["In", "Out", "Set aside", "Gap", "On the way"].map((name) => ({ name, numeric: true })), { name: "Out counted in" }], []);
  byId("stages").querySelector("tbody").replaceChildren(...rows);
  if (focused) byId("stages").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function drawParts(report) {
  const parts = Array.isArray(report.parts) ? report.parts : Object.entries(report.parts ?? {}).map(([name, part]) => ({ name, ...part }));
  if (!parts.length) return saying(byId("parts"), "No part has reported.");
  const down = parts.filter((part) => STATES[part.state] === "critical").length;
  setText(byId("parts-note"), down ? `${plural(down, "part")} down` : "all running");
  const rows = parts.map((part) => [
    el("td", {}, part.name, part.detail || part.error ? el("span", { class: "why" }, part.detail || part.error) : null),
    el("td", {}, el("span", { class: "state", "data-state": STATES[part.state] ?? "quiet" }, el("i", { class: "glyph" }), part.state ?? "unknown")),
    el("td", { class: "n" }, part.cpu === null || part.cpu === undefined ? NULL() : `${number(part.cpu, 1)} %`),
    el("td", { class: "n" }, part.memory === null || part.memory === undefined ? NULL() : bytes(part.memory)),
    amount(part.lag),
    el("td", { class: "n" }, part.pid ? String(part.pid) : NULL()),
  ]);
  fill(byId("parts"), [{ name: "Part" }, { name: "State" }, { name: "CPU", numeric: true }, { name: "Memory", numeric: true }, { name: "Events behind", numeric: true }, { name: "Process", numeric: true }], rows);
  drawWork(report.work ?? []);
  const problems = Object.entries(report.console?.problems ?? {});
  notice(byId("notice"), problems.map(([name, text]) => `${name}: ${text}`).join(" · "), "problem");
}

// What runs inside the parts: jobs and functions with how far behind each is.
function drawWork(work) {
  byId("work-card").hidden = !work.length;
  const rows = work.map((one) => [
    el("td", {}, one.name, one.error ? el("span", { class: "why" }, one.error) : null),
    one.stream || null,
    el("td", {}, el("span", { class: "state", "data-state": STATES[one.state] ?? "quiet" }, el("i", { class: "glyph" }), one.state ?? "unknown")),
    amount(one.rows),
    amount(one.set_aside),
    amount(one.lag),
  ]);
  fill(byId("work"), [{ name: "Job or function" }, { name: "Stream" }, { name: "State" }, ...["Events done", "Set aside", "Events behind"].map((name) => ({ name, numeric: true }))], rows);
}

function drawStreams(streams) {
  if (!streams.length) return saying(byId("streams"), "The log holds no stream yet.");
  const rows = streams.map((one) => [one.name, amount(one.events), amount(one.kept), amount(one.duplicates), el("td", { class: "n" }, bytes(one.bytes_on_disk))]);
  fill(byId("streams"), [{ name: "Stream" }, ...["Events", "Kept", "Sent again", "On disk"].map((name) => ({ name, numeric: true }))], rows);
}

function drawAside(events) {
  if (!events.length) return saying(byId("aside"), "Nothing was set aside.");
  const rows = events.map((one) => [el("td", { class: "t", title: stampZoned(one.t) }, stamp(one.t)), el("td", {}, one.reason, one.detail ? el("div", { class: "muted" }, one.detail) : null), one.stage || null, one.device || one.entity || null, el("td", { class: "code" }, one.body)]);
  fill(byId("aside"), [{ name: "Received" }, { name: "Reason" }, { name: "Stage" }, { name: "Device" }, { name: "Payload" }], rows);
}

const SOURCES = [
  ["/api/ledger", drawStages, "stages"],
  ["/api/status", drawParts, "parts"],
  ["/api/streams", drawStreams, "streams"],
  ["/api/set-aside?limit=50", drawAside, "aside"],
];

async function refresh() {
  if (document.hidden) return setTimeout(refresh, EVERY_MS);
  const failed = [];
  await Promise.all(
    SOURCES.map(async ([path, draw, table]) => {
      try {
        draw(await get(path));
      } catch (error) {
        failed.push(error.text);
        if (byId(table).querySelector(".empty")) saying(byId(table), error.text);
      }
    }),
  );
  if (failed.length) notice(byId("notice"), [...new Set(failed)].join(" · "), "problem");
  setText(byId("refreshed"), failed.length ? "could not read everything; trying again" : `as of ${stampZoned(Date.now())}`);
  setTimeout(refresh, EVERY_MS);
}

document.addEventListener("zonechange", () => setText(byId("refreshed"), `as of ${stampZoned(Date.now())}`));
await refresh();
