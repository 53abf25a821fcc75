// The list of alerts, with the button that takes one on.

import { post } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { ago, stampZoned } from "./format.js";

export const machineUrl = (id) => `/machine?id=${encodeURIComponent(id)}`;

export class AlertList {
  constructor({ linked = true, now = () => Date.now(), none = "No open alerts." } = {}) {
    this.box = byId("alerts");
    this.linked = linked;
    this.now = now;
    this.none = none;
    this.alerts = [];
    this.errors = new Map();
    document.addEventListener("zonechange", () => this.draw());
    setInterval(() => this.times(), 5000);
  }

  set(alerts) {
    this.alerts = alerts;
    this.draw();
  }

  draw() {
    const focused = document.activeElement?.dataset?.alert;
    const open = this.alerts.filter((alert) => alert.state === "open").length;
    setText(byId("alerts-count"), this.alerts.length ? `${open} to acknowledge` : "");
    this.box.replaceChildren(...(this.alerts.length ? this.alerts.map((alert) => this.item(alert)) : [el("li", { class: "empty" }, this.none)]));
    if (focused) this.box.querySelector(`[data-alert="${CSS.escape(focused)}"]`)?.focus();
  }

  item(alert) {
    const title = this.linked && alert.entity ? el("a", { href: machineUrl(alert.entity) }, alert.title) : alert.title;
    const shown = alert.state === "resolved" ? "quiet" : alert.severity;
    return el(
      "li",
      { "data-severity": alert.severity, "data-done": String(alert.state !== "open"), "data-id": alert.id },
      el("div", { class: "alert-line", "data-state": shown }, el("i", { class: "glyph" }), el("span", { class: "alert-title" }, title)),
      el("div", { class: "alert-meta" }, this.meta(alert), this.action(alert)),
      this.errors.has(alert.id) ? el("p", { class: "notice", "data-kind": "problem", role: "alert" }, this.errors.get(alert.id)) : null,
    );
  }

  meta(alert) {
    const when = alert.resolved ?? alert.opened;
    const word = alert.state === "resolved" ? "resolved" : alert.severity;
    return el(
      "span",
      {},
      el("span", { class: "severity-word" }, word),
      " · ",
      el("time", { datetime: when ? new Date(when).toISOString() : null, title: when ? stampZoned(when) : "", "data-at": when ?? "" }, ago(when, this.now())),
    );
  }

  action(alert) {
    if (alert.state === "resolved") return null;
    if (alert.state === "acknowledged") return el("span", {}, `✓ ${alert.acknowledged_by || "acknowledged"}`);
    return el("button", { type: "button", class: "button small", "data-alert": alert.id, "aria-label": `Acknowledge: ${alert.title}`, onclick: (event) => this.acknowledge(alert, event.currentTarget) }, "Acknowledge");
  }

  async acknowledge(alert, button) {
    button.disabled = true;
    this.errors.delete(alert.id);
    try {
      const changed = await post(`/api/alerts/${encodeURIComponent(alert.id)}/acknowledge`, {});
      this.set(this.alerts.map((one) => (one.id === changed.id ? changed : one)));
    } catch (error) {
      this.errors.set(alert.id, error.text);
      this.draw();
    }
  }

  times() {
    for (const node of this.box.querySelectorAll("time[data-at]")) {
      if (node.dataset.at) setText(node, ago(Number(node.dataset.at), this.now()));
    }
  }
}
