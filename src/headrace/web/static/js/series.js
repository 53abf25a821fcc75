// The points of one stream as columns: times in seconds (uPlot's unit), one list per field, all of one length.

export class Series {
  constructor(stream) {
    this.stream = stream;
    this.t = [];
    this.fields = new Map();
  }

  // Points as the server sends them, later than all before. Returns the names of fields that are new.
  append(points) {
    const fresh = [];
    const before = this.t.length;
    for (const ms of points.t) this.t.push(ms / 1000);
    for (const [name, values] of Object.entries(points.fields)) {
      if (!this.fields.has(name)) {
        this.fields.set(name, new Array(before).fill(null));
        fresh.push(name);
      }
      const list = this.fields.get(name);
      for (const value of values) list.push(value);
    }
    for (const list of this.fields.values()) while (list.length < this.t.length) list.push(null);
    return fresh;
  }

  // Forget what is older than `since` (seconds), in large steps, so that it seldom costs.
  trim(since) {
    if (this.t.length < 200 || this.t[Math.floor(this.t.length / 4)] > since) return;
    let first = 0;
    while (first < this.t.length && this.t[first] < since) first += 1;
    this.t.splice(0, first);
    for (const list of this.fields.values()) list.splice(0, first);
  }

  isNumeric(name) {
    const values = this.fields.get(name) ?? [];
    for (let index = values.length - 1; index >= 0; index -= 1) {
      const value = values[index];
      if (value !== null) return typeof value === "number";
    }
    return false;
  }

  numeric() {
    return [...this.fields.keys()].filter((name) => this.isNumeric(name));
  }

  // The newest value of a field with its time, or null.
  last(name) {
    const values = this.fields.get(name) ?? [];
    for (let index = values.length - 1; index >= 0; index -= 1) if (values[index] !== null) return { t: this.t[index], value: values[index] };
    return null;
  }

  row(index) {
    return Object.fromEntries([...this.fields].map(([name, values]) => [name, values[index]]).filter(([, value]) => value !== null));
  }
}
