// The frame around the tabs: the way between them, the state of the cell, and whether it answers.

import * as api from "../api.js";
import { t } from "../texts.js";
import { FIRST, TABS } from "../tabs/index.js";
import { el, icon, put } from "./dom.js";
import * as format from "./format.js";
import * as live from "./live.js";
import { ask, button, dialog, dot, fail, menu, toast, waiting } from "./pieces.js";

const STATUS_MS_MIN = 1500;

const app = document.getElementById("app");
const banner = el("p", { className: "banner", attrs: { role: "status" }, hidden: true });
document.body.prepend(banner);

/** Newest known, for every tab. */
export const state = { session: {}, status: null, unread: 0 };

let shown = null;
let restart = () => {};

/** Says that the cell does not answer; nothing for an empty text. */
export function setOffline(text) {
  banner.hidden = text === "";
  if (text) banner.replaceChildren(icon("warn"), el("span", {}, `${text} ${t("offline.again")}`));
  document.body.classList.toggle("stale", text !== "");
  shown?.connection.classList.toggle("off", text !== "");
  if (shown) shown.connection.lastChild.textContent = t(text ? "offline.short" : "online.short");
}

// Addresses: #/tab/segment/segment

/** The tab, the decoded segments and the query of the address. */
function address() {
  const [way, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [tab = "", ...path] = way.split("/");
  const decode = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };
  return { tab, path: path.filter(Boolean).map(decode), query: new URLSearchParams(query) };
}

/** `#/files/a%20b`. */
export const href = (tab, ...path) => `#/${[tab, ...path.map(encodeURIComponent)].join("/")}`;

export function go(tab, ...path) {
  location.hash = href(tab, ...path);
}

// Status

let asking = false;
let again = false;
let askedAt = 0;
const watchers = new Set();

async function refresh() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  await new Promise((done) => setTimeout(done, Math.max(0, askedAt + STATUS_MS_MIN - Date.now())));
  askedAt = Date.now();
  if (!shown) {
    asking = again = false;
    return;
  }
  try {
    state.status = await api.status();
    setOffline("");
    if (shown) {
      paint();
      for (const each of [...watchers]) each(state.status);
    }
  } catch (error) {
    if (shown && error.status !== 401 && error.status !== -1) {
      setOffline(error.status === 0 || error.status >= 500 ? error.message || t("error.no_answer") : error.message);
      again = true;
    }
  }
  asking = false;
  if (again && shown) {
    again = false;
    setTimeout(refresh, STATUS_MS_MIN);
  }
}

async function countUnread() {
  try {
    const { conversations } = await api.get("chat");
    state.unread = conversations.reduce((sum, each) => sum + each.unread, 0);
    if (shown) paint();
  } catch {
    // Told by the status.
  }
}

/** Names, badges and which tabs there are. */
function paint() {
  const { status, session } = state;
  const name = status?.name ?? session.name ?? "Grove";
  shown.name.textContent = name;
  shown.name.title = name;
  const urgent = status?.alerts?.filter((alert) => alert.level !== "info").length ?? 0;
  const badges = { home: urgent, chat: state.unread };
  for (const tab of TABS) {
    const isShown = tab.isShown(state);
    for (const link of shown.links.filter((each) => each.dataset.tab === tab.id)) {
      link.closest("li").hidden = !isShown;
      const badge = link.querySelector(".badge");
      badge.replaceChildren(format.number(badges[tab.id] ?? 0), el("span", { className: "sr" }, ` ${t("badge")}`));
      badge.hidden = !badges[tab.id];
    }
  }
  const open = shown.tab ? t(`tab.${shown.tab.id}`) : "";
  document.title = `${urgent + state.unread > 0 ? `(${urgent + state.unread}) ` : ""}${open ? `${open} – ` : ""}${name}`;
}

// Tabs

function link(tab) {
  return el("a", { href: href(tab.id), data: { tab: tab.id } }, icon(tab.icon), el("span", { className: "word" }, t(`tab.${tab.id}`)),
    " ", el("span", { className: "badge", hidden: true }));
}

/** What a tab gets to work with. */
function context(path, query, signal) {
  return {
    path, query, signal, api, el, icon, t, format, state, go, href, menu, toast, dialog, ask, fail, button,
    events: { on: (what, run) => live.on(what, run, signal), changed: live.changed },
    /** Calls `run` with the newest status, now and whenever it is asked anew. */
    onStatus(run) {
      watchers.add(run);
      signal.addEventListener("abort", () => watchers.delete(run));
      if (state.status) run(state.status);
    },
    refresh,
    /** The heading of a tab with its actions, and the body below it. */
    page(title, ...actions) {
      const heading = el("h1", {}, title);
      const body = el("div", { className: "page-body" });
      const head = el("header", { className: "page-head" }, heading, el("div", { className: "actions" }, actions));
      return { root: el("div", { className: "page" }, head, body), body, heading, head };
    },
    plot: async (root, spec) => {
      const { plot } = await import("./plot.js");
      if (signal.aborted) return null;
      const drawn = await plot(root, spec);
      signal.addEventListener("abort", () => drawn.destroy());
      return drawn;
    },
  };
}

