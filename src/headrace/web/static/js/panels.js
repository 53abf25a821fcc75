// The panels of one stream: one per numeric field, made as fields appear. `avgX` with `minX` and `maxX` is one panel.

import { empty } from "./dom.js";
import { Panel } from "./chart.js";

const PANELS_MAX = 40;
const MIDDLE = /^(?:avg|mean|average)_?(.+)$/i;

function bandOf(field, names) {
  const match = MIDDLE.exec(field);
  if (!match) return null;
  const base = match[1].toLowerCase();
  const find = (word) => names.find((name) => name.toLowerCase().replace("_", "") === word + base.replace("_", ""));
  const low = find("min");
  const high = find("max");
  return low && high ? { low, high } : null;
}

export class PanelSet {
  // `skip(field)` leaves fields out; `none` is said where there is nothing to draw.
  constructor(box, series, { skip = () => false, none = "No numbers in this time range." } = {}) {
    this.box = box;
    this.series = series;
    this.skip = skip;
    this.none = none;
    this.panels = new Map();
  }

  // Brings the panels in line with the series' fields.
  arrange() {
    const names = this.series.numeric().filter((name) => !this.skip(name));
    const bands = new Map(names.map((name) => [name, bandOf(name, names)]).filter(([, band]) => band));
    const inner = new Set([...bands.values()].flatMap((band) => [band.low, band.high]));
    const wanted = names.filter((name) => !inner.has(name)).slice(0, PANELS_MAX);
    for (const [name, panel] of this.panels) {
      if (!wanted.includes(name)) {
        panel.destroy();
        this.panels.delete(name);
      }
    }
    if (!wanted.length) {
      this.box.replaceChildren(empty(this.none));
      return;
    }
    this.box.querySelector(":scope > .empty")?.remove();
    for (const name of wanted) {
      if (this.panels.has(name)) continue;
      const panel = new Panel(this.series, name, { band: bands.get(name) ?? null });
      panel.range = this.range ?? null;
      this.panels.set(name, panel);
      this.box.append(panel.box);
    }
  }

  setRange(range) {
    this.range = range;
    for (const panel of this.panels.values()) panel.range = range;
  }

  refresh() {
    for (const panel of this.panels.values()) panel.refresh();
  }

  rebuild() {
    for (const panel of this.panels.values()) if (panel.chart) panel.build();
  }

  clear(text = this.none) {
    for (const panel of this.panels.values()) panel.destroy();
    this.panels.clear();
    this.box.replaceChildren(empty(text));
  }
}
