// How devices are told of: states, authentication, why a connection ended.

import { el } from "./dom.js";

export const AUTHENTICATION = { sas: "Key", selfSigned: "Own certificate", certificateAuthority: "Certificate of an authority", none: "None" };

const ENDED = {
  disconnected: "said goodbye",
  closed_by_device: "closed without goodbye",
  connection_lost: "connection lost",
  keep_alive: "fell silent",
  taken_over: "another client took its id",
  token_expired: "token expired",
  device_disabled: "was disabled",
  device_deleted: "was deleted",
  gateway_stopped: "hub stopped",
  gateway_restarted: "hub restarted",
};

export const ended = (reason) => ENDED[reason] ?? reason.replaceAll("_", " ");

// Which glyph, and which word, a device gets in a list.
export function stateOf(line) {
  if (line.status === "disabled") return ["warning", "disabled"];
  if (line.connected) return ["ok", "connected"];
  return line.since ? ["quiet", "not connected"] : ["quiet", "never connected"];
}

export const stateCell = (line) => {
  const [glyph, word] = stateOf(line);
  return el("span", { class: "state", "data-state": glyph }, el("i", { class: "glyph" }), word);
};

export const devicePath = (id, ...more) => ["/api/hub/devices", encodeURIComponent(id), ...more.map((part) => (part.startsWith("?") ? part : encodeURIComponent(part)))].join("/").replace("/?", "?");
export const devicePage = (id) => `/device?id=${encodeURIComponent(id)}`;
