// Is everything safe? In one sentence, then what needs doing, then how things stand.

import { Parts, dot, empty, meter, pill } from "../ui/pieces.js";

// What a person does about each alert, on this page.
const REMEDIES = {
  "copies": ["fleet"], "copies-uncounted": ["fleet"], "peer-silent": ["fleet"], "peer-refuses": ["invites"], "stranger": ["invites"], "peer-full": ["invites"], "peer-false": ["fleet"], "peer-lost": ["fleet"], "bounty-dispute": ["bounty"], "bounty-books": ["bounty"],
  "owner-silent": ["fleet"], "friend-request": ["fleet"], "chat": ["settings", "logs"], "chat-full": ["chat"],
  "chunks": ["help", "trouble"], "disk-low": ["files"], "disk-full": ["files", "recycle-bin"], "damaged": ["home"], "damaged-held": ["settings", "logs"], "healed": ["settings", "logs"],
  "drill-failed": ["home"], "drill-overdue": ["fleet"], "phrase": ["settings", "phrase"], "clock": ["home"], "brake": ["home"], "home": ["settings", "about"],
  "unmounted": ["settings", "about"], "import": ["files"], "retired": ["help", "recovery"], "awaiting": ["fleet"], "awaiting-room": ["files"], "watches": ["help", "trouble"], "older": ["settings", "about"],
};

/** One sentence, from the state alone: `[mood, key, values]`. */
export function verdict({ alerts, copies, files, peers, job }, format) {
  // The cell counts copies by pieces: of files it is known that all have theirs, or that some have not.
  const pieces = format.counted(copies.full + copies.short, "count.piece");
  const urgent = alerts.some((alert) => alert.level === "urgent");
  const one = files.count === 1 ? ".one" : "";
  if (urgent) return ["bad", "home.urgent", {}];
  if (files.count === 0) return ["calm", "home.empty", {}];
  if (peers.length === 0) return ["warn", `home.alone${one}`, { files: format.counted(files.count, "count.file") }];
  if (copies.wanted < 2) return ["warn", "home.single", {}];
  const waits = copies.short + files.waiting;
  if (waits > 0 && (job || !alerts.some((alert) => alert.code === "copies"))) {
    return ["busy", "home.busy", { full: format.number(copies.full), total: pieces }];
  }
  if (copies.short > 0) return ["warn", "home.short", { short: format.number(copies.short), total: pieces }];
  if (alerts.some((alert) => alert.level === "warn")) return ["warn", copies.varied ? "home.varied_but" : "home.safe_but", { copies: format.counted(copies.wanted, "count.copy") }];
  if (copies.alone > 0) return ["good", "home.varied_alone", { alone: format.number(copies.alone), total: pieces }];
  if (copies.varied) return ["good", `home.varied${one}`, { files: format.counted(files.count, "count.file") }];
  return ["good", `home.safe${one}`, { files: format.counted(files.count, "count.file"), copies: format.counted(copies.wanted, "count.copy") }];
}

