// Numbers and times as people read them.

import { isUtc, zoneName } from "./prefs.js";

const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const significant = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 4 });
const compact = new Intl.NumberFormat("en-GB", { notation: "compact", maximumSignificantDigits: 3 });

export function number(value, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (digits !== undefined) return fixed(value, digits);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e12)) return value.toExponential(2);
  return size >= 1000 ? whole.format(value) : significant.format(value);
}

const four = new Intl.NumberFormat("en-GB", { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });

export function fourDigits(value) {
  const size = Math.abs(value);
  return size >= 10_000 || (size !== 0 && size < 1e-3) ? number(value) : four.format(value);
}

// Like `number`, with as many decimals for every value of about this size: columns do not jump from 6 to 6.013.
export function steady(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return size >= 1e6 ? compact.format(value) : value.toExponential(1);
  return size >= 1000 ? whole.format(value) : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

const fixedFormats = new Map();

function fixed(value, digits) {
  if (!fixedFormats.has(digits)) fixedFormats.set(digits, new Intl.NumberFormat("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  return fixedFormats.get(digits).format(value);
}

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));

export function plural(amount, one, many = `${one}s`) {
  return `${count(amount)} ${amount === 1 ? one : many}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const step = value < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  const scaled = value / 1000 ** step;
  return `${step === 0 || scaled >= 100 ? whole.format(scaled) : scaled.toFixed(1)} ${units[step]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 0) return `−${duration(-seconds)}`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  if (seconds < 3570) return `${Math.round(seconds / 60)} min`;
  const [big, small, ...units] = seconds < 86_400 ? [3600, 60, "h", "min"] : [86_400, 3600, "d", "h"];
  const main = Math.floor(seconds / big);
  const rest = Math.floor((seconds % big) / small);
  return rest && main < 30 ? `${main} ${units[0]} ${rest} ${units[1]}` : `${main} ${units[0]}`;
}

// A duration in one unit, for the axis of a chart.
export function shortDuration(seconds) {
  const size = Math.abs(seconds);
  const [unit, name] = size < 120 ? [1, "s"] : size < 7200 ? [60, "min"] : size < 172_800 ? [3600, "h"] : [86_400, "d"];
  return `${number(seconds / unit)} ${name}`;
}

export function ago(ms, now) {
  if (!ms) return "never";
  const seconds = Math.max(0, (now - ms) / 1000);
  return seconds < 2 ? "now" : `${duration(seconds)} ago`;
}

const formats = new Map();

function format(ms, options) {
  const zone = isUtc() ? "UTC" : undefined;
  const key = `${zone}${JSON.stringify(options)}`;
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat("en-GB", { ...options, timeZone: zone }));
  return formats.get(key).format(ms);
}

const TIME = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

export const time = (ms) => format(ms, TIME);
export const stamp = (ms) => `${format(ms, { day: "2-digit", month: "short", ...TIME })}`;
export const stampZoned = (ms) => `${stamp(ms)} ${zoneName()}`;
export const day = (ms) => format(ms, { day: "2-digit", month: "short" });
export const minute = (ms) => format(ms, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
