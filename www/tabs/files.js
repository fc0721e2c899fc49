// Files: a folder as list or gallery, with all that one does with files.

import { ApiError } from "../api.js";
import { Listing, VirtualList } from "../files/listing.js";
import { iconOf, isSeen, join, kindOf, show, split, wire } from "../files/names.js";
import { openLightbox } from "../files/lightbox.js";
import * as thumbs from "../files/thumbs.js";
import { Uploads, choose, showTray, takeDrops } from "../files/uploads.js";
import { askText, button, empty, fail, iconButton, menu } from "../ui/pieces.js";

const SORTS = ["name", "size", "modified", "kind"];
const kept = { view: localStorage.getItem("files.view") ?? "list", sort: localStorage.getItem("files.sort") ?? "name", order: localStorage.getItem("files.order") ?? "up" };

// Paths of one request, and how long one about so many may take.
const PATHS_MAX = 1000;
const LONG = { limit: 300_000 };
// Entries of the Recycle Bin that are shown at once.
const BIN_STEP = 100;
const BIN_PAGE = 1000;
/** What tells entries that are dragged from all else that may be. */
const DRAGGED = "application/x-grove-entries";

let page = null;

class FilesPage {
  constructor(root, ctx) {
    this.ctx = ctx;
    this.folder = "";
    this.query = "";
    this.selected = new Map();
    this.anchor = 0;
    const { el, t } = ctx;
    showTray();
    this.search = el("input", { type: "search", placeholder: t("files.search"), aria: { label: t("files.search") }, autocomplete: "off", spellcheck: false,
      on: { input: () => this.searchSoon() } });
    this.viewButtons = ["list", "grid"].map((view) => iconButton(view, t(`files.view.${view}`), () => this.setView(view)));
    this.add = button(t("files.add"), () => this.addMenu(), { kind: "main", icon: "plus", attrs: { "aria-haspopup": "menu" } });
    const { root: frame, body, head } = ctx.page(t("tab.files"), ...this.viewButtons, iconButton("trash", t("files.bin"), () => { location.hash = "#/files?bin"; }), this.add);
    frame.classList.add("files");
    this.frame = frame;
    head.classList.add("files-head");
    this.crumbs = el("nav", { className: "crumbs", aria: { label: t("files.crumbs") } });
    this.tools = el("div", { className: "files-tools" }, el("div", { className: "search-box" }, ctx.icon("search"), this.search));
    this.sorter = el("div", { className: "files-sort" });
    this.selection = el("div", { className: "selection", hidden: true, attrs: { role: "toolbar" }, aria: { label: t("files.selection") } });
    this.list = new VirtualList({
      label: t("tab.files"), signal: ctx.signal,
      rowHeight: () => (kept.view === "list" ? (innerWidth <= 760 ? 64 : 52) : this.tileWidth() * 0.78 + 62),
      columns: () => (kept.view === "list" ? 1 : this.tileColumns()),
      build: (entry, n) => (kept.view === "list" ? this.row(entry, n) : this.tile(entry, n)),
    });
    this.note = el("div", { className: "files-note" });
    this.tree = el("nav", { className: "card tree", aria: { label: t("files.tree") } });
    this.main = el("div", { className: "files-main" }, this.crumbs, this.tools, this.selection, el("div", { className: "card files-card" }, this.sorter, this.list.root, this.note));
    body.classList.add("files-body");
    body.append(this.tree, this.main);
    root.append(frame);
    takeDrops(frame, (found) => Uploads.shared().add(found, this.folder), ctx.signal);
    frame.append(el("div", { className: "drop-veil", aria: { hidden: "true" } }, ctx.icon("upload"), el("p", {}, t("files.drop"))));
    frame.addEventListener("keydown", (event) => this.onKey(event));
    this.takeDrags(frame);
    ctx.events.on("files", () => this.refresh());
    this.buildTree();
  }

  // Where we are

  show(path, query) {
    const folder = path.join("/");
    const isSame = this.listing && folder === this.folder && !this.query;
    this.folder = folder;
    if (!isSame) {
      this.query = "";
      this.search.value = "";
      this.selected.clear();
      this.openListing();
      if (scrollY > 0) scrollTo(0, 0);
    }
    this.paintCrumbs();
    this.openTree();
    this.paintTree();
    const asked = query.get("show");
    if (asked) this.details(join(folder, asked));
  }

