// Enrolments: groups and single devices that may register, their keys, and who has registered.

import { get, post, send } from "./api.js";
import { devicePage } from "./device-words.js";
import { confirmed, onSubmit, secret, wire } from "./dialog.js";
import { byId, el, notice, setText } from "./dom.js";
import { stamp, stampZoned } from "./format.js";
import { NULL, fill, saying } from "./table.js";

const mayChange = byId("enrolments").dataset.mayChange === "true";
const NONE = { group: "No group. With one, any number of devices register themselves with keys derived from the group’s.", individual: "No device is enrolled by itself." };
let after = "";
let making = "group";
let opened = null;

const path = (kind, id, ...more) => ["/api/hub/enrolments", kind, id, ...more].map((part, index) => (index ? encodeURIComponent(part) : part)).join("/");

async function load() {
  try {
    const [groups, single] = await Promise.all([get("/api/hub/enrolments/group"), get("/api/hub/enrolments/individual", { after })]);
    setText(byId("scope"), groups.id_scope || "not known while the hub has never run");
    draw("group", groups.enrolments);
    draw("individual", single.enrolments);
    byId("pager").hidden = !single.more && !after;
    byId("more").disabled = !single.more;
    byId("more").dataset.after = single.more;
    notice(byId("notice"), "");
  } catch (error) {
    notice(byId("notice"), error.text, "problem");
  }
}

function draw(kind, enrolments) {
  if (!enrolments.length) return saying(byId(kind), NONE[kind]);
  const rows = enrolments.map((one) => [
    el("td", { class: "id" }, el("button", { type: "button", class: "link-button", onclick: () => open(kind, one) }, one.id), one.device ? el("div", { class: "hint" }, `becomes ${one.device}`) : null),
    el("td", {}, el("span", { class: "state", "data-state": one.enabled ? "ok" : "warning" }, el("i", { class: "glyph" }), one.enabled ? "enabled" : "disabled")),
    one.attestation === "x509" ? "certificate" : "key",
    one.site || NULL(),
    el("td", { class: "t", title: stampZoned(one.created) }, stamp(one.created)),
    el("td", {}, mayChange ? el("span", { class: "row-start" }, button(one.enabled ? "Disable" : "Enable", () => toggle(kind, one)), button("Delete", () => remove(kind, one), "danger")) : null),
  ]);
  fill(byId(kind), ["Id", "State", "Proof", "Site", "Created", ""].map((name) => ({ name })), rows.map((row) => row.map((cell) => (cell instanceof HTMLSpanElement ? el("td", {}, cell) : cell))));
}

const button = (text, onclick, kind = "") => el("button", { type: "button", class: `button small ${kind}`, onclick }, text);

async function told(work) {
  try {
    await work();
    await load();
  } catch (error) {
    notice(byId("notice"), error.text, "problem");
  }
}

const toggle = (kind, one) => told(() => send("PUT", path(kind, one.id, "status"), { enabled: !one.enabled }));

async function remove(kind, one) {
  if (!(await confirmed(`Delete ${one.id}?`, "Nobody registers by it any more. Devices that have registered stay.", { yes: "Delete" }))) return;
  await told(() => send("DELETE", path(kind, one.id)));
}

async function open(kind, one) {
  opened = { kind, one };
  setText(byId("detail-title"), one.id);
  byId("registered").replaceChildren(el("li", { class: "empty" }, "Loading…"));
  if (mayChange) {
    notice(byId("detail-problem"), "");
    byId("derived").replaceChildren();
    byId("derive-form").hidden = kind !== "group" || one.attestation === "x509";
    byId("secrets").replaceChildren(...(one.attestation === "x509" ? [] : [button("Show its keys", showKeys)]));
  }
  byId("detail").showModal();
  const found = await get(path(kind, one.id, "registrations")).catch((error) => error);
  if (found instanceof Error) return byId("registered").replaceChildren(el("li", { class: "empty" }, found.text));
  const items = found.map((each) => el("li", {}, el("a", { href: devicePage(each.device) }, each.device), el("time", { title: stampZoned(each.updated) }, stamp(each.updated))));
  byId("registered").replaceChildren(...(items.length ? items : [el("li", { class: "empty" }, "Nobody yet.")]));
}

async function showKeys() {
  try {
    const keys = await get(path(opened.kind, opened.one.id, "keys"));
    byId("secrets").replaceChildren(secret("Primary key", keys.primary_key), secret("Secondary key", keys.secondary_key));
  } catch (error) {
    notice(byId("detail-problem"), error.text, "problem");
  }
}

function start(kind) {
  making = kind;
  const group = kind === "group";
  byId("create-form").reset();
  setText(byId("create-title"), group ? "New enrolment group" : "Enrol one device");
  setText(byId("id-label"), group ? "Group id" : "Registration id");
  setText(byId("certificate-text"), group ? "Certificate that issues those of the devices (PEM)" : "The device’s certificate (PEM)");
  byId("device-label").hidden = group;
  notice(byId("create-problem"), "");
  proof();
  byId("create").showModal();
}

function proof() {
  const byKey = byId("create-form").attestation.value === "symmetricKey";
  byId("key-label").hidden = !byKey;
  byId("certificate-label").hidden = byKey;
}

function json(text, name) {
  try {
    return text.trim() ? JSON.parse(text) : {};
  } catch (error) {
    throw new Error(`${name} are not JSON: ${error.message}`);
  }
}

if (mayChange) {
  for (const one of document.querySelectorAll("[data-new]")) one.addEventListener("click", () => start(one.dataset.new));
  byId("create-form").attestation.addEventListener("change", proof);
  onSubmit(byId("create-form"), byId("create-problem"), async (data, form) => {
    const body = Object.fromEntries(["id", "attestation", "site", "primaryKey", "certificate", "deviceId"].map((name) => [name, data.get(name).trim()]));
    await post(`/api/hub/enrolments/${making}`, { ...body, tags: json(data.get("tags"), "Tags"), desired: json(data.get("desired"), "Desired properties"), iotEdge: form.iotEdge.checked });
    byId("create").close();
    await load();
  });
  onSubmit(byId("derive-form"), byId("detail-problem"), async () => {
    const found = await post(path("group", opened.one.id, "derive"), { registrationId: byId("registration").value.trim() });
    byId("derived").replaceChildren(secret(`Key of ${found.registrationId} (ID scope ${found.idScope})`, found.key));
  });
}
byId("first").addEventListener("click", () => ((after = ""), load()));
byId("more").addEventListener("click", (event) => ((after = event.currentTarget.dataset.after), load()));
wire(byId("create"));
wire(byId("detail"));
document.addEventListener("zonechange", load);
await load();
