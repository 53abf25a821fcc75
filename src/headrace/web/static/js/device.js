// One device: read again every few seconds, its messages as they come, and what people do to it.

import { get, post, send } from "./api.js";
import { drawFacts, drawHistory, drawMessages, drawModules, drawWhy, pretty } from "./device-parts.js";
import { TwinEditor } from "./device-twin.js";
import { devicePath, stateOf } from "./device-words.js";
import { confirmed, onSubmit, secret, wire } from "./dialog.js";
import { byId, el, notice, setAttr, setText } from "./dom.js";
import { plural } from "./format.js";
import { Link, showLink } from "./link.js";

const EVERY_MS = 3000;
const MESSAGES_EVERY_MS = 1000;
const { device: id, telemetry } = byId("device").dataset;
const mayChange = byId("device").dataset.mayChange === "true";
const editor = new TwinEditor(id, { mayChange });
let device = null;
let timer = null;
let link = null;
let paused = false;
let gone = false;

async function load() {
  clearTimeout(timer);
  try {
    device = await get(devicePath(id));
    draw();
    notice(byId("notice"), "");
  } catch (error) {
    notice(byId("notice"), error.text, "problem");
    if (error.status === 404 && device === null) {
      byId("why").hidden = true;
      document.querySelector(".floor").hidden = true;
    }
  }
  if (!gone) timer = setTimeout(tick, EVERY_MS);
}

const tick = () => (document.hidden ? (timer = setTimeout(tick, EVERY_MS)) : load());

function draw() {
  const [glyph] = stateOf({ status: device.status, connected: device.connection.connected, since: device.connection.since });
  setAttr(byId("state"), "data-state", glyph);
  setText(byId("site"), device.site || "no site");
  setAttr(byId("charts"), "href", `/machine?id=${encodeURIComponent(device.entity)}`);
  drawWhy(device.why);
  drawFacts(device);
  drawHistory(device.connection.history);
  drawModules(device.modules, { onTwin: showModule, onDelete: mayChange ? removeModule : null });
  editor.take(device.twin);
  follow();
  if (!mayChange) return;
  byId("toggle").hidden = false;
  setText(byId("toggle"), device.status === "enabled" ? "Disable" : "Enable");
  setText(byId("waiting"), device.waiting ? `${device.waiting} of at most ${device.waitingMax} wait` : "none waits");
  byId("purge").hidden = !device.waiting;

}

// Its messages: read again at most once a second, whenever the live feed says that something came.
let reading = null;
async function readMessages() {
  reading = null;
  if (paused) return;
  try {
    drawMessages(await get(devicePath(id, "messages"), { limit: 20 }));
  } catch (error) {
    setText(byId("messages-note"), error.text);
  }
}
const soon = () => (reading ??= setTimeout(readMessages, MESSAGES_EVERY_MS));

function follow() {
  if (link) return;
  const url = () => `/api/live?${new URLSearchParams({ entity: device.entity, streams: telemetry })}`;
  const quiet = () => {};
  link = new Link(url, { points: soon, following: quiet, still: quiet, thinned: quiet, reset: quiet, problem: (message) => setText(byId("messages-note"), message.message) });
}

byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  setAttr(event.currentTarget, "aria-pressed", String(paused));
  setText(event.currentTarget, paused ? "Resume" : "Pause");
  showLink(paused ? "paused" : (link?.state ?? "waiting"));
  if (!paused) readMessages();
});

async function showModule(module) {
  setText(byId("module-title"), `${id} / ${module}`);
  setText(byId("module-twin"), "Loading…");
  byId("module-dialog").showModal();
  try {
    setText(byId("module-twin"), pretty(await get(devicePath(id, "modules", module, "twin"))));
  } catch (error) {
    setText(byId("module-twin"), error.text);
  }
}

async function told(work) {
  try {
    await work();
    await load();
  } catch (error) {
    notice(byId("notice"), error.text, "problem");
    byId("notice").scrollIntoView({ block: "center" });
  }
}

async function removeModule(module) {
  if (!(await confirmed(`Delete module ${module}?`, "Its keys stop working and its twin is lost.", { yes: "Delete" }))) return;
  await told(() => send("DELETE", devicePath(id, "modules", module)));
}

