// A live connection that says how it is. EventSource reconnects by itself with the id of the last message; where it gives up
// (the server answered with an error) we open a new one, from the same place.

import { byId, setText } from "./dom.js";

const STALE_MS = 15_000;
const RETRY_MS = 3000;

export class Link {
  // `url(token)` gives the address; `handlers` is called by message name with its data.
  constructor(url, handlers, onState = () => {}) {
    this.url = url;
    this.handlers = handlers;
    this.onState = onState;
    this.token = "";
    this.open();
    this.watch = setInterval(() => this.check(), 1000);
  }

  open() {
    this.heard = performance.now();
    this.source = new EventSource(this.url(this.token));
    for (const [name, handle] of Object.entries(this.handlers)) {
      this.source.addEventListener(name, (event) => {
        this.heard = performance.now();
        if (event.lastEventId) this.token = event.lastEventId;
        this.say("live");
        handle(JSON.parse(event.data));
      });
    }
    this.source.onopen = () => {
      this.heard = performance.now();
      this.say("live");
    };
    this.source.onerror = () => {
      this.say("waiting");
      if (this.source.readyState === EventSource.CLOSED) this.reopen();
    };
  }

  reopen() {
    this.source.close();
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.open(), RETRY_MS);
  }

  check() {
    if (performance.now() - this.heard > STALE_MS && this.source.readyState !== EventSource.CONNECTING) {
      this.say("waiting");
      this.reopen();
      this.heard = performance.now();
    }
  }

  say(state) {
    if (state === this.state) return;
    this.state = state;
    showLink(state);
    this.onState(state);
  }

  close() {
    clearInterval(this.watch);
    clearTimeout(this.retry);
    this.source.close();
  }
}

const WORDS = { live: "Live", waiting: "Reconnecting…", paused: "Paused" };

export function showLink(state) {
  const node = byId("link-state");
  node.hidden = false;
  node.dataset.kind = state;
  setText(node, WORDS[state]);
}