async function route() {
  if (!shown) return;
  const { tab: id, path, query } = address();
  const tab = TABS.find((each) => each.id === id && each.isShown(state)) ?? TABS[0];
  for (const each of shown.links) {
    if (each.dataset.tab === tab.id) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
  shown.more.classList.toggle("current", !FIRST.includes(tab.id));
  if (shown.tab === tab && shown.module?.moved) {
    Object.assign(shown.ctx, { path, query });
    if (shown.module.moved(path, shown.ctx) !== false) return;
  }
  shown.abort?.abort();
  try {
    shown.module?.close?.();
  } catch (error) {
    console.error(error);
  }
  const abort = new AbortController();
  const isOther = shown.tab !== tab;
  Object.assign(shown, { tab, abort, module: null });
  shown.view.dataset.tab = tab.id;
  shown.view.replaceChildren(waiting());
  paint();
  let module;
  try {
    module = await tab.load();
  } catch {
    if (!abort.signal.aborted) shown.view.replaceChildren(el("p", { className: "problem" }, t("error.no_answer")), button(t("retry"), () => location.reload()));
    return;
  }
  if (abort.signal.aborted || !shown) return;
  shown.module = module;
  shown.ctx = context(path, query, abort.signal);
  shown.view.replaceChildren();
  try {
    await module.open(shown.view, shown.ctx);
  } catch (error) {
    if (!abort.signal.aborted) fail(error);
  }
  if (isOther && document.activeElement === document.body) scrollTo(0, 0);
}

export async function signOut() {
  hideFrame();
  location.hash = "";
  await api.post("logout").catch(() => {});
  restart();
}

function moreMenu(anchor) {
  const rest = TABS.filter((tab) => !FIRST.includes(tab.id) && tab.isShown(state));
  menu(anchor, [...rest.map((tab) => ({ label: t(`tab.${tab.id}`), icon: tab.icon, run: () => go(tab.id) })), null,
    { label: t("sign_out"), icon: "out", run: signOut }]);
}

/** Shows the frame; `start` looks anew who is there. */
export function showFrame(session, start) {
  state.session = session;
  restart = start;
  if (shown) return;
  const name = el("p", { className: "cell-name" }, session.name);
  const connection = el("p", { className: "connection" }, dot("on"), el("span", {}, t("online.short")));
  const view = el("main", { id: "view", tabIndex: -1 });
  const side = el("nav", { className: "side", aria: { label: t("nav") } },
    el("div", { className: "brand" }, el("img", { src: "/icon.svg", alt: "", width: 36, height: 36 }),
      el("div", {}, el("p", { className: "brand-word" }, "Grove"), name)),
    el("ul", {}, TABS.map((tab) => el("li", {}, link(tab)))),
    el("div", { className: "side-foot" }, connection, button(t("sign_out"), signOut, { kind: "quiet", icon: "out" })));
  const more = el("button", { type: "button", className: "more", attrs: { "aria-haspopup": "menu", "aria-expanded": "false" }, on: { click: () => moreMenu(more) } },
    icon("more"), el("span", { className: "word" }, t("more")));
  const bar = el("nav", { className: "bar", aria: { label: t("nav.phone") } },
    el("ul", {}, FIRST.map((id) => el("li", {}, link(TABS.find((tab) => tab.id === id)))), el("li", {}, more)));
  const skip = el("a", { className: "skip", href: "#view", on: { click: (event) => { event.preventDefault(); view.focus(); } } }, t("skip"));
  shown = { name, view, more, connection, links: [...side.querySelectorAll("a[data-tab]"), ...bar.querySelectorAll("a[data-tab]")] };
  app.className = "frame";
  app.replaceChildren(put(document.createDocumentFragment(), [skip, side, view, bar]));
  live.start();
  const all = new AbortController();
  shown.all = all;
  live.on(["status", "files", "peers", "alerts", "jobs"], refresh, all.signal);
  live.on("chat", countUnread, all.signal);
  addEventListener("hashchange", route, { signal: all.signal });
  refresh();
  countUnread();
  route();
}

/** Takes the frame away. */
export function hideFrame() {
  if (!shown) return;
  live.stop();
  shown.abort?.abort();
  shown.module?.close?.();
  shown.all.abort();
  watchers.clear();
  for (const box of document.querySelectorAll("dialog[open]")) box.close();
  shown = null;
  state.status = null;
  app.className = "";
  app.replaceChildren();
}
