// Picks a view: first visit, sign-in, or the state of the cell. Text from the cell enters as text, never as HTML.

import * as api from "./api.js";

const REFRESH_MS = 5000;

const view = document.getElementById("view");
const heading = document.getElementById("name");
const leave = document.getElementById("leave");
const offline = document.getElementById("offline");

let timer = 0;

/**
 * An element with these properties and children; empty children are left out.
 * @param {string} tag @param {object} [properties] @param {...(Node|string|null|false)} children
 */
function el(tag, properties, ...children) {
  const { data = {}, aria = {}, ...rest } = properties ?? {};
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

// Words for numbers.

function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && count < 9.95 ? 1 : 0;
  return `${count.toFixed(digits)}\u00a0${units[unit]}`;
}

function someBytes(count) {
  return count === 0 ? "nothing" : bytes(count);
}

function number(count) {
  return count.toLocaleString("en");
}

function counted(count, one, many) {
  return `${number(count)}\u00a0${count === 1 ? one : many}`;
}

function duration(seconds) {
  if (seconds < 60) return "less than a minute";
  if (seconds < 3600) return counted(Math.floor(seconds / 60), "minute", "minutes");
  if (seconds < 2 * 86400) return counted(Math.floor(seconds / 3600), "hour", "hours");
  return counted(Math.floor(seconds / 86400), "day", "days");
}

function ago(seconds) {
  return seconds < 60 ? "just now" : `${duration(seconds)} ago`;
}

// The entrance.

function field(label, properties) {
  const input = el("input", { required: true, ...properties });
  return [el("label", {}, el("span", { textContent: label }), input), input];
}

/** A form that says what went wrong below its fields. */
function entrance(title, text, fields, action, send) {
  const problem = el("p", { className: "problem", role: "alert", hidden: true });
  const button = el("button", { type: "submit", textContent: action });
  const form = el("form", { className: "card entrance" },
    el("h2", { textContent: title }), el("p", { className: "muted", textContent: text }), ...fields, problem, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    button.disabled = true;
    try {
      await send();
      await start();
    } catch (error) {
      problem.textContent = [error.message, error.hint].filter(Boolean).join(" ");
      problem.hidden = false;
      form.querySelector(error.code.includes("code") ? "input" : "input[type=password]").select();
    }
    button.disabled = false;
  });
  leave.hidden = true;
  view.replaceChildren(form);
  form.querySelector("input").focus();
}

function showSetup() {
  const [codeField, code] = field("Setup code", {
    autocomplete: "one-time-code", autocapitalize: "characters", spellcheck: false, placeholder: "XXXX-XXXX", className: "code",
  });
  const [passwordField, password] = field("New password", { type: "password", autocomplete: "new-password", minLength: 8 });
  const [againField, again] = field("The same again", { type: "password", autocomplete: "new-password" });
  const text = "The cell printed a setup code when it started. It shows that you are the one who has the machine.";
  entrance("Welcome", text, [codeField, passwordField, againField], "Set password", async () => {
    if (password.value !== again.value) throw new api.ApiError(0, "", "The two passwords differ.", "");
    await api.setup(code.value, password.value);
  });
}

function showSignIn() {
  const [passwordField, password] = field("Password", { type: "password", autocomplete: "current-password" });
  entrance("Sign in", "This is the dashboard of your cell.", [passwordField], "Sign in", () => api.login(password.value));
}

// The state of the cell.

/** Parts of the page by name; a part is built anew only when what it shows has changed. */
class Parts {
  constructor(root) {
    this.root = root;
    this.shown = new Map();
  }

  put(name, shows, build) {
    const text = JSON.stringify(shows);
    const before = this.shown.get(name);
    if (before?.text === text) return;
    const node = build(shows);
    if (before) before.node.replaceWith(node);
    else this.root.append(node);
    this.shown.set(name, { text, node });
  }
}

