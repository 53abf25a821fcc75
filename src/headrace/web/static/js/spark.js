// A line without axes: the last minute at a glance.

const WIDTH = 120;

export function sparkPath(values, height = 28, { zero = false } = {}) {
  let low = zero ? 0 : Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (high === -Infinity) return "";
  const span = Math.max(high - low, Math.abs(high) * 0.01, 1e-9);
  const step = WIDTH / Math.max(1, values.length - 1);
  let path = "";
  let drawing = false;
  values.forEach((value, index) => {
    if (value === null || value === undefined) return;
    const y = height - 2 - ((value - low) / span) * (height - 4);
    path += `${drawing ? "L" : "M"}${(index * step).toFixed(1)} ${y.toFixed(1)}`;
    drawing = true;
  });
  return path;
}

export const areaPath = (line, height = 28) => (line ? `${line}L${WIDTH} ${height}L0 ${height}Z` : "");
