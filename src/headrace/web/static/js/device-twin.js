// The twin editor. What somebody types is never overwritten by what is read: while there are changes, a newer twin is only told of.

import { get, send } from "./api.js";
import { bare, drawMetadata, pretty } from "./device-parts.js";
import { devicePath } from "./device-words.js";
import { byId, el, notice, setText } from "./dom.js";

const SECTIONS = ["desired", "tags"];

export class TwinEditor {
  constructor(device, { mayChange }) {
    this.device = device;
    this.mayChange = mayChange;
    this.twin = null;
    this.base = { desired: "", tags: "" }; // the texts that the editor began with
    this.etag = "";
    this.metadata = false;
    byId("metadata").addEventListener("click", (event) => {
      this.metadata = !this.metadata;
      event.currentTarget.setAttribute("aria-pressed", String(this.metadata));
      byId("metadata-box").hidden = !this.metadata;
      drawMetadata(this.twin);
    });
    if (!mayChange) return;
    for (const name of SECTIONS) byId(name).addEventListener("input", () => this.check());
    byId("twin-revert").addEventListener("click", () => this.begin());
    byId("twin-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
    byId("twin-form").addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && (event.key === "s" || event.key === "Enter")) {
        event.preventDefault();
        this.save();
      }
    });
    addEventListener("beforeunload", (event) => this.changed() && event.preventDefault());
  }

  changed() {
    return SECTIONS.some((name) => byId(name).value !== this.base[name]);
  }

  // What was read: reported is always drawn; the editors only while nobody has changed them.
  take(twin) {
    this.twin = twin;
    const { desired, reported } = twin.properties;
    setText(byId("reported"), pretty(bare(reported)));
    setText(byId("reported-note"), `version ${reported.$version}`);
    if (this.metadata) drawMetadata(twin);
    if (twin.etag === this.etag) return;
    if (!this.changed()) return this.begin();
    if (pretty(bare(desired)) !== this.base.desired || pretty(twin.tags) !== this.base.tags) this.conflict();
    else this.etag = twin.etag; // only reported has moved
  }

  begin() {
    const { desired } = this.twin.properties;
    this.etag = this.twin.etag;
    this.base = { desired: pretty(bare(desired)), tags: pretty(this.twin.tags) };
    for (const name of SECTIONS) byId(name).value = this.base[name];
    setText(byId("desired-note"), `version ${desired.$version}`);
    setText(byId("twin-note"), `version ${this.twin.version}`);
    notice(byId("twin-problem"), "");
    this.check();
  }

  // Whether both texts are JSON objects; says beside each why not.
  check() {
    const values = {};
    let fine = true;
    for (const name of SECTIONS) {
      const problem = this.problemOf(name, values);
      setText(byId(`${name}-bad`), problem);
      byId(name).setAttribute("aria-invalid", String(Boolean(problem)));
      fine &&= !problem;
    }
    if (!this.mayChange) return null;
    byId("twin-save").disabled = !fine || !this.changed();
    byId("twin-revert").disabled = !this.changed();
    return fine ? values : null;
  }

  problemOf(name, values) {
    const text = byId(name).value;
    try {
      values[name] = JSON.parse(text.trim() || "{}");
    } catch (error) {
      return placed(error.message, text);
    }
    return values[name] === null || typeof values[name] !== "object" || Array.isArray(values[name]) ? "This must be an object: { … }" : "";
  }

  async save({ etag = this.etag } = {}) {
    const values = this.check();
    if (!values || !this.changed()) return;
    byId("twin-save").disabled = true;
    try {
      this.twin = await send("PUT", devicePath(this.device, "twin"), { ...values, etag });
      this.begin();
      setText(byId("twin-note"), `saved as version ${this.twin.version}`);
    } catch (error) {
      this.check();
      if (error.status === 409) this.conflict();
      else notice(byId("twin-problem"), error.text, "problem");
    }
  }

  // What others made of it is read now: what was read last may be older than their change.
  async newest() {
    try {
      this.twin = (await get(devicePath(this.device))).twin;
      this.begin();
    } catch (error) {
      notice(byId("twin-problem"), error.text, "problem");
    }
  }

  conflict() {
    const box = byId("twin-problem");
    if (!box.hidden && box.dataset.kind === "stale") return;
    notice(box, "", "stale");
    box.hidden = false;
    box.replaceChildren(
      el("span", {}, "Somebody changed this twin while you were editing. "),
      el("button", { type: "button", class: "link-button", id: "twin-newest", onclick: () => this.newest() }, "Take theirs"),
      el("button", { type: "button", class: "link-button", id: "twin-overwrite", onclick: () => this.save({ etag: "*" }) }, "Overwrite with mine"),
    );
  }
}

// Browsers say where JSON went wrong as a position; people count lines.
function placed(message, text) {
  const found = /position (\d+)/.exec(message);
  if (!found || /line \d+/.test(message)) return `Not JSON: ${message}`;
  const line = text.slice(0, Number(found[1])).split("\n").length;
  return `Not JSON: ${message} (line ${line})`;
}
