// What the pages about jobs share: states, and cells of numbers.

import { el } from "./dom.js";
import { count, duration, number } from "./format.js";
import { NULL } from "./table.js";

const STATES = { running: "ok", starting: "quiet", stopped: "quiet", waiting: "warning", failed: "critical" };

export const state = (job) => el("span", { class: "state", "data-state": STATES[job.state] ?? "quiet" }, el("i", { class: "glyph" }), job.state ?? "unknown");
export const amount = (value) => el("td", { class: "n" }, value === null || value === undefined ? NULL() : count(value));
export const rate = (value) => el("td", { class: "n" }, value === null || value === undefined ? NULL() : number(value, value < 10 ? 1 : 0));
export const late = (seconds) => (seconds === null || seconds === undefined ? "–" : seconds < 10 ? `${number(seconds, 1)} s` : duration(seconds));
export const decoders = (job) => [...new Set(Object.values(job.decoders ?? {}))].join(", ");
