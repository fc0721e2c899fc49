// The Feed: what friends share with me, and what I share.

import { iconOf, isSeen, kindOf, show, split } from "../files/names.js";
import { openLightbox } from "../files/lightbox.js";
import * as thumbs from "../files/thumbs.js";
import { button, empty, iconButton, menu, meter, pill, waiting } from "../ui/pieces.js";

const PAGE = 60;
const STATES = { remote: "", available: "", verified: "good", gone: "bad" };

export function open(root, ctx) {
  const { el, t, format, api } = ctx;
  const { root: page, body } = ctx.page(t("tab.feed"));
  const views = ["in", "out"];
  let view = ctx.path[0] === "mine" ? "out" : "in";
  const tabs = views.map((each) => el("button", { type: "button", aria: { pressed: String(each === view) }, on: { click: () => { view = each; paintTabs(); load(true); } } }, t(`feed.${each}`)));
  const paintTabs = () => tabs.forEach((tab, n) => tab.setAttribute("aria-pressed", String(views[n] === view)));
  const filter = el("input", { type: "search", placeholder: t("feed.filter"), aria: { label: t("feed.filter") }, on: { input: () => paint() } });
  const tools = el("div", { className: "feed-tools" }, el("div", { className: "segments", attrs: { role: "group" }, aria: { label: t("feed.which") } }, tabs), el("div", { className: "search-box" }, ctx.icon("search"), filter));
  const list = el("div", { className: "stack" }, waiting());
  body.append(tools, list);
  root.append(page);
  let entries = [];
  let next = null;
  let shares = [];
  const busy = new Map();

  const url = (entry) => api.url("feed/content", { id: entry.id, inline: 1 });
  const download = (entry) => api.url("feed/content", { id: entry.id });

  function look(entry) {
    const seen = shown().filter((each) => isSeen(kindOf(each.name)) && each.state !== "gone");
    const at = Math.max(0, seen.findIndex((each) => each.id === entry.id));
    openLightbox({ at, count: seen.length, entry: async (n) => ({ ...seen[n], kind: "file", modified_unix_ms: 0 }), url, download });
  }

  async function add(entry) {
    const bar = meter(0, 0, t("feed.adding", { name: entry.name }));
    busy.set(entry.id, bar);
    paint();
    try {
      const told = await api.job("feed/fetch", { id: entry.id, add: true }, (job) => { if (job.total > 0) Object.assign(bar, { max: job.total, value: job.done }); });
      ctx.toast(t("feed.added", { name: show(split(told.path ?? entry.name)[1]) }), { action: { label: t("feed.show"), run: () => ctx.go("files") } });
      ctx.events.changed("files");
    } catch (error) {
      ctx.fail(error);
    }
    busy.delete(entry.id);
    load();
  }

  async function keep(entry) {
    const isOn = !entry.kept;
    const what = entry.folders?.[0] ?? entry.name;
    if (isOn && !await ctx.ask(t("feed.keep.title"), [t("feed.keep.text", { what, from: entry.from }), t("feed.keep.note")], t("feed.keep"))) return;
    try {
      await api.post("feed/keep", { id: entry.id, off: !isOn });
      ctx.toast(t(isOn ? "feed.kept" : "feed.unkept", { what }));
      load();
    } catch (error) {
      ctx.fail(error);
    }
  }

  const shown = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    return entries.filter((entry) => words.every((word) => `${entry.name} ${entry.from} ${(entry.folders ?? []).join(" ")}`.toLowerCase().includes(word)));
  };

  function card(entry) {
    const place = [entry.from, ...(entry.folders ?? [])].join(" › ");
    const isGone = entry.state === "gone";
    const canLook = isSeen(kindOf(entry.name)) && !isGone;
    const row = { ...entry, kind: "file", modified_unix_ms: entry.version };
    const canvas = entry.state === "verified" && thumbs.canShow(row) ? el("canvas", { width: 1, height: 1, aria: { hidden: "true" } }) : null;
    if (canvas) setTimeout(() => thumbs.draw(canvas, row, ctx.signal, url(entry)), 30);
    const more = iconButton("more", t("files.more", { name: entry.name }), () => menu(more, [
      canLook && { label: t("files.look"), icon: "eye", run: () => look(entry) },
      { label: t("feed.add"), icon: "plus", run: () => add(entry) },
      { label: t("files.download"), icon: "download", run: () => { const link = el("a", { href: download(entry), download: entry.name, className: "sr" }); document.body.append(link); link.click(); link.remove(); } },
      entry.share && { label: t(entry.kept ? "feed.unkeep" : "feed.keep"), icon: "refresh", run: () => keep(entry) },
    ].filter(Boolean)), { attrs: { "aria-haspopup": "menu" } });
    return el("li", { className: "feed-row", data: { id: entry.id, name: entry.name } },
      el("span", { className: `picture ${kindOf(entry.name)}` }, ctx.icon(iconOf(row)), canvas),
      el("div", { className: "file-words" },
        canLook ? el("button", { type: "button", className: "file-name cut", title: entry.name, on: { click: () => look(entry) } }, entry.name) : el("p", { className: "strong cut", title: entry.name }, entry.name),
        el("p", { className: "small muted cut", title: place }, [place, format.bytes(entry.size), format.when(entry.received_s), entry.expires_s > 0 && t("feed.until", { date: format.date(entry.expires_s) })].filter(Boolean).join(" · ")),
        busy.get(entry.id)),
      el("span", { className: "feed-marks" }, entry.kept && pill(t("feed.is_kept"), "good"), pill(t(`feed.state.${entry.state}`), STATES[entry.state] ?? "")),
      !isGone && button(t("feed.add"), () => add(entry), { className: "button small-button feed-add", disabled: busy.has(entry.id) }),
      !isGone && more);
  }

  function mine(share) {
    const [folder, rest] = split(share.path);
    const name = show(rest);
    const stop = button(t("share.stop"), async () => {
      if (!await ctx.ask(t("share.stop"), [t("feed.stop.ask", { what: name, who: share.with }), t("share.stays")], t("share.stop"), { danger: true })) return;
      stop.disabled = true;
      try {
        await api.post("unshare", { path: share.path, peers: [share.with_id] });
        ctx.toast(t("share.undone", { what: name }));
        await load();
      } catch (error) {
        ctx.fail(error);
        stop.disabled = false;
      }
    }, { className: "button small-button" });
    const title = share.path ? el("a", { className: "file-name cut", href: share.folder ? ctx.href("files", ...share.path.split("/")) : `${ctx.href("files", ...folder.split("/").filter(Boolean))}?show=${encodeURIComponent(rest)}`, title: share.path }, name) : el("p", { className: "strong" }, t("feed.removed"));
    return el("li", { className: "feed-row", data: { path: share.path } }, el("span", { className: `picture ${share.folder ? "folder" : ""}` }, ctx.icon(share.folder ? "folder" : iconOf({ kind: "file", name }))),
      el("div", { className: "file-words" }, title,
        el("p", { className: "small muted cut" }, [t("feed.with", { who: share.with }), t("feed.arrived", { arrived: format.number(share.arrived), files: format.counted(share.files, "count.file") }), share.until_s > 0 && t("feed.until", { date: format.date(share.until_s) })].filter(Boolean).join(" · "))),
      stop);
  }

  function paint() {
    filter.closest(".search-box").hidden = view !== "in" || entries.length < 4;
    if (view === "out") {
      list.replaceChildren(shares.length > 0 ? el("ul", { className: "card lines" }, shares.map(mine))
        : el("div", { className: "card" }, empty("share", t("feed.out.empty"), t("feed.out.empty.text"), el("a", { className: "button", href: ctx.href("files") }, t("home.begin.do")))));
      return;
    }
    const some = shown();
    if (entries.length === 0) {
      list.replaceChildren(el("div", { className: "card" }, empty("feed", t("feed.empty"), t("feed.empty.text"), el("a", { className: "button", href: ctx.href("invites") }, t("share.invite")))));
      return;
    }
    const days = new Map();
    for (const entry of some) {
      const day = format.date(entry.received_s);
      days.set(day, [...(days.get(day) ?? []), entry]);
    }
    list.replaceChildren(...[...days].map(([day, items]) => el("section", { className: "card" }, el("h2", { className: "day" }, day), el("ul", { className: "lines" }, items.map(card)))),
      ...(some.length === 0 ? [el("p", { className: "muted" }, t("feed.none"))] : []),
      ...(next !== null ? [button(t("feed.older"), older, {})] : []));
  }

  async function older() {
    const told = await api.get("feed", { before: next, limit: PAGE });
    entries = [...entries, ...told.entries];
    next = told.next;
    paint();
  }

  let last = "";
  async function load(force = false) {
    try {
      if (view === "out") {
        const told = await api.get("shares", {}, { signal: ctx.signal });
        const text = JSON.stringify(["out", told]);
        if (text === last && !force) return;
        last = text;
        shares = told.shares;
      } else {
        const told = await api.get("feed", { limit: Math.max(PAGE, Math.min(500, entries.length)) }, { signal: ctx.signal });
        const text = JSON.stringify(["in", told, [...busy.keys()]]);
        if (text === last && !force) return;
        last = text;
        entries = told.entries;
        next = told.next;
      }
      // A menu or a focused button is not taken away under one's hands.
      const focus = list.contains(document.activeElement) ? document.activeElement.closest("[data-id]")?.dataset.id : null;
      paint();
      if (focus) list.querySelector(`[data-id="${CSS.escape(focus)}"] button`)?.focus({ preventScroll: true });
    } catch (error) {
      ctx.fail(error);
      if (list.querySelector(".waiting")) list.replaceChildren();
    }
  }
  ctx.events.on("feed", () => load());
  return load(true);
}