function summary({ state, copies, files }) {
  const total = copies.full + copies.short;
  const well = state === "ok";
  const sentence = total === 0 ? "There are no files yet."
    : copies.wanted === 0 ? "Only this cell keeps your files."
    : `${number(copies.full)} of ${counted(total, "file", "files")} ${copies.full === 1 ? "has" : "have"} ${counted(copies.wanted, "copy", "copies")} on other cells.`;
  const rest = files.count === 0
    ? "Put some into the folder and they will be kept."
    : files.waiting > 0 ? `${counted(files.waiting, "file is", "files are")} waiting to be stored.` : "";
  return el("section", { className: "card summary", data: { state: well ? "ok" : "attention" } },
    el("p", { className: "state", textContent: well ? "All is well" : "Needs your attention" }),
    el("p", { className: "sentence", textContent: sentence }),
    total > 0 && el("progress", { max: total, value: copies.full, aria: { label: "Files with all their copies" } }),
    rest && el("p", { className: "muted", textContent: rest }));
}

function alerts(list) {
  return el("section", { className: "alerts", hidden: list.length === 0, aria: { label: "Alerts" } },
    ...list.map((alert) => el("article", { className: "card alert" },
      el("p", { className: "strong", textContent: alert.text }),
      alert.remedy && el("p", { textContent: alert.remedy }))));
}

function job(current) {
  const section = el("section", { className: "card job", hidden: !current, aria: { label: "Current job" } });
  if (!current) return section;
  const amount = (count) => current.unit === "bytes" ? bytes(count) : `${number(count)}\u00a0${current.unit}`;
  const known = current.total > 0;
  const progress = el("progress", { aria: { label: "Progress" } });
  if (known) Object.assign(progress, { max: current.total, value: current.done });
  section.append(
    el("div", { className: "row" },
      el("p", { className: "strong", textContent: current.text }),
      el("p", { className: "muted", textContent: known ? `${amount(current.done)} of ${amount(current.total)}` : amount(current.done) })),
    progress);
  return section;
}

function tile(title, figure, notes, bar) {
  return el("section", { className: "card tile" },
    el("h2", { textContent: title }),
    el("p", { className: "figure", textContent: figure }),
    ...notes.filter(Boolean).map((note) => el("p", { className: "muted", textContent: note })),
    bar);
}

function tiles({ files, chunks, held, disk, peers }) {
  const used = Math.max(0, disk.total - disk.free);
  const bar = el("progress", {
    max: disk.total || 1, value: used, className: disk.free <= 2 * disk.reserve ? "low" : "",
    aria: { label: "Used part of the disk" },
  });
  const helped = peers.filter((peer) => peer.held_for_them_bytes > 0).length;
  return el("div", { className: "tiles" },
    tile("Your files", number(files.count), [bytes(files.bytes)]),
    tile("Stored here", bytes(chunks.bytes), [counted(chunks.count, "sealed chunk", "sealed chunks")]),
    tile("Held for others", bytes(held.bytes), [helped > 0 ? `for ${counted(helped, "cell", "cells")}` : "nothing yet"]),
    tile("Free disk", bytes(disk.free), [`of ${bytes(disk.total)}, ${bytes(disk.reserve)} reserved`], bar));
}

const ROLES = { friend: "Friend", favorite: "Favorite", peer: "Peer" };

function peer(cell) {
  const seen = cell.online ? "online" : cell.last_seen_s === null ? "never seen" : `seen ${ago(cell.last_seen_s)}`;
  return el("li", { className: "peer" },
    el("span", { className: "dot", data: { online: String(cell.online) }, aria: { hidden: "true" } }),
    el("div", { className: "who" },
      el("p", { className: "strong" }, el("span", { className: "peer-name", textContent: cell.name, title: cell.id }),
        el("span", { className: "role", data: { role: cell.role }, textContent: ROLES[cell.role] ?? cell.role })),
      el("p", { className: "muted", textContent: seen })),
    el("dl", { className: "holds" },
      el("div", {}, el("dt", { textContent: "Keeps for you" }), el("dd", { textContent: someBytes(cell.held_for_us_bytes) })),
      el("div", {}, el("dt", { textContent: "You keep" }), el("dd", { textContent: someBytes(cell.held_for_them_bytes) }))));
}

