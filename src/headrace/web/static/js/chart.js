// One panel: a line over time (with a band between a lowest and a highest field where there are such), marks, and the value
// under the cursor. Panels of a page share the cursor.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { el, setText } from "./dom.js";
import { day, minute, number, shortDuration, stampZoned, time } from "./format.js";
import { isSeconds, labelOf, unitOf, withUnit } from "./labels.js";
import { paints } from "./prefs.js";

const HEIGHT = 150;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';
const sync = uPlot.sync("page");

export class Panel {
  // `field` is drawn as a line; `band` = {low, high} are fields of the same series drawn around it.
  constructor(series, field, { title = labelOf(field), band = null, markWord = "anomaly" } = {}) {
    this.series = series;
    this.field = field;
    this.band = band;
    this.markWord = markWord;
    this.marks = []; // {t (s), y (or null), text}
    this.range = null; // [from, to] in seconds
    this.value = el("span");
    this.when = el("time");
    this.unit = el("small", {}, unitOf(field));
    this.markCount = el("span", { class: "panel-marks" });
    this.plot = el("div", { class: "plot", role: "img" });
    this.title = title;
    const name = band ? `${title}, with its lowest and highest` : title;
    this.box = el("article", { class: "panel", "data-field": field, "aria-label": name }, el("header", { class: "panel-head" }, el("h3", { title: field }, title), this.markCount, el("span", { class: "panel-value" }, this.when, this.value, " ", this.unit)), this.plot);
    this.watcher = new ResizeObserver(() => this.resize());
    this.watcher.observe(this.plot);
  }

  resize() {
    const width = this.plot.clientWidth;
    if (!width) return;
    if (!this.chart) this.build();
    else if (this.chart.width !== width) this.chart.setSize({ width, height: HEIGHT });
  }

  data() {
    const column = (name) => this.series.fields.get(name) ?? [];
    const columns = [this.field, ...(this.band ? [this.band.high, this.band.low] : [])];
    return [this.series.t, ...columns.map((name) => column(name).map((value) => (typeof value === "number" ? value : null)))];
  }

  build() {
    this.chart?.destroy();
    const colours = paints();
    const line = { stroke: colours.series, width: 1.5, points: { show: false }, spanGaps: false, gaps: silences };
    const edge = { ...line, stroke: "transparent", width: 0 };
    this.chart = new uPlot(
      {
        width: this.plot.clientWidth,
        height: HEIGHT,
        padding: [8, 6, 0, 0],
        legend: { show: false },
        tzDate: (seconds) => (document.documentElement.dataset.zone === "utc" ? uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
        cursor: { sync: { key: sync.key, setSeries: false }, y: false, points: { size: 7, fill: colours.series, stroke: colours.surface }, drag: { x: false, y: false } },
        scales: { x: { time: true, range: (_, low, high) => this.range ?? [low ?? 0, high ?? 1] }, y: { range: (_, low, high) => roomy(low, high) } },
        axes: [axis(colours, { space: 50, size: 26, values: (_, splits) => ticks(splits) }), axis(colours, { space: 34, size: (_, labels) => roomFor(labels), values: (_, splits) => splits.map((value) => this.tick(value)) })],
        series: [{}, line, ...(this.band ? [edge, edge] : [])],
        bands: this.band ? [{ series: [2, 3], fill: colours["series-soft"] }] : [],
        hooks: { draw: [(chart) => this.drawMarks(chart, colours)], setCursor: [(chart) => this.showValue(chart.cursor.idx)] },
      },
      this.data(),
      this.plot,
    );
    this.showValue(null);
  }

  tick(value) {
    return isSeconds(this.field) ? shortDuration(value) : number(value);
  }

  // Takes new points or a new range on the screen, at most once a frame.
  refresh() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (!this.chart) return;
      this.chart.setData(this.data());
      this.showValue(this.chart.cursor.left >= 0 ? this.chart.cursor.idx : null);
      this.describe();
    });
  }

  setMarks(marks) {
    this.marks = marks;
    const shown = this.range ? marks.filter((mark) => mark.t >= this.range[0] && mark.t <= this.range[1]).length : marks.length;
    setText(this.markCount, shown ? `◦ ${shown} ${shown === 1 ? this.markWord : this.markWord.replace(/y$/, "ies")}` : "");
    this.chart?.redraw(false);
  }

  drawMarks(chart, colours) {
    const { ctx, bbox } = chart;
    const scale = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left - 6 * scale, bbox.top - 6 * scale, bbox.width + 12 * scale, bbox.height + 12 * scale);
    ctx.clip();
    ctx.strokeStyle = colours.anomaly;
    ctx.fillStyle = colours.anomaly;
    for (const mark of this.marks) {
      const x = chart.valToPos(mark.t, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.globalAlpha = 0.25;
      ctx.fillRect(x - 0.5 * scale, bbox.top, scale, bbox.height);
      ctx.globalAlpha = 1;
      const y = mark.y === null ? bbox.top + 4 * scale : chart.valToPos(mark.y, "y", true);
      ctx.lineWidth = 1.75 * scale;
      ctx.beginPath();
      ctx.arc(x, y, 4.5 * scale, 0, 2 * Math.PI);
      ctx.stroke();
    }
    ctx.restore();
  }

  showValue(index) {
    const t = index === null || index === undefined ? null : this.series.t[index];
    let shown = null;
    if (t !== null && t !== undefined) shown = { t, value: nearest(this.series.fields.get(this.field) ?? [], index) };
    else shown = this.series.last(this.field);
    setText(this.when, index === null || index === undefined || !shown ? "" : time(shown.t * 1000));
    const text = shown && typeof shown.value === "number" ? withUnit(this.field, shown.value) : "–";
    const unit = unitOf(this.field);
    setText(this.value, unit && text.endsWith(unit) ? text.slice(0, -unit.length).trim() : text);
  }

  // What a chart shows, in words, for those who do not see it.
  describe() {
    const now = performance.now();
    if (this.described && now - this.described < 5000) return;
    this.described = now;
    const values = (this.series.fields.get(this.field) ?? []).filter((value) => typeof value === "number");
    if (!values.length) return;
    const low = values.reduce((one, other) => Math.min(one, other));
    const high = values.reduce((one, other) => Math.max(one, other));
    const last = this.series.last(this.field);
    this.plot.setAttribute("aria-label", `${this.title}: ${withUnit(this.field, last.value)} at ${stampZoned(last.t * 1000)}; from ${withUnit(this.field, low)} to ${withUnit(this.field, high)} in the time shown`);
  }

  destroy() {
    this.watcher.disconnect();
    this.chart?.destroy();
    this.box.remove();
  }
}

