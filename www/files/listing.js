// A folder, or what a search found, as a long list of which only the part in sight is on the page.

import { el } from "../ui/dom.js";

const PAGE = 200;
const PAGES_AT_ONCE = 2;
const PAGES_KEPT = 60;
const OVERSCAN = 8;

/** Entries by their place, loaded a page at a time. */
export class Listing {
  /** @param {(offset: number, limit: number, signal: AbortSignal) => Promise<{entries: object[], total: number}>} read */
  constructor(read, onChange) {
    this.read = read;
    this.onChange = onChange;
    this.total = null;
    this.pages = new Map();
    this.busy = new Map();
    this.wanted = [];
    this.failed = new Set();
    this.abort = new AbortController();
    this.epoch = 0;
  }

  /** The entry there, if it has been loaded. */
  at(n) {
    return this.pages.get(Math.floor(n / PAGE))?.entries[n % PAGE];
  }

  /** The entry there, loaded if need be. */
  async fetch(n) {
    const known = this.at(n);
    if (known) return known;
    await this.load(Math.floor(n / PAGE));
    return this.at(n);
  }

  load(page) {
    const running = this.busy.get(page);
    if (running) return running;
    const epoch = this.epoch;
    const work = this.read(page * PAGE, PAGE, this.abort.signal).then(({ entries, total }) => {
      if (epoch > this.epoch) return;
      this.pages.delete(page);
      this.pages.set(page, { entries, epoch });
      this.total = total;
      if (this.pages.size > PAGES_KEPT) this.pages.delete(this.pages.keys().next().value);
      this.onChange();
    }).finally(() => {
      this.busy.delete(page);
      this.pump();
    });
    this.busy.set(page, work);
    return work;
  }

  /** Loads what is in sight, the newest wish first. */
  want(first, last) {
    this.wanted = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(first, last) / PAGE); page += 1) {
      if ((this.pages.get(page)?.epoch ?? -1) < this.epoch && !this.failed.has(page)) this.wanted.push(page);
    }
    this.pump();
  }

  pump() {
    while (this.busy.size < PAGES_AT_ONCE && this.wanted.length > 0) {
      const page = this.wanted.shift();
      if (!this.busy.has(page)) this.load(page).catch((error) => {
        // It is not asked for again and again: only after a change, or when one asks for it.
        this.failed.add(page);
        this.onError?.(error);
      });
    }
  }

  /** What is shown stays until the newer is there. */
  stale() {
    this.epoch += 1;
    this.failed.clear();
  }

  /** Every entry, in order; for "select all". */
  async all(limit = 100000) {
    const entries = [];
    for (let offset = 0; offset < Math.min(this.total ?? 0, limit);) {
      const some = (await this.read(offset, 1000, this.abort.signal)).entries;
      if (some.length === 0) break;
      entries.push(...some);
      offset += some.length;
    }
    return entries;
  }

  close() {
    this.abort.abort();
  }
}

/** The part in sight of a listing, as rows or as tiles. */
export class VirtualList {
  /**
   * @param {{label: string, rowHeight: () => number, columns: () => number, build: (entry: object, n: number) => HTMLElement,
   *   signal: AbortSignal}} spec
   */
  constructor({ label, rowHeight, columns, build, signal }) {
    Object.assign(this, { rowHeight, columns, build });
    this.root = el("ul", { className: "virtual", attrs: { role: "list" }, aria: { label } });
    this.nodes = new Map();
    this.listing = null;
    this.active = 0;
    this.frame = 0;
    // A row that is being dragged stays: without it the browser tells nobody that the drag has ended.
    this.held = null;
    const soon = () => { this.frame ||= requestAnimationFrame(() => { this.frame = 0; this.paint(); }); };
    addEventListener("scroll", soon, { passive: true, signal });
    addEventListener("resize", soon, { signal });
    this.soon = soon;
  }

