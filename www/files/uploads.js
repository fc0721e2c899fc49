// Uploads: in pieces, several after one another, paused, gone on with after a lost connection, a reload or a restart of the cell.

import * as api from "../api.js";
import { t } from "../texts.js";
import { el, icon } from "../ui/dom.js";
import * as format from "../ui/format.js";
import * as live from "../ui/live.js";
import { button, errorText, iconButton, meter } from "../ui/pieces.js";
import { join, numbered, show as shown, split, wire } from "./names.js";

const PIECE = 1024 * 1024;
const AT_ONCE = 2;
const RETRY_MS = [1000, 2000, 4000, 8000];
const SHOWN_MAX = 30;
const KEEPING_MS = 700;
const UNKEPT_MS = 4000;
const OTHERS_MS = 200;

let shared = null;

/** Nothing more is sent of these. */
const hasArrived = (item) => ["keeping", "unkept", "done", "left_out"].includes(item.state);

/** Where other tabs of this page are heard. */
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("grove-uploads") : null;

/** Whether the cell has a file as it was uploaded. */
const isListed = ({ path, size, file }) => api.get("file", { path })
  .then((there) => there.size === size && Math.abs(there.modified_unix_ms - file.lastModified) < 2000, () => false);

/**
 * All uploads of this page. An item: `{path, file, size, offset, id, run, state, error}`; its state is one of `queued`, `running`, `paused`,
 * `waiting` (for the cell), `taken` (the name is), `keeping` (it has arrived and is being sealed), `unkept` (it has arrived and could not
 * be kept yet), `done`, `failed`, `left_out` (of its name none are kept), and `left` (begun before the page was loaded; needs its file again).
 */
export class Uploads {
  static shared() {
    shared ??= new Uploads();
    return shared;
  }

  constructor() {
    this.items = [];
    this.watchers = new Set();
    this.isPaused = false;
    this.rates = [];
    this.frame = 0;
    this.forAll = null;
    this.asking = 0;
    this.askAt = Infinity;
    this.isAsking = false;
    addEventListener("beforeunload", (event) => { if (this.isBusy) event.preventDefault(); });
    // Ids of other tabs' uploads; one that is busy says late that it has them.
    this.others = new Set();
    tabs?.addEventListener("message", ({ data }) => {
      if (data.who) tabs.postMessage({ here: this.items.filter((each) => each.id && each.state !== "left").map((each) => each.id) });
      for (const id of data.here ?? []) this.others.add(id);
      this.items = this.items.filter((each) => each.state !== "left" || !this.others.has(each.id));
      this.tell();
    });
  }

  get count() { return this.items.length; }
  get isBusy() { return this.items.some((each) => ["queued", "running", "waiting"].includes(each.state)); }

  /** Calls `run` after changes, at most once a frame. */
  watch(run, signal) {
    this.watchers.add(run);
    signal?.addEventListener("abort", () => this.watchers.delete(run));
    run();
  }

  tell() {
    if (this.frame) return;
    this.frame = setTimeout(() => {
      this.frame = 0;
      for (const run of [...this.watchers]) run();
    }, 80);
  }

  /** Sums for the heading: bytes, files, rate in bytes a second, seconds left. */
  sums() {
    const live = this.items.filter((each) => !["left", "cancelled", "left_out"].includes(each.state));
    const bytes = live.reduce((sum, each) => sum + each.size, 0);
    const sent = live.reduce((sum, each) => sum + (hasArrived(each) ? each.size : each.offset), 0);
    const now = performance.now();
    this.rates = this.rates.filter(([at]) => now - at < 4000);
    const span = this.rates.length > 1 ? (now - this.rates[0][0]) / 1000 : 0;
    const rate = span > 0.3 ? this.rates.reduce((sum, [, n]) => sum + n, 0) / span : 0;
    return { bytes, sent, rate, left: rate > 0 ? (bytes - sent) / rate : NaN, done: live.filter(hasArrived).length, files: live.length };
  }

  /**
   * Takes files in. @param {{file: File|null, path: string}[]} found paths below `folder`; without a file it is an empty folder
   */
  async add(found, folder) {
    const items = await found;
    for (const { file, path } of items) {
      const whole = join(folder, wire(path));
      if (!file) {
        await api.post("folders", { path: whole }).catch(() => {});
        live.changed("files");
        continue;
      }
      const left = this.items.find((each) => each.state === "left" && each.size === file.size && (each.path === whole || split(each.path)[1] === wire(file.name)));
      if (left) Object.assign(left, { file, state: "queued" });
      else this.items.push({ path: whole, file, size: file.size, offset: 0, id: null, state: "queued", error: "", replace: false });
    }
    this.tell();
    this.pump();
  }

