// Anomalies as marks on panels. An anomaly belongs to the panels of the fields that it carries; its place is the point with
// the same value close in time, else its own time. One that carries no field of the stream is marked on every panel.

const TIME_FIELDS = ["ts", "time", "timestamp", "eventTime", "event_time", "windowEnd", "window_end"];
const SNAP_S = 60;

// When the thing happened, in seconds: the event's own time where it is near to when it was received.
export function momentOf(row, receivedS) {
  for (const name of TIME_FIELDS) {
    const value = row[name];
    const seconds = typeof value === "string" ? Date.parse(value.replace(/(\.\d{3})\d+/, "$1")) / 1000 : typeof value === "number" ? (value > 1e11 ? value / 1000 : value) : NaN;
    if (Math.abs(seconds - receivedS) < SNAP_S) return seconds;
  }
  return receivedS;
}

// Index of the last time at or before `t`.
function indexAt(times, t) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= t) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function snapped(series, field, value, t) {
  const values = series.fields.get(field);
  for (let index = Math.min(indexAt(series.t, t + SNAP_S), series.t.length - 1); index >= 0 && series.t[index] >= t - SNAP_S; index -= 1) {
    if (values[index] === value) return series.t[index];
  }
  return null;
}

// Marks by field of `series`, from a series of anomalies.
export function marksOf(anomalies, series) {
  const marks = new Map(series.numeric().map((name) => [name, []]));
  for (let index = 0; index < anomalies.t.length; index += 1) {
    const row = anomalies.row(index);
    const named = [row.field, row.measure, row.sensor].find((name) => marks.has(name));
    const shared = Object.keys(row).filter((name) => marks.has(name));
    const fields = named ? [named] : shared.length ? shared : [...marks.keys()];
    const t = momentOf(row, anomalies.t[index]);
    for (const field of fields) {
      const y = typeof row[field] === "number" ? row[field] : named && typeof row.value === "number" ? row.value : null;
      const at = y === null ? null : snapped(series, field, y, t);
      marks.get(field).push({ t: at ?? t, y });
    }
  }
  return marks;
}