export function open(root, ctx) {
  const { el, t, format, icon, button } = ctx;
  const { root: page, body } = ctx.page(t("tab.home"));
  root.append(page);
  const parts = new Parts(body);
  const plots = el("div", { className: "plots" });
  const coarse = (s) => (s === null || s === undefined ? null : s - (s % (s < 3600 ? 60 : 3600)));

  function hero([mood, key, values]) {
    const drawing = { good: "shield", calm: "leaf", busy: "refresh", warn: "warn", bad: "warn" }[mood];
    return el("section", { className: `card hero ${mood}` }, el("div", { className: "hero-mark" }, icon(drawing)),
      el("div", { className: "hero-words" }, el("p", { className: "hero-state" }, t(`home.mood.${mood}`)), el("p", { className: "hero-sentence", id: "sentence" }, t(key, values))));
  }

  async function act(run, done) {
    try {
      await run();
      ctx.toast(t(done));
      ctx.refresh();
    } catch (error) {
      ctx.fail(error);
      ctx.refresh();
    }
  }

  function remedy(alert, brake) {
    const [tab, ...path] = REMEDIES[alert.code] ?? [];
    if (alert.code === "brake" || alert.code === "clock") {
      return button(t(`alert.${alert.code}.do`), async () => {
        const sum = brake ? { files: format.counted(brake.files, "count.file"), bytes: format.bytes(brake.bytes) } : {};
        if (await ctx.ask(t(`alert.${alert.code}.do`), [alert.code === "brake" && brake && t("alert.brake.sum", sum), t(`alert.${alert.code}.ask`)].filter(Boolean), t(`alert.${alert.code}.do`))) {
          // What came after these words is not meant by them.
          await act(() => ctx.api.post("confirm", { what: alert.code, ...(alert.code === "brake" && brake ? { files: brake.files } : {}) }), "alert.confirmed");
        }
      }, { kind: "plain" });
    }
    if (alert.code === "drill-failed") return button(t("home.drill.run"), runDrill);
    if (alert.code === "damaged") return button(t("alert.damaged.do"), () => act(() => ctx.api.job("verify", { deep: true }), "alert.damaged.done"));
    if (!tab) return null;
    return el("a", { className: "button", href: ctx.href(tab, ...path) }, t(`alert.${alert.code}.do`));
  }

  function alertList({ alerts, brake }) {
    return el("section", { className: "alerts", hidden: alerts.length === 0, aria: { label: t("home.alerts") } }, alerts.map((alert) => {
      const known = REMEDIES[alert.code];
      return el("article", { className: `card alert ${alert.level}`, data: { code: alert.code } }, icon(alert.level === "info" ? "info" : "warn"),
        el("div", { className: "stack tight" },
          el("h2", {}, known ? t(`alert.${alert.code}`) : format.sentence(alert.text)),
          known && el("p", { className: "alert-text" }, format.sentence(alert.text)),
          el("p", {}, known ? t(`alert.${alert.code}.remedy`) : format.sentence(alert.remedy)),
          el("div", { className: "actions" }, remedy(alert, brake), el("span", { className: "small" }, t("home.since", { span: format.ago(alert.since_s) })))));
    }));
  }

  function jobCard(job) {
    const section = el("section", { className: "card job", hidden: !job, aria: { label: t("home.job") } });
    if (!job) return section;
    const amount = (n) => (job.unit === "bytes" ? format.bytes(n) : t(`home.amount.${job.unit}`, { n: format.number(n) }));
    section.append(el("div", { className: "row" }, el("p", { className: "strong" }, job.text || t("wait")),
      el("p", { className: "muted number" }, job.total > 0 ? t("home.of", { done: amount(job.done), total: amount(job.total) }) : amount(job.done))),
    meter(job.done, job.total, t("home.progress")));
    return section;
  }

  const tile = (title, figure, note, ...more) => el("section", { className: "card tile" }, el("h2", {}, title), el("p", { className: "figure" }, figure),
    note && el("p", { className: "muted" }, note), more);

  async function runDrill() {
    ctx.toast(t("home.drill.begun"));
    try {
      await ctx.api.job("drill", {});
      ctx.toast(t("home.drill.ended"));
      ctx.refresh();
    } catch (error) {
      ctx.fail(error);
    }
  }

  function drillTile(drill, hasPeers) {
    if (!drill) {
      return tile(t("home.drill"), t("home.drill.none"), t(hasPeers ? "home.drill.none.note" : "home.drill.no_peers"),
        hasPeers && button(t("home.drill.run"), runDrill, { className: "button small-button" }));
    }
    const note = drill.ok ? t("home.drill.good", { bytes: format.bytes(drill.bytes), peers: drill.peers.join(", ") || "–" })
      : t("home.drill.bad", { n: format.number(drill.failures.length) });
    return tile(t("home.drill"), format.ago(coarse(drill.age_s)), note, el("div", { className: "actions" }, pill(t(drill.ok ? "home.drill.ok" : "home.drill.failed"), drill.ok ? "good" : "bad"),
      button(t("home.drill.run"), runDrill, { className: "button small-button" })));
  }

  function tiles({ copies, disk, isDiskLow, files, held, peers, drill, chunks }) {
    const total = copies.full + copies.short;
    const isWhole = copies.short === 0 && files.waiting === 0;
    const covered = isWhole ? format.counted(files.count, "count.file") : `${format.number(copies.full)} / ${format.counted(total, "count.piece")}`;
    const online = peers.filter((peer) => peer.online).length;
    const used = disk && Math.max(0, disk.total - disk.free);
    return el("div", { className: "tiles" },
      tile(t("home.copies"), total === 0 ? "–" : format.percent(Math.floor((copies.full / total) * 100) / 100),
        total === 0 ? t("home.copies.none") : t(copies.varied ? "home.copies.varied" : "home.copies.note", { covered, copies: format.counted(copies.wanted, "count.copy") }),
        total > 0 && meter(copies.full, total, t("home.copies"))),
      tile(t("home.files"), format.number(files.count), t("home.files.note", { bytes: format.bytes(files.bytes), stored: format.bytes(chunks.bytes) })),
      drillTile(drill, peers.length > 0),
      disk ? tile(t("home.disk"), format.bytes(disk.free), t("home.disk.note", { total: format.bytes(disk.total), reserve: format.bytes(disk.reserve) }),
        meter(used, disk.total, t("home.disk.bar"), isDiskLow ? "low" : "")) : tile(t("home.disk"), "–", t("home.disk.away")),
      tile(t("home.peers"), peers.length === 0 ? t("home.peers.zero") : t("home.peers.figure", { online: format.number(online), all: format.number(peers.length) }),
        peers.length === 0 ? t("home.peers.none") : peers.slice(0, 3).map((peer) => peer.name).join(", ") + (peers.length > 3 ? " …" : "")),
      tile(t("home.held"), held.bytes > 0 ? format.bytes(held.bytes) : t("home.held.none"), t("home.held.note")));
  }

  function nothingYet({ count, home, hasPeers }) {
    const node = el("section", { className: "card", hidden: count > 0 && hasPeers });
    if (count === 0) {
      node.append(empty("files", t("home.begin"), t("home.begin.text", { home }),
        el("a", { className: "button main", href: ctx.href("files") }, icon("upload"), el("span", {}, t("home.begin.do")))));
    } else if (!hasPeers) {
      node.append(empty("invite", t("home.second"), t("home.second.text"),
        el("a", { className: "button main", href: ctx.href("invites") }, icon("invite"), el("span", {}, t("home.second.do")))));
    }
    return node;
  }

  ctx.onStatus((status) => {
    const peers = status.peers.map(({ name, online, id }) => ({ name, online, id }));
    const alerts = status.alerts.map((alert) => ({ ...alert, since_s: coarse(alert.since_s) }));
    parts.put("hero", verdict(status, format), hero);
    parts.put("alerts", { alerts, brake: status.brake }, alertList);
    parts.put("begin", { count: status.files.count, home: status.home, hasPeers: peers.length > 0 }, nothingYet);
    parts.put("job", status.job, jobCard);
    const drill = status.drill ? { ...status.drill, age_s: coarse(status.drill.age_s) } : null;
    parts.put("tiles", { copies: status.copies, disk: status.disk && { ...status.disk, free: status.disk.free - (status.disk.free % 1e7) }, isDiskLow: alerts.some(({ code }) => code === "disk-low" || code === "disk-full"), files: status.files, held: status.held, chunks: status.chunks, peers, drill }, tiles);
    parts.put("foot", { scan: { running: status.scan.running, last: coarse(status.scan.last_s) }, waiting: status.files.waiting, up: format.duration(status.uptime_s) }, foot);
    if (!plots.isConnected) body.insertBefore(plots, body.lastChild);
  });

  function foot({ scan, waiting, up }) {
    const looked = scan.running ? t("home.scan.now") : scan.last === null ? t("home.scan.none") : t("home.scan.last", { span: format.ago(scan.last) });
    return el("p", { className: "muted foot-line" }, dot(scan.running ? "warn" : "on"), ` ${looked} `,
      waiting > 0 && `${t("home.waiting", { files: format.counted(waiting, "count.file") })} `, t("home.up", { span: up }));
  }

  let drawn = null;
  async function history() {
    let told;
    try {
      told = await ctx.api.get("history", {}, { signal: ctx.signal });
    } catch {
      return;
    }
    const { points } = told;
    if (!points || points.length < 2) {
      plots.replaceChildren(el("section", { className: "card" }, el("h2", {}, t("home.traffic")), el("p", { className: "muted" }, t("home.history.none"))));
      drawn = null;
      return;
    }
    const at = points.map((p) => p[0]);
    // The counters run on; what is shown is how much came in each step.
    const per = (n) => points.map((p, i) => (i === 0 ? null : Math.max(0, p[n])));
    const traffic = [at, per(1), per(2)];
    const storage = [at, points.map((p) => p[3]), points.map((p) => p[4])];
    if (drawn) {
      drawn[0]?.set(traffic);
      drawn[1]?.set(storage);
      return;
    }
    const first = el("div");
    const second = el("div");
    plots.replaceChildren(el("section", { className: "card" }, el("div", { className: "card-head" }, el("h2", {}, t("home.traffic"))), first),
      el("section", { className: "card" }, el("div", { className: "card-head" }, el("h2", {}, t("home.storage"))), second));
    drawn = [];
    drawn = [
      await ctx.plot(first, { label: t("home.traffic"), data: traffic, value: format.bytes,
        series: [{ label: t("home.sent"), color: "--accent", fill: true }, { label: t("home.received"), color: "--third" }] }),
      await ctx.plot(second, { label: t("home.storage"), data: storage, value: format.bytes,
        series: [{ label: t("home.own"), color: "--accent", fill: true }, { label: t("home.for_others"), color: "--second" }] }),
    ];
  }
  history().catch(ctx.fail);
  const timer = setInterval(() => { if (!document.hidden) history().catch(() => {}); }, 60000);
  ctx.signal.addEventListener("abort", () => clearInterval(timer));
}