function peers(list) {
  const online = list.filter((cell) => cell.online).length;
  const none = el("p", { className: "muted" }, "No other cell is connected yet, so nothing has a copy elsewhere. ",
    el("code", { textContent: "grove invite" }), " makes an invitation, ", el("code", { textContent: "grove join" }), " takes one.");
  return el("section", { className: "card peers" },
    el("div", { className: "row" },
      el("h2", { textContent: "Other cells" }),
      list.length > 0 && el("p", { className: "muted", textContent: `${number(online)} of ${number(list.length)} online` })),
    list.length > 0 ? el("ul", {}, ...list.map(peer)) : none);
}

function about({ home, id, version, life, uptime, scan }) {
  const scanned = scan.running ? "being looked through now" : scan.last_s === null ? "not looked through yet" : `looked through ${ago(scan.last_s)}`;
  const facts = [
    ["Folder", home, `${scanned}`],
    ["Cell", id.slice(0, 16), life > 1 ? `life ${life}` : ""],
    ["Running for", uptime, `version ${version}`],
  ];
  return el("dl", { className: "about" }, ...facts.map(([term, value, note]) => el("div", {},
    el("dt", { textContent: term }),
    el("dd", { textContent: value, title: term === "Cell" ? id : value }),
    note && el("dd", { className: "muted", textContent: note }))));
}

/** Seconds as coarse as they are shown, so that nothing is built anew for a second passed. */
function coarse(seconds) {
  if (seconds === null) return null;
  return seconds - (seconds % (seconds < 3600 ? 60 : 3600));
}

/** @param {Parts} parts @param {import("./api.js").Status} status */
function show(parts, status) {
  const { state, copies, files, chunks, held, disk, home, id, version, life } = status;
  const list = status.peers.map((cell) => ({ ...cell, last_seen_s: coarse(cell.last_seen_s) }));
  const scan = { ...status.scan, last_s: coarse(status.scan.last_s) };
  heading.textContent = status.name;
  document.title = `${status.alerts.length > 0 ? `(${status.alerts.length}) ` : ""}${status.name} – Grove`;
  parts.put("summary", { state, copies, files }, summary);
  parts.put("alerts", status.alerts, alerts);
  parts.put("job", status.job, job);
  parts.put("tiles", { files, chunks, held, disk, peers: list }, tiles);
  parts.put("peers", list, peers);
  parts.put("about", { home, id, version, life, uptime: duration(status.uptime_s), scan }, about);
}

function showStatus() {
  const root = el("div", { className: "status" }, el("p", { className: "muted", textContent: "One moment…" }));
  const parts = new Parts(root);
  view.replaceChildren(root);
  leave.hidden = false;
  let isFirst = true;
  const refresh = async () => {
    clearTimeout(timer);
    try {
      const status = await api.status();
      if (isFirst) root.replaceChildren();
      isFirst = false;
      show(parts, status);
      setOffline("");
    } catch (error) {
      if (error.status === 401) return start();
      setOffline(error.status === 0 ? "The cell does not answer. Trying again…" : error.message);
    }
    if (root.isConnected) timer = setTimeout(refresh, REFRESH_MS);
  };
  document.onvisibilitychange = () => {
    clearTimeout(timer);
    if (!document.hidden && root.isConnected) refresh();
  };
  return refresh();
}

function setOffline(text) {
  offline.textContent = text;
  offline.hidden = text === "";
  view.classList.toggle("stale", text !== "");
}

async function start() {
  clearTimeout(timer);
  document.onvisibilitychange = null;
  let session;
  try {
    session = await api.session();
  } catch (error) {
    setOffline(`${error.message} Trying again…`);
    timer = setTimeout(start, REFRESH_MS);
    return;
  }
  setOffline("");
  heading.textContent = session.name;
  document.title = `${session.name} – Grove`;
  if (session.signed_in) await showStatus();
  else if (session.set_up) showSignIn();
  else showSetup();
}

leave.addEventListener("click", async () => {
  await api.logout().catch(() => {});
  await start();
});

start();