  openListing() {
    this.listing?.close();
    const { api } = this.ctx;
    const { folder, query } = this;
    const found = { count: 0, more: true };
    const read = query
      ? async (offset, limit, signal) => {
        const { entries, more } = await api.get("search", { q: query, offset, limit: Math.min(limit, 200) }, { signal });
        found.count = Math.max(found.count, offset + entries.length + (more ? 1 : 0));
        return { entries: entries.map((entry) => ({ ...entry, name: show(entry.name), path: entry.path ?? entry.name })), total: found.count };
      }
      : async (offset, limit, signal) => {
        const { entries, total } = await api.get("files", { folder, sort: kept.sort, order: kept.order, offset, limit }, { signal });
        return { entries: entries.map((entry) => ({ ...entry, name: show(entry.name), path: join(folder, entry.name) })), total };
      };
    this.listing = new Listing(read, () => this.changed());
    this.listing.onError = (error) => {
      if (error.status === -1) return;
      this.note.replaceChildren(empty("warn", this.ctx.format.sentence(error.message), this.ctx.format.sentence(error.hint), button(this.ctx.t("retry"), () => this.openListing(), { icon: "refresh" }),
        this.folder && button(this.ctx.t("files.up"), () => this.ctx.go("files"))));
      this.listing.total ??= 0;
      this.list.paint();
    };
    this.note.replaceChildren();
    this.list.show(this.listing);
    this.paintSort();
    this.paintSelection();
  }

  changed() {
    const { t, format } = this.ctx;
    const { total } = this.listing;
    this.list.soon();
    this.sorter.hidden = total === 0;
    if (total === 0) {
      this.note.replaceChildren(this.query ? empty("search", t("files.none_found"), t("files.none_found.text", { query: this.query }))
        : this.folder ? empty("folder", t("files.empty_folder"), t("files.empty_folder.text"), button(t("files.upload"), () => this.upload(), { kind: "main", icon: "upload" }))
        : empty("files", t("files.empty"), t("files.empty.text"), button(t("files.upload"), () => this.upload(), { kind: "main", icon: "upload" }),
          button(t("files.upload_folder"), () => this.upload(true), { icon: "folder" })));
    } else this.note.replaceChildren();
    this.count.textContent = this.query ? t("files.found", { n: format.number(total) }) : format.counted(total, "count.entry");
  }

  refresh() {
    clearTimeout(this.refreshing);
    this.refreshing = setTimeout(() => {
      if (!this.listing || this.ctx.signal.aborted) return;
      this.listing.stale();
      this.list.paint();
      this.buildTree();
    }, 250);
  }

  // Crumbs and tree

  paintCrumbs() {
    const { el, t, href } = this.ctx;
    const names = this.folder ? this.folder.split("/") : [];
    const parts = [[t("files.root"), []], ...names.map((name, n) => [name, names.slice(0, n + 1)])];
    this.crumbs.replaceChildren(el("ol", {}, parts.map(([name, path], n) => el("li", {}, n > 0 && this.ctx.icon("next"),
      el("a", { href: href("files", ...path), title: show(name), data: { drop: path.join("/") }, attrs: { draggable: "false" }, aria: n === parts.length - 1 ? { current: "page" } : {} }, show(name))))));
    this.crumbs.scrollLeft = this.crumbs.scrollWidth;
  }

  async foldersOf(folder) {
    const folders = [];
    for (let offset = 0; offset < 2000;) {
      const { entries, total } = await this.ctx.api.get("files", { folder, sort: "name", order: "up", offset, limit: 200 }, { signal: this.ctx.signal });
      const some = entries.filter((entry) => entry.kind === "folder");
      folders.push(...some.map((entry) => entry.name));
      offset += entries.length;
      if (some.length < entries.length || offset >= total || entries.length === 0) break;
    }
    return folders;
  }

  async buildTree() {
    if (!matchMedia("(min-width: 1100px)").matches) return;
    this.treeOpen ??= new Set([""]);
    const build = async (folder) => {
      const folders = await this.foldersOf(folder);
      const { el } = this.ctx;
      const items = [];
      for (const name of folders) {
        const path = join(folder, name);
        const isOpen = this.treeOpen.has(path);
        const toggle = iconButton(isOpen ? "down" : "next", this.ctx.t(isOpen ? "files.tree.shut" : "files.tree.open", { name: show(name) }), () => {
          if (this.treeOpen.has(path)) this.treeOpen.delete(path);
          else this.treeOpen.add(path);
          this.buildTree().then(() => this.tree.querySelector(`[data-toggle="${CSS.escape(path)}"]`)?.focus());
        }, { className: "icon-button twist", aria: { expanded: String(isOpen), label: this.ctx.t(isOpen ? "files.tree.shut" : "files.tree.open", { name: show(name) }) }, data: { toggle: path } });
        items.push(el("li", {}, el("div", { className: "tree-row" }, toggle, el("a", { href: this.ctx.href("files", ...path.split("/")), data: { folder: path, drop: path }, attrs: { draggable: "false" }, title: show(name) }, show(name))),
          isOpen && await build(path)));
      }
      return items.length > 0 ? el("ul", {}, items) : null;
    };
    try {
      const mine = (this.treeRun = (this.treeRun ?? 0) + 1);
      const inner = await build("");
      if (mine !== this.treeRun) return;
      const { el, t, href } = this.ctx;
      this.tree.replaceChildren(...[el("a", { className: "tree-top", href: href("files"), data: { folder: "", drop: "" }, attrs: { draggable: "false" } }, this.ctx.icon("home"), t("files.root")), inner].filter(Boolean));
      this.paintTree();
    } catch (error) {
      if (error.status === undefined) console.warn(error);
    }
  }

