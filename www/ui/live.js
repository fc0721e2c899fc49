// What changes arrives by itself: one stream of events, or asking every few seconds where there is none.

import * as api from "../api.js";

const POLL_MS = 5000;
const RETRY_MS = 15000;
const ALL = ["status", "files", "peers", "chat", "feed", "jobs", "alerts", "ai", "bounty"];

const listeners = new Set();
let source = null;
let poller = 0;
let retry = 0;
let isOn = false;
let isLost = false;

function tell(what) {
  for (const each of [...listeners]) if (each.what.some((one) => what.includes(one))) each.run(what);
}

function poll() {
  clearTimeout(poller);
  if (!isOn) return;
  poller = setTimeout(() => {
    if (!document.hidden) tell(ALL);
    poll();
  }, POLL_MS);
}

function listen() {
  clearTimeout(retry);
  source?.close();
  source = new EventSource(api.url("events"));
  source.addEventListener("open", () => {
    clearTimeout(poller);
    isLost = false;
    // Whatever happened while nobody listened.
    tell(ALL);
  });
  source.addEventListener("change", (event) => {
    try {
      tell(JSON.parse(event.data).what ?? ALL);
    } catch {
      tell(ALL);
    }
  });
  source.addEventListener("error", () => {
    // Each try to connect anew ends here, too: the asking goes on in its own time.
    if (!isLost) {
      isLost = true;
      poll();
      tell(["status"]);
    }
    if (source?.readyState === EventSource.CLOSED) retry = setTimeout(listen, RETRY_MS);
  });
}

export function start() {
  if (isOn) return;
  isOn = true;
  listen();
  poll();
}

export function stop() {
  isOn = false;
  source?.close();
  source = null;
  clearTimeout(poller);
  clearTimeout(retry);
}

/** Calls `run` when one of `what` may have changed; ended by the signal. */
export function on(what, run, signal) {
  const each = { what: [].concat(what), run };
  listeners.add(each);
  const off = () => listeners.delete(each);
  signal?.addEventListener("abort", off);
  return off;
}

/** Tells that the page itself has changed something. */
export const changed = (...what) => tell(what);

document.addEventListener("visibilitychange", () => {
  if (isOn && !document.hidden) tell(ALL);
});