async function showKeys() {
  try {
    const keys = await get(devicePath(id, "keys"));
    notice(byId("keys-problem"), "");
    const withKeys = Boolean(keys.primary_key);
    const rotate = (which) => el("button", { type: "button", class: "button small danger", "data-rotate": which, onclick: () => rotateKey(which) }, `New ${which} key`);
    byId("keys").replaceChildren(
      secret("Connection string", keys.connection_string),
      el("img", { class: "qr", src: keys.qr, alt: "QR code of the connection string", width: 240, height: 240 }),
      ...(withKeys ? [secret("Primary key", keys.primary_key), secret("Secondary key", keys.secondary_key), secret("Connection string with the secondary key", keys.secondary_connection_string), el("div", { class: "row-start" }, rotate("primary"), rotate("secondary"))] : []),
      el("button", { type: "button", class: "button", id: "hide-keys", onclick: hideKeys }, "Hide"),
    );
    byId("hide-keys").focus();
  } catch (error) {
    notice(byId("keys-problem"), error.text, "problem");
  }
}

function hideKeys() {
  byId("keys").replaceChildren(el("p", { class: "hint" }, "Whoever has the connection string is this device."), el("button", { type: "button", class: "button", id: "show-keys", onclick: showKeys }, "Show keys and QR code"));
  byId("show-keys").focus();
}

async function rotateKey(which) {
  const text = `The old ${which} key opens no new connection. A device that uses it must be given the new one.`;
  if (!(await confirmed(`Make a new ${which} key?`, text, { yes: "Make a new key" }))) return;
  await told(() => post(devicePath(id, "rotate"), { which }));
  await showKeys();
}

function actions() {
  byId("show-keys").addEventListener("click", showKeys);
  byId("toggle").addEventListener("click", async () => {
    const enable = device.status !== "enabled";
    if (!enable && !(await confirmed(`Disable ${id}?`, "Its connection is closed, and it is refused until it is enabled again. Nothing is lost.", { yes: "Disable" }))) return;
    await told(() => send("PUT", devicePath(id, "status"), { enabled: enable, etag: device.etag }));
  });
  byId("delete").addEventListener("click", async () => {
    if (!(await confirmed(`Delete ${id}?`, "Its keys, twin, modules and waiting messages are lost. What it sent stays in history.", { yes: "Delete for ever", typed: id }))) return;
    try {
      await send("DELETE", devicePath(id));
      gone = true;
      location.href = "/devices";
    } catch (error) {
      notice(byId("notice"), error.text, "problem");
    }
  });
  byId("purge").addEventListener("click", async () => {
    if (!(await confirmed("Empty the queue?", `${plural(device.waiting, "message")} that ${id} has not taken yet will be thrown away.`, { yes: "Empty it" }))) return;
    await told(() => send("DELETE", devicePath(id, "mail")));
  });
  onSubmit(byId("method-form"), byId("method-problem"), invoke);
  onSubmit(byId("mail-form"), byId("mail-problem"), mail);
  byId("module-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setText(byId("module-problem"), "");
    try {
      await post(devicePath(id, "modules"), { id: byId("module-id").value.trim() });
      event.target.reset();
      await load();
    } catch (error) {
      setText(byId("module-problem"), error.text);
    }
  });
}

async function invoke(data) {
  const text = data.get("payload").trim();
  let payload = null;
  try {
    payload = text ? JSON.parse(text) : null;
  } catch (error) {
    throw new Error(`The payload is not JSON: ${error.message}`);
  }
  byId("method-answer").hidden = true;
  const [responseTimeoutS, connectTimeoutS] = [Number(data.get("response")), Number(data.get("connect"))];
  const started = performance.now();
  const answer = await post(devicePath(id, "methods"), { name: data.get("name").trim(), payload, responseTimeoutS, connectTimeoutS }, responseTimeoutS + connectTimeoutS + 20);
  setText(byId("method-status"), `answered ${answer.status} in ${Math.round(performance.now() - started)} ms`);
  setText(byId("method-payload"), pretty(answer.payload));
  byId("method-answer").hidden = false;
}

async function mail(data, form) {
  const lines = data.get("properties").split("\n").map((line) => line.trim()).filter(Boolean);
  const wrong = lines.find((line) => !/^[^=]+=/.test(line));
  if (wrong) throw new Error(`${wrong}: write properties as name=value`);
  const properties = Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf("=")).trim(), line.slice(line.indexOf("=") + 1).trim()]));
  const sent = await post(devicePath(id, "mail"), { body: data.get("body"), properties, ack: data.get("ack"), expiryS: Number(data.get("expiryS")), contentType: data.get("contentType").trim() });
  form.body.value = "";
  notice(byId("mail-problem"), `In the queue as ${sent.messageId}.`, "info");
  await load();
}

wire(byId("module-dialog"));
if (mayChange) actions();
document.addEventListener("zonechange", () => device && draw());
await Promise.all([load(), readMessages()]);