  /** What was begun before and is not whole, and is not another tab's. */
  async loadLeft() {
    try {
      // Another tab may be gone since.
      this.others.clear();
      tabs?.postMessage({ who: true });
      const [{ uploads }] = await Promise.all([api.get("uploads"), new Promise((done) => setTimeout(done, tabs ? OTHERS_MS : 0))]);
      for (const { id, path, size, offset } of uploads ?? []) {
        if (!this.others.has(id) && !this.items.some((each) => each.id === id)) this.items.push({ path, file: null, size, offset, id, state: "left", error: "" });
      }
      this.tell();
    } catch {
      // Without it they are begun anew.
    }
  }

  pump() {
    while (!this.isPaused && this.items.filter((each) => ["running", "waiting"].includes(each.state)).length < AT_ONCE) {
      const next = this.items.find((each) => each.state === "queued");
      if (!next) break;
      next.state = "running";
      this.run(next);
    }
    this.tell();
  }

  async run(item) {
    try {
      await this.send(item);
      item.state = "keeping";
      item.offset = item.size;
      this.askSoon();
    } catch (error) {
      if (item.state === "cancelled") {
        this.items = this.items.filter((each) => each !== item);
        if (item.id) await api.post(`uploads/${item.id}/cancel`).catch(() => {});
      } else if (error.stop === "paused") item.state = "paused";
      else if (error.code === "exists") await this.taken(item);
      else if (error.code === "not_kept") item.state = "left_out";
      else Object.assign(item, { state: "failed", error: error.status === undefined ? t("upload.unreadable") : errorText(error) });
      // What the cell knows nothing of is begun anew when it is tried again.
      if (error.status === 404) Object.assign(item, { id: null, offset: 0 });
      if (error.status === undefined && !error.stop) console.warn(error);
    }
    this.pump();
  }

  /** Asks in so many ms, or before, which of those that have arrived are kept by now, until all are. */
  askSoon(ms = KEEPING_MS) {
    const at = performance.now() + ms;
    if (this.isAsking || this.askAt <= at) return;
    this.askAt = at;
    clearTimeout(this.asking);
    this.asking = setTimeout(async () => {
      this.isAsking = true;
      // Of what arrives while the cell is asked the answer knows nothing.
      const waiting = this.items.filter((each) => ["keeping", "unkept"].includes(each.state));
      const told = await api.get("uploads").catch(() => null);
      for (const each of told ? waiting : []) {
        const [state, error] = await this.look(each, told);
        if (state === each.state && error === each.error) continue;
        Object.assign(each, { state, error });
        if (state === "done") live.changed("files");
        this.tell();
      }
      Object.assign(this, { isAsking: false, askAt: Infinity });
      if (this.items.some((each) => each.state === "keeping")) this.askSoon();
      else if (this.items.some((each) => each.state === "unkept")) this.askSoon(UNKEPT_MS);
    }, ms);
  }

  /** What has become of one that has arrived: its state, and why it is not kept. */
  async look(item, { keeping = [], unkept = [], run }) {
    const why = unkept.find((each) => each.id === item.id);
    if (why) return ["unkept", `${format.sentence(why.why)} ${why.hint}`];
    // A cell that was started anew knows nothing of it, and keeps what lies in its folder by itself: then its list has it.
    const isKept = !keeping.includes(item.id) && (run === item.run || await isListed(item));
    return [isKept ? "done" : "keeping", ""];
  }

  /** Tries again to keep what has arrived. */
  async keepAgain(item) {
    item.state = "keeping";
    this.tell();
    await api.post(`uploads/${item.id}/finish`).then((told) => { item.run = told.run; }, () => {});
    this.askSoon();
  }