  /** Shows another listing from its beginning. */
  show(listing) {
    this.listing = listing;
    this.active = 0;
    this.clear();
    this.paint();
  }

  clear() {
    for (const { node } of this.nodes.values()) this.drop(node);
    this.nodes.clear();
  }

  /** Takes a row away; one that is being dragged only from sight. */
  drop(node) {
    if (node !== this.held) return void node.remove();
    node.classList.add("held");
    delete node.dataset.name;
    delete node.dataset.drop;
    return undefined;
  }

  /** From now on this row is being dragged; without one, none is. */
  hold(row = null) {
    if (this.held?.classList.contains("held")) this.held.remove();
    this.held = row;
  }

  paint() {
    const { listing, root } = this;
    if (!listing || !root.isConnected) return;
    const total = listing.total ?? 0;
    const height = this.rowHeight();
    const columns = this.columns();
    root.style.setProperty("height", `${Math.ceil(total / columns) * height}px`);
    const top = root.getBoundingClientRect().top;
    const firstRow = Math.max(0, Math.floor(-top / height) - OVERSCAN);
    const lastRow = Math.ceil((innerHeight - top) / height) + OVERSCAN;
    const first = firstRow * columns;
    const last = Math.min(total, lastRow * columns) - 1;
    listing.want(first, total === 0 ? 0 : last);
    const width = 100 / columns;
    for (const [n, { node }] of this.nodes) {
      if (n < first || n > last) {
        if (n < total && node.contains(document.activeElement)) continue;
        this.drop(node);
        this.nodes.delete(n);
      }
    }
    for (let n = first; n <= last; n += 1) {
      const entry = listing.at(n);
      const known = this.nodes.get(n);
      const key = entry ? JSON.stringify(entry) : "";
      const place = `${columns} ${height}`;
      if (known && known.key === key && known.place === place && known.total === total) continue;
      const hadFocus = known?.node.contains(document.activeElement) ? document.activeElement.dataset.role ?? "open" : null;
      const node = entry ? this.build(entry, n) : el("li", { className: "row-wait" }, el("span"));
      node.setAttribute("aria-setsize", total);
      node.setAttribute("aria-posinset", n + 1);
      node.style.setProperty("transform", `translateY(${Math.floor(n / columns) * height}px)`);
      node.style.setProperty("height", `${height}px`);
      node.style.setProperty("left", `${(n % columns) * width}%`);
      node.style.setProperty("width", `${width}%`);
      if (known && known.node !== this.held) known.node.replaceWith(node);
      else {
        if (known) this.drop(known.node);
        this.insert(n, node);
      }
      this.nodes.set(n, { node, key, place, total });
      if (hadFocus) node.querySelector(`[data-role="${hadFocus}"]`)?.focus({ preventScroll: true });
    }
  }

  /** Keeps the order of the page that of the list, for readers and the tab key. */
  insert(n, node) {
    let before = null;
    for (const [other, { node: each }] of this.nodes) if (other > n && (before === null || other < before[0])) before = [other, each];
    this.root.insertBefore(node, before?.[1] ?? null);
  }

  /** Builds what is in sight anew, as after a change of the selection. */
  repaint() {
    for (const known of this.nodes.values()) known.key = null;
    this.paint();
  }

  node(n) {
    return this.nodes.get(n)?.node;
  }

  /** Brings a place into sight and its name into focus. */
  focus(n) {
    const total = this.listing?.total ?? 0;
    if (total === 0) return;
    this.active = Math.max(0, Math.min(total - 1, n));
    const height = this.rowHeight();
    const top = this.root.getBoundingClientRect().top + Math.floor(this.active / this.columns()) * height;
    const low = innerHeight - 110;
    if (top < 130) scrollBy(0, top - 130);
    else if (top + height > low) scrollBy(0, top + height - low);
    this.paint();
    this.node(this.active)?.querySelector("[data-role=open]")?.focus({ preventScroll: true });
  }
}

