// One job: its figures, its operators with what each did since the last look, its plan and script.

import { get } from "./api.js";
import { byId, el, notice, setText } from "./dom.js";
import { bytes, count, number, stampZoned } from "./format.js";
import { amount, decoders, late, rate, state } from "./job-parts.js";
import { NULL, fill, saying } from "./table.js";

const EVERY_MS = 2000;
const name = byId("name").dataset.name;
const COLUMNS = [{ name: "Operator" }, { name: "Writes to" }, ...["Rows in", "Rows out", "In a second", "Passed WHERE", "Holds rows", "State", "Delay", "Busy"].map((one) => ({ name: one, numeric: true }))];
let before = null;

const fact = (label, value) => el("div", {}, el("dt", {}, label), el("dd", {}, value));

function facts(job) {
  const running = job.state === "running";
  byId("facts").replaceChildren(
    fact("State", state(job)),
    fact("Rows a second", running ? number(job.rows_per_s ?? 0, 0) : "–"),
    fact("Events behind", count(job.lag)),
    fact("Delay", running ? late(job.watermark_delay_s) : "–"),
    fact("Rows in", count(job.rows_in)),
    fact("Rows out", count(job.rows_out)),
    fact("Set aside", count(job.set_aside)),
    fact("Holds", `${count(job.state_rows)} rows, ${bytes(job.state_bytes)}`),
    fact("Epoch", count(job.epoch)),
    fact("Decoder", decoders(job) || "–"),
  );
}

const share = (part, whole) => el("td", { class: "n" }, whole ? `${number((100 * part) / whole, 1)} %` : NULL());

const bar = (part) => el("svg:svg", { viewBox: "0 0 48 6", "aria-hidden": "true" }, el("svg:rect", { width: "48", height: "6", rx: "3" }), el("svg:rect", { class: "filled", width: String(48 * Math.min(1, part)), height: "6", rx: "3" }));

// What an operator did since the last look; nothing where the job started anew between.
function since(one, seconds) {
  const old = before?.operators.get(one.operator);
  if (!old || seconds <= 0 || one.rows_in < old.rows_in || one.busy_s < old.busy_s) return { rows: null, busy: null };
  return { rows: (one.rows_in - old.rows_in) / seconds, busy: (one.busy_s - old.busy_s) / seconds };
}

function operators(found, now) {
  const seconds = before ? (now - before.at) / 1000 : 0;
  const rows = found.map((one) => {
    const did = since(one, seconds);
    const busy = did.busy === null ? NULL() : el("span", { class: "meter" }, bar(did.busy), `${number(100 * did.busy, 1)} %`);
    return [
      el("td", { class: "operator" }, one.operator),
      one.output,
      amount(one.rows_in),
      amount(one.rows_out),
      rate(did.rows),
      share(one.filter_out, one.filter_in),
      amount(one.state_rows),
      el("td", { class: "n" }, one.state_bytes ? bytes(one.state_bytes) : NULL()),
      el("td", { class: "n" }, late(one.watermark_delay_s)),
      el("td", { class: "n" }, busy),
    ];
  });
  fill(byId("operators"), COLUMNS, rows);
  before = { at: now, operators: new Map(found.map((one) => [one.operator, one])) };
}

async function refresh() {
  if (!document.hidden) {
    try {
      const job = await get(`/api/jobs/${encodeURIComponent(name)}`);
      facts(job);
      if (job.details) {
        operators(job.details.operators, Date.now());
        setText(byId("plan"), job.details.plan);
        setText(byId("script"), job.details.script.trim());
      } else {
        saying(byId("operators"), "The job has not told about its operators yet.");
      }
      notice(byId("notice"), job.error ?? "", "problem");
      setText(byId("refreshed"), `as of ${stampZoned(Date.now())}`);
    } catch (error) {
      notice(byId("notice"), error.text, "problem");
      setText(byId("refreshed"), "could not read; trying again");
    }
  }
  setTimeout(refresh, EVERY_MS);
}

await refresh();