  async send(item) {
    let misses = 0;
    // What the cell does not answer is asked again until it does.
    const patiently = async (work) => {
      for (;;) {
        this.check(item);
        try {
          const told = await work();
          misses = 0;
          if (item.state === "waiting") item.state = "running";
          return told;
        } catch (error) {
          // Who is signed out may send little, and is told so; it goes on after signing in.
          const isAway = [0, 401, 413, 503, 504].includes(error.status);
          if (!isAway) throw error;
          if (item.state !== "cancelled") item.state = "waiting";
          this.tell();
          await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(misses, RETRY_MS.length - 1)]));
          misses += 1;
        }
      }
    };
    const begin = async () => {
      const { id, offset } = await patiently(() => api.post("uploads", {
        path: item.path, size: item.size, modified_unix_ms: item.file.lastModified, replace: item.replace === true }));
      Object.assign(item, { id, offset });
    };
    if (!item.id) await begin();
    while (item.offset < item.size) {
      this.check(item);
      const bytes = await item.file.slice(item.offset, item.offset + PIECE).arrayBuffer();
      try {
        const { offset } = await patiently(() => api.putRaw(`uploads/${item.id}`, { offset: item.offset }, bytes, { limit: 120000 }));
        this.rates.push([performance.now(), offset - item.offset]);
        item.offset = offset;
      } catch (error) {
        const offset = error.more?.offset;
        if (error.code === "wrong_offset" && Number.isInteger(offset)) item.offset = offset;
        else if (error.status === 404) await begin();
        else throw error;
      }
      this.tell();
    }
    try {
      item.run = (await patiently(() => api.post(`uploads/${item.id}/finish`, {}, { limit: 120000 }))).run;
    } catch (error) {
      // It was put in place, the answer was lost, and the cell was started anew.
      if (error.status !== 404 || !await isListed(item)) throw error;
    }
  }

  check(item) {
    if (item.state === "cancelled") throw Object.assign(new Error("cancelled"), { stop: "cancelled" });
    if (this.isPaused || item.pausing) {
      item.pausing = false;
      throw Object.assign(new Error("paused"), { stop: "paused" });
    }
  }

  async taken(item) {
    if (item.id) await api.post(`uploads/${item.id}/cancel`).catch(() => {});
    Object.assign(item, { state: "taken", id: null, offset: 0 });
    if (this.forAll) this.settle(item, this.forAll);
  }

  /** What is to be done where the name is taken: `replace`, `both` or `skip`; for all others too. */
  settle(item, what, all = false) {
    if (all) this.forAll = what;
    for (const each of all ? this.items.filter((one) => one.state === "taken") : [item]) {
      if (what === "skip") this.items = this.items.filter((one) => one !== each);
      else {
        if (what === "replace") each.replace = true;
        else {
          const [folder, name] = split(each.path);
          each.tries = (each.tries ?? 1) + 1;
          each.first ??= name;
          each.path = join(folder, numbered(each.first, each.tries));
        }
        each.state = "queued";
      }
    }
    this.pump();
  }

  pause() {
    this.isPaused = true;
    for (const each of this.items) if (each.state === "queued") each.state = "paused";
    this.tell();
  }

  resume() {
    this.isPaused = false;
    for (const each of this.items) if (each.state === "paused" || (each.state === "failed" && each.file)) Object.assign(each, { state: "queued", pausing: false });
    this.pump();
  }

  retry(item) {
    Object.assign(item, { state: "queued", error: "" });
    this.isPaused = false;
    this.pump();
  }

  async cancel(item) {
    const { id, state } = item;
    item.state = "cancelled";
    // One that is under way ends after its piece: see `run`.
    if (["running", "waiting"].includes(state)) {
      this.tell();
      return;
    }
    this.items = this.items.filter((each) => each !== item);
    if (id && !hasArrived({ state })) await api.post(`uploads/${id}/cancel`).catch(() => {});
    this.tell();
    this.pump();
  }

  async cancelAll() {
    for (const each of [...this.items]) if (!hasArrived(each)) await this.cancel(each);
    this.clear();
  }

  clear() {
    this.items = this.items.filter((each) => !hasArrived(each));
    this.forAll = null;
    this.tell();
  }
}

// From drops and choosers

async function walk(entry, prefix, found) {
  const path = join(prefix, entry.name);
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed)).catch(() => null);
    if (file) found.push({ file, path });
    return;
  }
  const reader = entry.createReader();
  let count = 0;
  for (;;) {
    const some = await new Promise((done) => reader.readEntries(done, () => done([])));
    if (some.length === 0) break;
    count += some.length;
    for (const each of some) await walk(each, path, found);
  }
  if (count === 0) found.push({ file: null, path });
}

