// Units and titles: what the platform was told, else what a field's name says by its ending, else nothing.

import { get } from "./api.js";
import { duration, number, steady } from "./format.js";

const ENDINGS = [
  [/_(?:celsius|degc|c)$/i, "°C"],
  [/_(?:percent|pct)$/i, "%"],
  [/_bar$/i, "bar"],
  [/_kpa$/i, "kPa"],
  [/_ms$/, "ms"],
  [/(?:^|_)rpm$/i, "rpm"],
  [/_hz$/i, "Hz"],
  [/_(?:volts?|v)$/i, "V"],
  [/_(?:amps?|a)$/i, "A"],
  [/_kw$/i, "kW"],
];
const SECONDS = /(?:_s|_sec|_seconds|Seconds)$/;

let known = { fields: {}, sites: {} };

export async function loadLabels() {
  try {
    known = await get("/api/labels");
  } catch {
    // Numbers without units are still numbers.
  }
  return known;
}

export function unitOf(field) {
  if (isSeconds(field)) return "";
  const plain = field.split(".").at(-1);
  return known.fields[field]?.unit || known.fields[plain]?.unit || inner(plain)?.unit || ENDINGS.find(([ending]) => ending.test(plain))?.[1] || "";
}

// `avgTemperature` and `temperatureMax` have the unit of `temperature`.
function inner(field) {
  const match = /^(?:avg|min|max|mean|last|first|median|stdev|std)_?(.+)$/i.exec(field) ?? /^(.+?)_?(?:avg|min|max|mean|median)$/i.exec(field);
  return match ? known.fields[match[1]] ?? known.fields[match[1][0].toLowerCase() + match[1].slice(1)] : null;
}

export const isSeconds = (field) => (known.fields[field]?.unit ? known.fields[field].unit === "s" : SECONDS.test(field));
export const labelOf = (field) => known.fields[field]?.label || field;
export const siteOf = (site) => ({ title: known.sites[site]?.title || site || "No site", place: known.sites[site]?.place ?? "" });

export function valueText(field, value, { steadily = false } = {}) {
  if (isSeconds(field)) return duration(value);
  const digits = known.fields[field]?.digits ?? null;
  return digits === null ? (steadily ? steady(value) : number(value)) : number(value, digits);
}

export const withUnit = (field, value) => [valueText(field, value), unitOf(field)].filter(Boolean).join(" ");