function axis(colours, options) {
  return { stroke: colours.muted, font: FONT, grid: { stroke: colours.grid, width: 1 }, ticks: { show: false }, border: { show: false }, gap: 6, ...options };
}

// Pixels that an axis needs for its longest label.
function roomFor(labels) {
  const longest = Math.max(0, ...(labels ?? []).map((label) => label.length));
  return Math.max(48, 16 + longest * 6.4);
}

function roomy(low, high) {
  if (low === null || high === null) return [0, 1];
  const pad = high === low ? Math.abs(high) * 0.1 || 1 : Math.max((high - low) * 0.12, Math.abs(high) * 0.005);
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

function ticks(splits) {
  const step = splits.length > 1 ? splits[1] - splits[0] : 60;
  return splits.map((seconds) => (step >= 86_400 ? day(seconds * 1000) : step >= 60 ? minute(seconds * 1000) : time(seconds * 1000)));
}

function nearest(values, index) {
  for (let step = 0; step < 30; step += 1) {
    if (typeof values[index - step] === "number") return values[index - step];
    if (typeof values[index + step] === "number") return values[index + step];
  }
  return null;
}

// Of a row that lacks this field uPlot would make a gap; the line goes on over it. A pause far longer than
// usual is a gap: a machine that was silent did not glide from one value to the next.
function silences(chart, seriesIndex, first, last) {
  const t = chart.data[0];
  const values = chart.data[seriesIndex];
  const steps = [];
  let before = -1;
  const places = [];
  for (let index = first; index <= last; index += 1) {
    if (values[index] === null || values[index] === undefined) continue;
    if (before >= 0) {
      steps.push(t[index] - t[before]);
      places.push([before, index]);
    }
    before = index;
  }
  if (steps.length < 8) return [];
  const usual = [...steps].sort((one, other) => one - other)[Math.floor(steps.length * 0.9)];
  const limit = Math.max(usual * 6, 5);
  return places
    .filter((_, index) => steps[index] > limit)
    .map(([from, to]) => [Math.round(chart.valToPos(t[from], "x", true)), Math.round(chart.valToPos(t[to], "x", true))]);
}