/** The files of a drop, folders looked into. */
export async function fromDrop(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  for (const entry of entries) {
    if (entry instanceof File) found.push({ file: entry, path: entry.name });
    else if (entry) await walk(entry, "", found);
  }
  return found;
}

/** The files of an input, with their folders. */
export const fromInput = (input) => [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/** Opens the browser's chooser. */
export function choose(run, { folder = false } = {}) {
  const input = el("input", { type: "file", multiple: true, className: "sr", attrs: { tabindex: "-1", "aria-hidden": "true" }, on: {
    change: () => { run(fromInput(input)); input.remove(); }, cancel: () => input.remove() } });
  if (folder) input.webkitdirectory = true;
  document.body.append(input);
  input.click();
}

/** Lets files be dropped on `target`; it has the class `over` meanwhile. */
export function takeDrops(target, run, signal) {
  let depth = 0;
  const isFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const on = (name, listener) => target.addEventListener(name, (event) => { if (isFiles(event)) { event.preventDefault(); listener(event); } }, { signal });
  on("dragenter", () => { depth += 1; target.classList.add("over"); });
  on("dragover", (event) => { event.dataTransfer.dropEffect = "copy"; });
  on("dragleave", () => { depth -= 1; if (depth <= 0) { depth = 0; target.classList.remove("over"); } });
  on("drop", (event) => { depth = 0; target.classList.remove("over"); run(fromDrop(event.dataTransfer)); });
}

/** A place to drop or choose files. */
export function dropZone(run) {
  const zone = el("div", { className: "drop-zone" }, icon("upload"), el("p", {}, t("walk.files.drop")),
    button(t("walk.files.choose"), () => choose(run), {}));
  takeDrops(zone, run);
  return zone;
}

// Seen

const STATE_TEXT = { queued: "upload.queued", paused: "upload.paused", waiting: "upload.waiting", keeping: "upload.keeping", done: "upload.done", left: "upload.left", left_out: "upload.left_out" };

function row(uploads, item) {
  const name = shown(split(item.path)[1]);
  const done = hasArrived(item);
  const text = item.state === "failed" ? item.error : item.state === "unkept" ? t("upload.unkept", { why: item.error }) : item.state === "taken" ? t("upload.taken")
    : item.state === "running" ? t("upload.of", { done: format.bytes(item.offset), total: format.bytes(item.size) }) : t(STATE_TEXT[item.state] ?? "wait");
  return el("li", { className: `upload ${item.state}`, data: { path: item.path } },
    icon(item.state === "done" ? "check" : ["failed", "taken", "unkept"].includes(item.state) ? "warn" : "file"),
    el("div", { className: "upload-words" }, el("p", { className: "cut", title: shown(item.path) }, name), el("p", { className: "small muted" }, text),
      item.state === "taken" && el("div", { className: "actions" },
        button(t("upload.replace"), () => uploads.settle(item, "replace"), { className: "button small-button" }),
        button(t("upload.both"), () => uploads.settle(item, "both"), { className: "button small-button" }),
        button(t("upload.skip"), () => uploads.settle(item, "skip"), { className: "button small-button" }),
        uploads.items.filter((each) => each.state === "taken").length > 1 && button(t("upload.both_all"), () => uploads.settle(item, "both", true), { className: "button small-button" })),
      ["running", "paused", "waiting", "left"].includes(item.state) && meter(item.offset, item.size || 1, name)),
    item.state === "failed" && item.file && iconButton("refresh", t("retry"), () => uploads.retry(item)),
    item.state === "unkept" && iconButton("refresh", t("retry"), () => uploads.keepAgain(item)),
    item.state === "left" && button(t("upload.choose"), () => choose((found) => uploads.add(found.map(({ file }) => ({ file, path: name })), split(item.path)[0])), { className: "button small-button" }),
    !done && iconButton("close", t("upload.cancel", { name }), () => uploads.cancel(item)));
}

/** Rows stay while their state does, so that a focused button is not lost to a number. */
function patch(list, uploads, items) {
  const nodes = items.map((item) => {
    const key = `${item.state} ${item.path} ${item.error} ${item.state === "taken" ? uploads.items.filter((each) => each.state === "taken").length > 1 : ""}`;
    const kept = list.rows?.get(item);
    if (kept?.key !== key) return [item, { key, node: row(uploads, item) }];
    if (item.state === "running") {
      kept.node.querySelector(".muted").textContent = t("upload.of", { done: format.bytes(item.offset), total: format.bytes(item.size) });
      kept.node.querySelector("progress").value = item.offset;
    }
    return [item, kept];
  });
  list.rows = new Map(nodes);
  const wanted = nodes.map(([, { node }]) => node);
  if (wanted.length !== list.children.length || wanted.some((node, n) => list.children[n] !== node)) list.replaceChildren(...wanted);
}

/** The list of uploads with its heading; hidden while there are none. */
export function uploadList(uploads, { signal, tray = false } = {}) {
  const heading = el("p", { className: "strong" });
  const told = el("p", { className: "small muted number" });
  const bar = meter(0, 1, t("upload.all"));
  const pause = iconButton("pause", t("upload.pause"), () => (uploads.isPaused || !uploads.isBusy ? uploads.resume() : uploads.pause()));
  const end = iconButton("close", t("upload.close"), () => (uploads.isBusy ? uploads.cancelAll() : uploads.items.some((each) => !hasArrived(each)) ? uploads.cancelAll() : uploads.clear()));
  const fold = iconButton("down", t("upload.fold"), () => root.classList.toggle("folded"));
  const list = el("ul", {});
  const live = el("p", { className: "sr", attrs: { role: "status" } });
  const root = el("section", { className: `uploads ${tray ? "tray" : ""}`, aria: { label: t("upload.title") }, hidden: true },
    el("header", {}, el("div", { className: "upload-words" }, heading, told), pause, tray && fold, end), bar, list, live);
  let wasAt = "";
  uploads.watch(() => {
    root.hidden = !uploads.items.some((each) => each.state !== "cancelled");
    if (root.hidden) return;
    const { bytes, sent, rate, left, done, files } = uploads.sums();
    const open = uploads.items.filter((each) => !hasArrived(each) && each.state !== "cancelled");
    const of = (state) => uploads.items.filter((each) => each.state === state).length;
    const keeping = of("keeping");
    const arrived = [["keeping", "upload.keeping_all"], ["unkept", "upload.unkept_all"], ["done", "upload.finished"], ["left_out", "upload.left_out_all"]].find(([state]) => of(state) > 0) ?? ["done", "upload.finished"];
    const busy = uploads.isBusy;
    heading.textContent = busy ? t("upload.busy", { done: format.number(done), files: format.counted(files, "count.file") })
      : open.some((each) => each.state === "paused") ? t("upload.is_paused") : open.length > 0 ? t("upload.attention") : t(arrived[1], { files: format.counted(of(arrived[0]), "count.file") });
    told.textContent = busy ? [t("upload.of", { done: format.bytes(sent), total: format.bytes(bytes) }), rate > 0 && format.rate(rate),
      rate > 0 && Number.isFinite(left) && t("upload.time", { span: format.left(left) })].filter(Boolean).join(" · ") : bytes > 0 ? format.bytes(bytes) : "";
    Object.assign(bar, { max: bytes || 1, value: sent });
    bar.hidden = !busy;
    const canGo = open.some((each) => each.state === "paused");
    pause.hidden = !busy && !canGo;
    pause.replaceChildren(icon(canGo && !busy ? "play" : "pause"));
    pause.setAttribute("aria-label", t(canGo && !busy ? "upload.resume" : "upload.pause"));
    pause.title = pause.getAttribute("aria-label");
    const rank = { taken: 0, failed: 1, unkept: 1, running: 2, waiting: 2, left: 3, paused: 4, queued: 5, keeping: 6, done: 7, left_out: 8 };
    const items = uploads.items.filter((each) => each.state !== "cancelled").sort((a, b) => rank[a.state] - rank[b.state]).slice(0, SHOWN_MAX);
    patch(list, uploads, items);
    // Told to readers when it begins, when all has arrived, and when all is kept.
    const stage = busy ? "busy" : keeping > 0 ? "keeping" : of("unkept") > 0 ? "unkept" : "";
    if (wasAt !== stage) live.textContent = heading.textContent;
    wasAt = stage;
  }, signal);
  return root;
}

/** The tray at the edge of the page, once. */
export function showTray() {
  if (document.getElementById("tray")) return;
  const tray = uploadList(Uploads.shared(), { tray: true });
  tray.id = "tray";
  document.body.append(tray);
  Uploads.shared().loadLeft();
}
