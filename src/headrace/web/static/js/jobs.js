// All jobs: state, speed, and how far behind each is. Read again every two seconds.

import { get } from "./api.js";
import { byId, el, notice, setText } from "./dom.js";
import { plural, stampZoned } from "./format.js";
import { amount, decoders, late, rate, state } from "./job-parts.js";
import { NULL, fill, saying } from "./table.js";

const EVERY_MS = 2000;
const COLUMNS = [{ name: "Job" }, { name: "State" }, { name: "Rows a second", numeric: true }, { name: "Events behind", numeric: true }, { name: "Delay", numeric: true }, { name: "Set aside", numeric: true }, { name: "State, rows", numeric: true }, { name: "Reads" }, { name: "Writes" }, { name: "Decoder" }];

function draw(jobs) {
  if (!jobs.length) return saying(byId("jobs"), "No job has reported yet. Declare one with [jobs.NAME] in headrace.toml.");
  const focused = document.activeElement?.dataset?.job;
  const rows = jobs.map((job) => [
    el("td", {}, el("a", { href: `/job?name=${encodeURIComponent(job.name)}`, "data-job": job.name }, job.name), job.error ? el("span", { class: "why" }, job.error) : null),
    el("td", {}, state(job)),
    rate(job.state === "running" ? job.rows_per_s : null),
    amount(job.lag),
    el("td", { class: "n" }, job.state === "running" ? late(job.watermark_delay_s) : NULL()),
    amount(job.set_aside),
    amount(job.state_rows),
    (job.streams ?? []).join(", ") || null,
    (job.outputs ?? []).join(", ") || null,
    decoders(job) || null,
  ]);
  fill(byId("jobs"), COLUMNS, rows);
  if (focused) byId("jobs").querySelector(`[data-job="${CSS.escape(focused)}"]`)?.focus();
  const failed = jobs.filter((job) => job.state === "failed").length;
  notice(byId("notice"), failed ? `${plural(failed, "job")} failed: someone must act` : "", "problem");
}

async function refresh() {
  if (!document.hidden) {
    try {
      draw(await get("/api/jobs"));
      setText(byId("refreshed"), `as of ${stampZoned(Date.now())}`);
    } catch (error) {
      notice(byId("notice"), error.text, "problem");
      setText(byId("refreshed"), "could not read; trying again");
    }
  }
  setTimeout(refresh, EVERY_MS);
}

await refresh();