  /** The folders above this one are open in the tree. */
  openTree() {
    this.treeOpen ??= new Set([""]);
    const before = this.treeOpen.size;
    for (let [above] = split(this.folder); above; [above] = split(above)) this.treeOpen.add(above);
    if (this.treeOpen.size > before) this.buildTree();
  }

  paintTree() {
    for (const link of this.tree.querySelectorAll("a[data-folder]")) {
      if (link.dataset.folder === this.folder) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  // Views

  tileColumns() {
    const width = this.list.root.clientWidth || 600;
    return Math.max(2, Math.floor(width / 172));
  }

  tileWidth() {
    return (this.list.root.clientWidth || 600) / this.tileColumns();
  }

  setView(view) {
    kept.view = view;
    localStorage.setItem("files.view", view);
    this.list.clear();
    this.list.paint();
    this.paintSort();
  }

  setSort(sort, order) {
    Object.assign(kept, { sort, order });
    localStorage.setItem("files.sort", sort);
    localStorage.setItem("files.order", order);
    this.openListing();
  }

  paintSort() {
    const { el, t, icon } = this.ctx;
    this.viewButtons.forEach((each, n) => each.setAttribute("aria-pressed", String(["list", "grid"][n] === kept.view)));
    const by = (sort) => el("button", { type: "button", className: `sort-${sort}`, aria: { pressed: String(kept.sort === sort), label: t("files.sort_by", { what: t(`files.sort.${sort}`) }) },
      on: { click: () => this.setSort(sort, kept.sort === sort && kept.order === "up" ? "down" : "up") } }, t(`files.sort.${sort}`), kept.sort === sort && icon(kept.order === "up" ? "up" : "down"));
    this.count = el("span", { className: "muted small number" }, this.count?.textContent ?? "");
    const all = el("input", { type: "checkbox", aria: { label: t("files.select_all") }, on: { change: () => this.selectAll(all.checked) } });
    this.allBox = all;
    this.sorter.className = `files-sort ${kept.view}`;
    this.sorter.replaceChildren(...(this.query ? [el("span", {}, all), this.count]
      : [el("span", {}, all), ...(kept.view === "list" ? ["name", "size", "modified"] : SORTS).map(by), this.count]));
  }

  state(entry) {
    const { t } = this.ctx;
    const marks = [];
    if (entry.shared) marks.push(el2(this.ctx, "share", t("files.shared")));
    if (entry.state === "away") marks.push(el2(this.ctx, "away", t("files.away")));
    if (entry.state === "waiting") marks.push(el2(this.ctx, "refresh", t("files.waiting")));
    return marks;
  }

  copies(entry) {
    const { t, el } = this.ctx;
    if (entry.kind !== "file" || !entry.copies || entry.size === 0) return null;
    const { have, want } = entry.copies;
    const good = have >= want;
    return el("span", { className: `copies ${good ? "good" : "short"}`, title: t("files.copies.title", { have, want }), aria: { label: t("files.copies.title", { have, want }) }, attrs: { role: "img" } },
      this.ctx.icon(good ? "shield" : "versions"), `${have}/${want}`);
  }

  picture(entry) {
    const { el, icon } = this.ctx;
    const canvas = thumbs.canShow(entry) ? el("canvas", { width: 1, height: 1, aria: { hidden: "true" } }) : null;
    const box = el("span", { className: `picture ${entry.kind === "folder" ? "folder" : kindOf(entry.name)}` }, icon(iconOf(entry)), canvas);
    if (canvas) {
      const gone = new AbortController();
      this.ctx.signal.addEventListener("abort", () => gone.abort(), { once: true });
      setTimeout(() => { if (canvas.isConnected) thumbs.draw(canvas, entry, gone.signal); }, 60);
    }
    return box;
  }

  check(entry, n) {
    const { el, t } = this.ctx;
    return el("input", { type: "checkbox", checked: this.selected.has(entry.path), data: { role: "check" }, aria: { label: t("files.select", { name: entry.name }) }, attrs: { tabindex: "-1" },
      on: { click: (event) => this.pick(n, event.shiftKey, event.target.checked) } });
  }

  name(entry, n, className) {
    const { el } = this.ctx;
    const props = { className, title: entry.name, data: { role: "open" }, attrs: { tabindex: n === this.list.active ? "0" : "-1" }, on: { focus: () => { this.list.active = n; } } };
    return entry.kind === "folder" ? el("a", { ...props, href: this.ctx.href("files", ...entry.path.split("/")) }, entry.name)
      : el("button", { ...props, type: "button", on: { ...props.on, click: () => this.openEntry(n) } }, entry.name);
  }

  tools4(entry, n) {
    const more = iconButton("more", this.ctx.t("files.more", { name: entry.name }), () => this.entryMenu(more, entry, n), { attrs: { "aria-haspopup": "menu", tabindex: "-1" } });
    more.dataset.role = "menu";
    return more;
  }

  row(entry, n) {
    const { el, format, t } = this.ctx;
    const modified = entry.modified_unix_ms / 1000;
    const sub = [this.query && (show(split(entry.path)[0]) || t("files.root")), entry.kind === "folder" ? t("files.kind.folder") : format.bytes(entry.size), entry.kind !== "folder" && format.when(modified)].filter(Boolean).join(" · ");
    return el("li", { className: `file-row ${this.selected.has(entry.path) ? "selected" : ""}`, ...this.dragged(entry, n), on: { contextmenu: (event) => { event.preventDefault(); this.entryMenu(event.target, entry, n, event); } } },
      this.check(entry, n), this.picture(entry),
      el("div", { className: "file-words" }, this.name(entry, n, "file-name cut"), el("span", { className: `file-sub small muted cut ${this.query ? "always" : ""}` }, sub)),
      el("span", { className: "file-marks" }, this.state(entry), this.copies(entry)),
      el("span", { className: "file-size number muted" }, entry.kind === "folder" ? "–" : format.bytes(entry.size)),
      el("span", { className: "file-date number muted" }, format.when(modified)),
      this.tools4(entry, n));
  }

  tile(entry, n) {
    const { el, format, t } = this.ctx;
    return el("li", { className: `file-tile ${this.selected.has(entry.path) ? "selected" : ""}`, ...this.dragged(entry, n), on: { contextmenu: (event) => { event.preventDefault(); this.entryMenu(event.target, entry, n, event); } } },
      el("div", { className: "tile-box" }, this.picture(entry), this.check(entry, n), el("span", { className: "file-marks" }, this.state(entry)),
        el("div", { className: "tile-foot" }, el("div", { className: "file-words" }, this.name(entry, n, "file-name cut"),
          el("span", { className: "small muted cut" }, entry.kind === "folder" ? t("files.kind.folder") : format.bytes(entry.size))), this.tools4(entry, n))));
  }

  // Selection

  pick(n, isRange, on) {
    const from = isRange ? Math.min(this.anchor, n) : n;
    const to = isRange ? Math.max(this.anchor, n) : n;
    for (let each = from; each <= to; each += 1) {
      const entry = this.listing.at(each);
      if (!entry) continue;
      if (on) this.selected.set(entry.path, entry);
      else this.selected.delete(entry.path);
    }
    this.anchor = n;
    this.list.repaint();
    this.paintSelection();
  }

  async selectAll(on) {
    this.selected.clear();
    if (on) {
      try {
        for (const entry of await this.listing.all()) this.selected.set(entry.path, entry);
      } catch (error) {
        fail(error);
      }
    }
    this.list.repaint();
    this.paintSelection();
  }

  paintSelection() {
    const { t, format, el } = this.ctx;
    const chosen = [...this.selected.values()];
    this.selection.hidden = chosen.length === 0;
    this.allBox.checked = chosen.length > 0 && chosen.length >= (this.listing.total ?? 0);
    this.allBox.indeterminate = chosen.length > 0 && !this.allBox.checked;
    if (chosen.length === 0) return;
    const bytes = chosen.reduce((sum, entry) => sum + (entry.size ?? 0), 0);
    const act = (drawing, key, run, danger) => button(t(key), run, { icon: drawing, kind: danger ? "plain" : "plain", className: `button small-button ${danger ? "danger-text" : ""}` });
    this.selection.replaceChildren(
      iconButton("close", t("files.unselect"), () => this.selectAll(false)),
      el("span", { className: "strong number", attrs: { role: "status" } }, t("files.selected", { n: format.number(chosen.length), bytes: format.bytes(bytes) })),
      el("span", { className: "actions" }, act("download", "files.download", () => this.download(chosen)), act("share", "files.share", () => this.share(chosen)),
        act("move", "files.move", () => this.move(chosen)), act("away", "files.free", () => this.free(chosen)), act("trash", "files.remove", () => this.remove(chosen), true)));
  }

  onKey(event) {
    const { target, key } = event;
    if (target.matches("input[type=search], dialog *") || !target.closest(".virtual")) {
      if (key === "/" && !target.matches("input, textarea")) { event.preventDefault(); this.search.focus(); }
      else if (key === "ArrowDown" && target === this.search) { event.preventDefault(); this.list.focus(0); }
      return;
    }
    const columns = this.list.columns();
    const n = this.list.active;
    const entry = this.listing.at(n);
    const chosen = () => (this.selected.size > 0 ? [...this.selected.values()] : [entry]);
    const jumps = { ArrowDown: columns, ArrowUp: -columns, PageDown: columns * 10, PageUp: -columns * 10, ...(columns > 1 ? { ArrowRight: 1, ArrowLeft: -1 } : {}) };
    if (key in jumps) {
      if (event.shiftKey) this.pick(Math.max(0, Math.min(this.listing.total - 1, n + jumps[key])), true, true);
      this.list.focus(n + jumps[key]);
    } else if (key === "Home") this.list.focus(0);
    else if (key === "End") this.list.focus(this.listing.total - 1);
    else if (key === " " && target.dataset.role !== "menu") this.pick(n, false, !this.selected.has(entry?.path));
    else if (key === "a" && (event.ctrlKey || event.metaKey)) this.selectAll(true);
    else if (key === "Escape" && this.selected.size > 0) this.selectAll(false);
    else if (key === "Delete" && entry) this.remove(chosen());
    else if (key === "F2" && entry) this.rename(entry);
    else if (key === "Backspace" && this.folder) this.ctx.go("files", ...this.folder.split("/").slice(0, -1));
    else if ((key === "ContextMenu" || (key === "F10" && event.shiftKey)) && entry) this.entryMenu(target, entry, n);
    else return;
    event.preventDefault();
  }

  // Dragging

  /** What lets an entry's row or tile be dragged, and a folder's be dropped on. */
  dragged(entry, n) {
    return { data: { name: entry.name, at: n, ...(entry.kind === "folder" ? { drop: entry.path } : {}) }, attrs: { draggable: "true" } };
  }

  /** Entries are dragged into folders: rows, tiles, the way to here, the tree. With keys the same is done by "Move". */
  takeDrags(frame) {
    let dragged = null;
    let over = null;
    const paint = (target) => {
      if (target === over) return;
      over?.classList.remove("drop-here");
      target?.classList.add("drop-here");
      over = target;
    };
    // A folder takes neither itself, nor what holds it, nor what is in it already.
    const goes = (entry, to) => split(entry.path)[0] !== to && to !== entry.path && !to.startsWith(`${entry.path}/`);
    const target = (event) => {
      // Of a drag that ended unseen something may be left: files of the machine are none of it.
      const found = dragged && event.dataTransfer.types.includes(DRAGGED) && event.target.closest?.("[data-drop]");
      return found && dragged.every((entry) => entry.path !== found.dataset.drop) && dragged.some((entry) => goes(entry, found.dataset.drop)) ? found : null;
    };
    const on = (name, listener) => frame.addEventListener(name, listener, { signal: this.ctx.signal });
    const end = () => {
      dragged = null;
      paint(null);
      this.list.hold();
    };
    on("dragstart", (event) => {
      end();
      const row = event.target.closest?.(".virtual > li[draggable]");
      const entry = row && this.listing.at(Number(row.dataset.at));
      if (!entry) return;
      this.list.hold(row);
      dragged = this.selected.has(entry.path) ? [...this.selected.values()] : [entry];
      const { dataTransfer } = event;
      dataTransfer.clearData();
      dataTransfer.setData(DRAGGED, "");
      dataTransfer.setData("text/plain", dragged.map((each) => each.name).join("\n"));
      dataTransfer.effectAllowed = "move";
      if (dragged.length > 1) {
        const picture = this.ctx.el("div", { className: "drag-picture", aria: { hidden: "true" } }, this.ctx.format.counted(dragged.length, "count.entry"));
        document.body.append(picture);
        dataTransfer.setDragImage(picture, 12, 12);
        setTimeout(() => picture.remove());
      }
    });
    on("dragover", (event) => {
      const found = target(event);
      paint(found);
      if (!found) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "move";
    });
    on("dragleave", (event) => { if (!frame.contains(event.relatedTarget)) paint(null); });
    on("drop", (event) => {
      const found = target(event);
      if (!found) return void paint(null);
      event.preventDefault();
      const to = found.dataset.drop;
      const moving = dragged.filter((entry) => goes(entry, to));
      end();
      this.moveTo(moving, to);
      return undefined;
    });
    on("dragend", end);
  }

  // Search

  searchSoon() {
    clearTimeout(this.searching);
    this.searching = setTimeout(() => {
      const query = this.search.value.trim();
      if (query === this.query) return;
      this.query = query;
      this.selected.clear();
      this.openListing();
    }, 220);
  }

  // What one does

  openEntry(n) {
    const { listing, ctx } = this;
    const entry = listing.at(n);
    if (!entry) return;
    if (!isSeen(kindOf(entry.name))) return void this.details(entry.path);
    openLightbox({
      at: n, count: listing.total, entry: (k) => listing.fetch(k),
      url: (one) => ctx.api.url("content", { path: one.path, inline: 1 }),
      download: (one) => ctx.api.url("content", { path: one.path }),
      actions: (one, shut) => [iconButton("info", ctx.t("files.details"), () => { shut(); this.details(one.path); })],
    });
  }

  addMenu() {
    const { t } = this.ctx;
    menu(this.add, [
      { label: t("files.upload"), icon: "upload", run: () => this.upload() },
      { label: t("files.upload_folder"), icon: "folder", run: () => this.upload(true) },
      { label: t("files.new_folder"), icon: "new-folder", run: () => this.newFolder(this.folder) },
    ]);
  }

  entryMenu(anchor, entry, n, at) {
    const { t } = this.ctx;
    const isFolder = entry.kind === "folder";
    menu(anchor, [
      { label: t(isFolder ? "files.open" : "files.look"), icon: isFolder ? "folder" : "eye", run: () => (isFolder ? this.ctx.go("files", ...entry.path.split("/")) : this.openEntry(n)) },
      { label: t("files.details"), icon: "info", run: () => this.details(entry.path) },
      { label: t(isFolder ? "files.download_zip" : "files.download"), icon: "download", run: () => this.download([entry]) },
      { label: t("files.share"), icon: "share", run: () => this.share([entry]) },
      null,
      { label: t("files.rename"), icon: "edit", run: () => this.rename(entry) },
      { label: t("files.move"), icon: "move", run: () => this.move([entry]) },
      entry.state === "away" ? { label: t("files.bring_back"), icon: "restore", run: () => this.bringBack(entry) } : { label: t("files.free"), icon: "away", run: () => this.free([entry]) },
      null,
      { label: t("files.remove"), icon: "trash", danger: true, run: () => this.remove([entry]) },
    ], { at: at && { x: at.clientX, y: at.clientY } });
  }

  upload(isFolder = false) {
    choose((found) => Uploads.shared().add(found, this.folder), { folder: isFolder });
  }

  async newFolder(folder) {
    const { t, api } = this.ctx;
    const made = await askText(t("files.new_folder"), t("files.name"), "", t("files.create"), (name) => api.post("folders", { path: join(folder, wire(name.trim())) }));
    if (made) this.ctx.events.changed("files");
    return made;
  }

  async rename(entry) {
    const { t, api } = this.ctx;
    const [folder] = split(entry.path);
    const done = await askText(t("files.rename"), t("files.name"), entry.name, t("files.rename"), async (name) => {
      if (name.trim() !== entry.name) await api.post("move", { from: entry.path, to: join(folder, wire(name.trim())) });
    });
    if (done) {
      this.selected.delete(entry.path);
      this.ctx.events.changed("files");
    }
  }

  /**
   * Asks about all of them, up to 1,000 paths a request; says what failed. `undo` is offered with the paths that were done.
   * `ask` gives each path's result. Gives those that a person must be asked about anew, for there is more than was told.
   */
  async each(entries, ask, doneKey, undo) {
    const { t, format } = this.ctx;
    const done = [];
    let problem = null;
    let rest = [];
    for (let n = 0; n < entries.length; n += PATHS_MAX) {
      const slice = entries.slice(n, n + PATHS_MAX);
      try {
        const results = await ask(slice.map((entry) => entry.path));
        for (const [at, result] of results.entries()) {
          if (!result.error) done.push(slice[at].path);
          else if (!problem) problem = new ApiError(409, result.error.code, result.error.message, result.error.hint);
        }
      } catch (error) {
        if (error.code === "more_files") rest = entries.slice(n);
        else problem = error;
        break;
      }
    }
    for (const path of done) this.selected.delete(path);
    if (done.length > 0) {
      this.ctx.toast(t(doneKey, { entries: format.counted(done.length, "count.entry") }), { action: undo && { label: t("files.undo"), run: () => undo(done) } });
    }
    if (problem) fail(problem);
    this.list.repaint();
    this.paintSelection();
    this.ctx.events.changed("files");
    this.ctx.refresh();
    return rest;
  }

  async move(entries) {
    const { ctx } = this;
    const { el, t } = ctx;
    let at = this.folder;
    const places = el("div", { className: "places" });
    const paint = async () => {
      places.replaceChildren(el("p", { className: "strong cut" }, show(at) || t("files.root")));
      if (at) places.append(el("button", { type: "button", className: "place", on: { click: () => { at = split(at)[0]; paint(); } } }, ctx.icon("up"), el("span", {}, t("files.parent"))));
      const folders = await this.foldersOf(at).catch(() => []);
      for (const name of folders) {
        const path = join(at, name);
        if (entries.some((entry) => entry.path === path)) continue;
        places.append(el("button", { type: "button", className: "place", on: { click: () => { at = path; paint(); } } }, ctx.icon("folder"), el("span", { className: "cut" }, show(name))));
      }
      places.append(el("button", { type: "button", className: "place muted", on: { click: async () => { const made = await this.newFolder(at); if (made) { at = join(at, wire(made.trim())); paint(); } } } }, ctx.icon("new-folder"), el("span", {}, t("files.new_folder"))));
    };
    await paint();
    const go = await ctx.dialog({ title: t("files.move.title", { entries: ctx.format.counted(entries.length, "count.entry") }), body: [places],
      actions: [{ label: t("cancel"), value: false }, { label: t("files.move_here"), kind: "main", value: true, run: () => true }] });
    if (!go) return;
    await this.moveTo(entries.filter((entry) => split(entry.path)[0] !== at), at);
  }

  /** Moves them into a folder, and back where one thinks better of it. */
  async moveTo(entries, to, undo = true) {
    const ask = async (paths) => (await this.ctx.api.post("move", { paths, to }, LONG)).results;
    await this.each(entries, ask, "files.moved", undo && (async (paths) => {
      const from = new Map();
      for (const path of paths) {
        const [folder, name] = split(path);
        from.set(folder, [...(from.get(folder) ?? []), { path: join(to, name) }]);
      }
      for (const [folder, some] of from) await this.moveTo(some, folder, false);
    }));
  }

  async remove(entries) {
    const { t, format, ask, api } = this.ctx;
    for (let [rest, isAgain] = [entries, false]; rest.length > 0; isAgain = true) {
      const what = rest.length === 1 ? rest[0].name : format.counted(rest.length, "count.entry");
      const { files, bytes, all_files: all, pulls_brake: isMost } = await this.weigh(rest);
      const sum = { files: format.counted(files ?? 0, "count.file"), bytes: format.bytes(bytes ?? 0), all: format.number(all ?? 0) };
      const lines = [isAgain && t("files.remove.again"), t("files.remove.ask", { what }),
        isMost ? t("files.remove.many", sum) : files !== undefined && (files > 1 || rest[0].kind === "folder") && t("files.remove.sum", sum), t("files.remove.note", { span: binSpan(this.ctx) })];
      if (!await ask(t("files.remove"), lines.filter(Boolean), t("files.remove.do"), { danger: true })) return;
      // What was told is confirmed by this, and nothing beyond it; where nothing was told the brake may ask.
      const left = { files, bytes };
      rest = await this.each(rest, async (paths) => {
        const told = await api.post("rm", { paths, ...(isMost ? { confirmed: true, ...left } : {}) }, LONG);
        left.files -= told.files;
        left.bytes -= told.bytes;
        return told.results;
      }, "files.removed", (paths) => this.undelete(paths));
    }
  }

  /** How many files go with these, and whether that is so much that the brake would be pulled. */
  async weigh(entries) {
    let sum = {};
    try {
      for (let n = 0; n < entries.length; n += PATHS_MAX) {
        sum = await this.ctx.api.post("weigh", { paths: entries.slice(n, n + PATHS_MAX).map((entry) => entry.path), files: sum.files ?? 0, bytes: sum.bytes ?? 0 }, LONG);
      }
    } catch (error) {
      if (error.status === undefined) console.warn(error);
      return {};
    }
    return sum;
  }

  /** Brings back what was just removed. */
  async undelete(paths) {
    const { ctx } = this;
    let refused = [];
    try {
      for (let n = 0; n < paths.length; n += PATHS_MAX) refused = refused.concat((await ctx.api.job("restore", { paths: paths.slice(n, n + PATHS_MAX) })).refused ?? []);
      if (refused.length < paths.length) ctx.toast(ctx.t("files.undone", { entries: ctx.format.counted(paths.length - refused.length, "count.entry") }));
      if (refused.length > 0) fail(new ApiError(409, refused[0].error.code, refused[0].error.message, refused[0].error.hint));
    } catch (error) {
      fail(error);
    }
    ctx.events.changed("files");
    ctx.refresh();
  }

  async free(entries) {
    const { t, format, ask } = this.ctx;
    const what = entries.length === 1 ? entries[0].name : format.counted(entries.length, "count.entry");
    if (!await ask(t("files.free"), [t("files.free.ask", { what }), t("files.free.note")], t("files.free"))) return;
    await this.each(entries, async (paths) => (await this.ctx.api.post("rm", { paths, local: true }, LONG)).results, "files.freed");
  }

  async bringBack(entry) {
    this.ctx.toast(this.ctx.t("files.coming", { name: entry.name }));
    try {
      await this.ctx.api.job("restore", { path: entry.path });
      this.ctx.events.changed("files");
    } catch (error) {
      fail(error);
    }
  }

  download(entries) {
    entries.forEach((entry, n) => setTimeout(() => {
      const link = this.ctx.el("a", { href: this.ctx.api.url(entry.kind === "folder" ? "archive" : "content", { path: entry.path }), download: entry.kind === "folder" ? `${entry.name}.zip` : entry.name, className: "sr" });
      document.body.append(link);
      link.click();
      link.remove();
    }, n * 400));
  }

  async share(entries) {
    const { shareDialog } = await import("../files/details.js");
    await shareDialog(this.ctx, entries);
    this.ctx.events.changed("files", "feed");
  }

  async details(path) {
    const { showDetails } = await import("../files/details.js");
    showDetails(this.ctx, path, this);
  }
}

const el2 = (ctx, drawing, label) => ctx.el("span", { className: "mark", title: label, attrs: { role: "img" }, aria: { label } }, ctx.icon(drawing));

// The Recycle Bin

const binSpan = (ctx) => ctx.format.counted(ctx.state.status?.bin_days ?? 30, "time.day");

async function openBin(root, ctx) {
  const { el, t, format } = ctx;
  const { root: frame, body } = ctx.page(t("files.bin"), el("a", { className: "button", href: ctx.href("files") }, ctx.icon("back"), el("span", {}, t("files.to_files"))));
  const text = el("p", { className: "muted" });
  const list = el("ul", { className: "card lines bin" });
  const chosen = new Set();
  const all = el("input", { type: "checkbox", on: { change: () => pick(all.checked ? known : []) } });
  const some = button(t("bin.restore_some"), () => restoreChosen(), { kind: "main", icon: "restore", className: "button main small-button", disabled: true });
  const bar = el("div", { className: "row bin-bar", hidden: true }, el("label", { className: "actions" }, all, el("span", {}, t("files.select_all"))), some);
  const more = button(t("bin.more"), () => { count *= 2; load().catch(ctx.fail); }, { hidden: true });
  body.append(text, bar, list, more);
  root.append(frame);
  ctx.onStatus(() => { text.textContent = t("bin.text", { span: binSpan(ctx) }); });
  let known = [];
  let rows = new Map();
  let count = BIN_STEP;
  let loads = 0;

  function pick(ids) {
    chosen.clear();
    for (const id of ids) chosen.add(id);
    for (const box of list.querySelectorAll("[data-id] > input")) box.checked = chosen.has(box.parentElement.dataset.id);
    paintBar();
  }

  function paintBar() {
    bar.hidden = known.length < 2;
    some.disabled = chosen.size === 0;
    all.checked = chosen.size > 0 && chosen.size === known.length;
    all.indeterminate = chosen.size > 0 && !all.checked;
  }

  async function restoreChosen() {
    const ids = [...chosen];
    some.disabled = true;
    try {
      const { refused = [] } = await ctx.api.job("restore", { ids });
      if (refused.length < ids.length) ctx.toast(t("files.undone", { entries: format.counted(ids.length - refused.length, "count.entry") }));
      if (refused.length > 0) fail(new ApiError(409, refused[0].error.code, refused[0].error.message, refused[0].error.hint));
      await load();
      ctx.refresh();
    } catch (error) {
      ctx.fail(error);
    }
    paintBar();
  }

  function row(told) {
    const entry = { ...told, name: show(told.name), folder: show(told.folder) };
    const restore = button(t("bin.restore"), async () => {
      restore.disabled = true;
      const at = [...list.children].findIndex((each) => each.contains(restore));
      try {
        await ctx.api.job("restore", { id: entry.id });
        ctx.toast(t("bin.restored", { name: entry.name }));
        await load();
        // Keys go on where they were.
        list.querySelectorAll(".bin-row button")[Math.min(at, list.children.length - 1)]?.focus({ preventScroll: true });
        ctx.refresh();
      } catch (error) {
        ctx.fail(error);
      }
      restore.disabled = false;
    }, { icon: "restore", className: "button small-button", aria: { label: `${t("bin.restore")}: ${entry.name}` } });
    const box = el("input", { type: "checkbox", checked: chosen.has(entry.id), aria: { label: t("files.select", { name: entry.name }) }, on: { change: () => {
      chosen[box.checked ? "add" : "delete"](entry.id);
      paintBar();
    } } });
    return el("li", { className: "bin-row", data: { id: entry.id } }, box, el("span", { className: "picture" }, ctx.icon(iconOf(entry))),
      el("div", { className: "file-words" }, el("p", { className: "strong cut", title: entry.name }, entry.name),
        el("p", { className: "small muted" }, [entry.folder || t("files.root"), entry.size > 0 && format.bytes(entry.size), t("bin.deleted", { span: format.ago(entry.deleted_s_ago) })].filter(Boolean).join(" · "))), restore);
  }

  async function load() {
    const mine = ++loads;
    // By their ids: what comes or goes between two requests moves the others.
    const entries = new Map();
    let hasMore = true;
    for (let offset = 0; hasMore && offset < count; offset += BIN_PAGE) {
      const told = await ctx.api.get("bin", { newest: 1, offset, limit: Math.min(BIN_PAGE, count - offset) }, { signal: ctx.signal });
      // A later one shows what is true now.
      if (mine !== loads) return;
      for (const each of told.entries) entries.set(each.id, each);
      hasMore = told.more;
    }
    more.hidden = !hasMore;
    const ids = [...entries.keys()];
    if (ids.join() === known.join() && list.childElementCount > 0) return;
    known = ids;
    for (const id of chosen) if (!entries.has(id)) chosen.delete(id);
    paintBar();
    rows = new Map(ids.map((id) => [id, rows.get(id) ?? row(entries.get(id))]));
    list.replaceChildren(...rows.values());
    list.hidden = ids.length === 0;
    frame.querySelector(".bin-empty")?.remove();
    if (ids.length === 0) body.append(el("div", { className: "card bin-empty" }, empty("trash", t("bin.empty"), t("bin.empty.text"))));
  }
  await load();
  ctx.events.on("files", () => load().catch(() => {}));
}

export async function open(root, ctx) {
  if (ctx.query.has("bin")) return openBin(root, ctx);
  page = new FilesPage(root, ctx);
  page.show(ctx.path, ctx.query);
  return undefined;
}

/** Another folder of the same page. */
export function moved(path, ctx) {
  const isBin = ctx.query.has("bin");
  if (isBin || !page) return false;
  page.show(path, ctx.query);
  return true;
}

export function close() {
  page?.listing?.close();
  page = null;
}

