// The fleet: the cells one is connected to, as a map and as a list, and what is placed where.

import { show as shown } from "../files/names.js";
import { svg } from "../ui/dom.js";
import { Parts, askText, button, dot, empty, face, field, iconButton, menu, meter, pill, waiting } from "../ui/pieces.js";

const KINDS = ["lan", "tailscale", "yggdrasil", "wan", "relay"];
const RISKS = ["gone", "only_away", "alone", "short", "doubt", "fine"];
const GB = 1e9;

export async function open(root, ctx) {
  const { el, t, format, api, icon } = ctx;
  const bench = button(t("fleet.bench"), async () => {
    bench.disabled = true;
    try {
      await api.job("routes/bench", {});
      ctx.toast(t("fleet.bench.done"));
      await load();
    } catch (error) {
      ctx.fail(error);
    }
    bench.disabled = false;
  }, { icon: "refresh", className: "button small-button" });
  const { root: page, body } = ctx.page(t("tab.fleet"), el("a", { className: "button main", href: ctx.href("invites") }, icon("plus"), el("span", {}, t("home.second.do"))));
  root.append(page);
  const wait = waiting();
  body.append(wait);
  const parts = new Parts(body);
  let peers = [];
  let routes = { relays: [], peers: [], own_addresses: [] };
  let health = new Map();
  let openPeer = ctx.path[0] ?? null;

  const routeOf = (peer) => {
    const all = routes.peers.find((each) => each.id === peer.id)?.routes ?? [];
    return all.find((route) => route.in_use) ?? null;
  };
  const speed = (route) => [route.rtt_us !== null && t("fleet.ms", { ms: route.rtt_us < 10000 ? (route.rtt_us / 1000).toFixed(1) : Math.round(route.rtt_us / 1000) }), route.down_bytes_per_s && format.rate(route.down_bytes_per_s)].filter(Boolean).join(" · ");

  // The map

  function map({ cells, own, relays }) {
    const narrow = innerWidth <= 760;
    const width = narrow ? 400 : 860;
    const height = cells.length > 6 ? 420 : cells.length > 2 || routes.relays.length > 0 ? 320 : 210;
    const cx = cells.length === 1 && routes.relays.length === 0 ? width * 0.3 : width / 2;
    const cy = height / 2;
    const label = cells.map((cell) => t(cell.online ? "fleet.map.on" : "fleet.map.off", { name: cell.name, kind: cell.kind ? t(`route.${cell.kind}`) : "" })).join(". ");
    const shown = cells.slice(0, 24);
    const usesRelay = shown.some((cell) => cell.kind === "relay") || relays.length > 0;
    const lines = [];
    const nodes = [];
    const relayAt = [cx, 34];
    const short = (name, length = 16) => ([...name].length > length ? `${[...name].slice(0, length - 1).join("")}…` : name);
    shown.forEach((cell, n) => {
      const spread = usesRelay ? Math.PI * 1.5 : Math.PI * 2;
      const angle = usesRelay ? -Math.PI / 2 + Math.PI * 0.25 + spread * ((n + 0.5) / shown.length) : -Math.PI / 2 + spread * (n / shown.length) + (shown.length === 1 ? Math.PI / 2 : shown.length === 2 ? Math.PI / 2 : 0);
      const far = shown.length > 10 && n % 2 ? 0.72 : 1;
      const x = cells.length === 1 && !usesRelay ? width * 0.7 : cx + Math.cos(angle) * (width / 2 - (narrow ? 70 : 150)) * far;
      const y = cells.length === 1 && !usesRelay ? cy : cy + Math.sin(angle) * (height / 2 - 62) * far;
      const kind = cell.kind ?? "none";
      const path = kind === "relay" ? `M${cx} ${cy}L${relayAt[0]} ${relayAt[1]}L${x} ${y}` : `M${cx} ${cy}L${x} ${y}`;
      lines.push(svg("path", { d: path, class: `way ${cell.online ? "on" : "off"} ${kind}`, "stroke-width": cell.rate > 5e7 ? 4 : cell.rate > 5e6 ? 3 : 2 }));
      if (cell.online && cell.text) {
        const [mx, my] = kind === "relay" ? [(relayAt[0] + x) / 2, (relayAt[1] + y) / 2] : [(cx + x) / 2, (cy + y) / 2];
        lines.push(svg("text", { x: mx, y: my - 6, class: "way-text" }, cell.text));
      }
      const group = svg("a", { href: ctx.href("fleet", cell.id), class: `cell ${cell.online ? "on" : "off"}`, "data-peer": cell.id },
        svg("circle", { cx: x, cy: y, r: 22 }), svg("text", { x, y: y + 6, class: "letter" }, ([...cell.name][0] ?? "?").toUpperCase()), svg("text", { x, y: y + 42, class: "cell-text" }, ` ${short(cell.name)} `),
        svg("text", { x, y, class: "ghost" }, t(cell.online ? "fleet.map.on" : "fleet.map.off", { name: cell.name, kind: cell.kind ? t(`route.${cell.kind}`) : "" })));
      if (cell.favorite) group.append(svg("path", { d: "M0-5l1.500 3.200 3.500.4-2.600 2.400.7 3.500L0 2.800l-3.100 1.700.7-3.500L-5-1.400l3.500-.4z", transform: `translate(${x + 17} ${y - 17}) scale(1.500)`, class: "map-star" }));
      nodes.push(group);
    });
    if (usesRelay) nodes.push(svg("g", { class: `relay ${relays.some((relay) => relay.connected) ? "on" : "off"}` }, svg("rect", { x: relayAt[0] - 30, y: relayAt[1] - 15, width: 60, height: 30, rx: 9 }), svg("text", { x: relayAt[0], y: relayAt[1] + 5, class: "letter" }, t("route.relay"))));
    nodes.push(svg("g", { class: "cell own" }, svg("circle", { cx, cy, r: 30 }), svg("text", { x: cx, y: cy + 6, class: "letter" }, ([...own][0] ?? "?").toUpperCase()), svg("text", { x: cx, y: cy + 52, class: "cell-text" }, short(own))));
    const kinds = KINDS.filter((kind) => shown.some((cell) => cell.kind === kind && cell.online));
    return el("section", { className: "card map-card", aria: { label: t("fleet.map") } },
      svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "map", role: "group", "aria-label": `${t("fleet.map")}: ${label}` }, ...lines, ...nodes),
      kinds.length > 0 && el("ul", { className: "map-legend small" }, kinds.map((kind) => el("li", {}, svg("svg", { viewBox: "0 0 28 8", class: "legend-line", "aria-hidden": "true" }, svg("path", { d: "M2 4H26", class: `way on ${kind}`, "stroke-width": 3 })), t(`route.${kind}.long`)))));
  }

  // One peer

  function strip(days) {
    const last = Math.floor(Date.now() / 86400000);
    const known = new Map(days);
    const bars = [];
    for (let n = 29; n >= 0; n -= 1) {
      const share = known.get(last - n);
      bars.push(svg("rect", { x: (29 - n) * 6, y: share === undefined ? 15 : 18 - Math.max(2, share * 0.18), width: 4, height: share === undefined ? 3 : Math.max(2, share * 0.18), rx: 1, class: share === undefined ? "none" : share >= 90 ? "good" : share >= 50 ? "half" : "low" }));
    }
    const mean = days.length > 0 ? Math.round(days.reduce((sum, [, share]) => sum + share, 0) / days.length) : null;
    const label = mean === null ? t("fleet.health.none") : t("fleet.health.label", { percent: mean });
    return svg("svg", { viewBox: "0 0 178 18", class: "health", role: "img", "aria-label": label }, svg("title", {}, label), ...bars);
  }

  async function act(path, data, done) {
    try {
      await api.post(path, data);
      if (done) ctx.toast(t(done.key, done.values));
      await load();
      ctx.refresh();
    } catch (error) {
      ctx.fail(error);
    }
  }

  async function quota(peer) {
    const limited = peer.quota_bytes > 0;
    const size = field(t("fleet.quota.size"), { type: "number", min: 1, step: 1, value: limited ? Math.max(1, Math.round(peer.quota_bytes / GB)) : 100, inputMode: "numeric" }, t("fleet.quota.note"));
    const kind = el("div", { className: "stack tight", attrs: { role: "radiogroup" }, aria: { label: t("fleet.quota") } }, ["limit", "none"].map((each) =>
      el("label", { className: "check-row" }, el("input", { type: "radio", name: "quota", value: each, checked: limited === (each === "limit"), on: { change: () => { size.root.hidden = each !== "limit"; } } }), el("span", {}, t(`fleet.quota.${each}`)))));
    size.root.hidden = !limited;
    await ctx.dialog({ title: t("fleet.quota.title", { name: peer.name }), body: [kind, size.root], actions: [{ label: t("cancel") }, { label: t("save"), kind: "main", submit: true, run: async () => {
      const isLimit = kind.querySelector("input:checked").value === "limit";
      await api.post("peers/quota", { peer: peer.id, bytes: isLimit ? Math.round(Number(size.input.value) * GB) : 0 });
      ctx.toast(t("fleet.quota.done"));
      load();
      return true;
    } }] });
  }

  async function remove(peer) {
    if (await ctx.ask(t("fleet.remove"), [t("fleet.remove.ask", { name: peer.name }), t("fleet.remove.note")], t("fleet.remove"), { danger: true })) {
      await act("peers/remove", { peer: peer.id }, { key: "fleet.removed", values: { name: peer.name } });
    }
  }

  function actions(peer, anchor) {
    const friend = { none: ["fleet.befriend", "friend"], asked: ["fleet.take_back", "unfriend"], wanted: ["fleet.accept", "friend"], friends: ["fleet.unfriend", "unfriend"] }[peer.friendship] ?? ["fleet.befriend", "friend"];
    menu(anchor, [
      peer.friendship === "friends" && { label: t("fleet.write"), icon: "chat", run: () => ctx.go("chat", peer.id) },
      { label: t(friend[0]), icon: "feed", run: async () => {
        if (friend[0] === "fleet.unfriend" && !await ctx.ask(t("fleet.unfriend"), t("fleet.unfriend.ask", { name: peer.name }), t("fleet.unfriend"), { danger: true })) return;
        act(`peers/${friend[1]}`, { peer: peer.id }, { key: `${friend[0]}.done`, values: { name: peer.name } });
      } },
      peer.friendship === "wanted" && { label: t("fleet.decline"), icon: "close", run: () => act("peers/unfriend", { peer: peer.id }, { key: "fleet.decline.done", values: { name: peer.name } }) },
      { label: t(peer.favorite ? "fleet.unfavorite" : "fleet.favorite"), icon: "star", run: () => act("peers/favorite", { peer: peer.id, on: !peer.favorite }, { key: peer.favorite ? "fleet.unfavorite.done" : "fleet.favorite.done", values: { name: peer.name } }) },
      { label: t("fleet.quota"), icon: "box", run: () => quota(peer) },
      { label: t("fleet.rename"), icon: "edit", run: async () => {
        const done = await askText(t("fleet.rename"), t("fleet.rename.label"), peer.name, t("save"), (name) => api.post("peers/name", { peer: peer.id, name: name.trim() }), t("fleet.rename.note", { name: peer.own_name }));
        if (done) load();
      } },
      { label: t("fleet.routes"), icon: "fleet", run: () => ctx.go("fleet", peer.id) },
      null,
      { label: t("fleet.remove"), icon: "trash", danger: true, run: () => remove(peer) },
    ].filter((item) => item !== false));
  }

  function routeList(peer) {
    const all = routes.peers.find((each) => each.id === peer.id)?.routes ?? [];
    return el("ul", { className: "plain-list routes" }, all.length === 0 && el("li", { className: "muted" }, t("fleet.no_routes")), all.map((route) => el("li", {}, dot(route.in_use ? "on" : route.last_error ? "warn" : ""),
      el("div", { className: "file-words" }, el("code", { className: "small" }, route.address || t("fleet.incoming")), el("span", { className: "small muted" }, [t(`route.${route.kind}`), speed(route), route.last_error].filter(Boolean).join(" · "))),
      route.in_use && pill(t("fleet.in_use"), "good"))));
  }

  function card({ peer, route, days, isOpen }) {
    const state = peer.online ? [route ? t(`route.${route.kind}.long`) : t("fleet.online"), route && speed(route)].filter(Boolean).join(" · ")
      : peer.last_seen_s === null ? t("fleet.never") : t("fleet.seen", { span: format.ago(peer.last_seen_s) });
    const more = iconButton("more", t("fleet.more", { name: peer.name }), () => actions(peer, more), { attrs: { "aria-haspopup": "menu" } });
    const used = peer.quota_bytes > 0 ? meter(peer.held_for_them_bytes, peer.quota_bytes, t("fleet.quota.used")) : null;
    const fold = el("button", { type: "button", className: "link fold", aria: { expanded: String(isOpen) }, on: { click: () => { openPeer = isOpen ? null : peer.id; paint(); body.querySelector(`[data-peer-card="${peer.id}"] .fold`)?.focus(); } } }, t(isOpen ? "fleet.less" : "fleet.details"));
    const proofs = peer.proofs;
    const waits = peer.friendship === "wanted" && el("div", { className: "hint wanted" }, el("span", {}, t("fleet.wants", { name: peer.name })),
      el("span", { className: "actions" }, button(t("fleet.accept.short"), () => act("peers/friend", { peer: peer.id }, { key: "fleet.accept.done", values: { name: peer.name } }), { kind: "main", className: "button main small-button" }),
        button(t("fleet.decline.short"), () => act("peers/unfriend", { peer: peer.id }, { key: "fleet.decline.done", values: { name: peer.name } }), { className: "button small-button" })));
    return el("li", { className: "card peer", data: { peerCard: peer.id, name: peer.name } },
      el("div", { className: "peer-top" }, face(peer.name, peer.online), el("div", { className: "file-words" }, el("div", { className: "peer-name" }, el("h3", { className: "cut", title: peer.name }, peer.name), peer.favorite && el("span", { className: "mark favorite", title: t("fleet.is_favorite"), attrs: { role: "img" }, aria: { label: t("fleet.is_favorite") } }, icon("star")),
        peer.friendship === "friends" ? pill(t("fleet.friend"), "good") : peer.friendship === "asked" ? pill(t("fleet.asked")) : null, peer.suspended && pill(t("fleet.suspended"), "bad"), peer.full && pill(t("fleet.full"), "warn")),
        el("p", { className: "small muted" }, state)), more),
      waits,
      el("dl", { className: "peer-facts" }, el("div", {}, el("dt", {}, t("fleet.for_us")), el("dd", { className: "number" }, peer.held_for_us_bytes > 0 ? format.bytes(peer.held_for_us_bytes) : t("home.held.none"))),
        el("div", {}, el("dt", {}, t("fleet.for_them")), el("dd", { className: "number" }, [peer.held_for_them_bytes > 0 ? format.bytes(peer.held_for_them_bytes) : t("home.held.none"), peer.quota_bytes > 0 && t("fleet.of", { bytes: format.bytes(peer.quota_bytes) })].filter(Boolean).join(" "), used)),
        el("div", {}, el("dt", {}, t("fleet.health")), el("dd", {}, strip(days)))),
      fold,
      isOpen && el("div", { className: "stack peer-more" }, el("div", {}, el("h4", {}, t("fleet.routes")), routeList(peer)),
        el("dl", { className: "facts" }, el("dt", {}, t("fleet.id")), el("dd", {}, el("code", { className: "small" }, peer.id)),
          peer.own_name !== peer.name && [el("dt", {}, t("fleet.own_name")), el("dd", {}, peer.own_name)],
          proofs && [el("dt", {}, t("fleet.proofs")), el("dd", {}, t("fleet.proofs.text", { proven: format.number(proofs.proven), failed: format.number(proofs.missing + proofs.damaged + proofs.false) }))],
          peer.place && [el("dt", {}, t("fleet.place")), el("dd", {}, peer.place)],
          peer.error && [el("dt", {}, t("fleet.error")), el("dd", {}, peer.error)])));
  }

  function list(items) {
    if (items.length === 0) {
      return el("section", { className: "card" }, empty("fleet", t("fleet.empty"), t("fleet.empty.text"), el("a", { className: "button main", href: ctx.href("invites") }, icon("plus"), el("span", {}, t("home.second.do")))));
    }
    return el("section", { className: "stack", aria: { label: t("fleet.cells") } }, el("h2", { className: "section-title" }, t("fleet.cells")), el("ul", { className: "peers-grid" }, items.map(card)));
  }

  // Placement and relays

  function placementCard({ sums, files, more }) {
    const by = sums?.by_risk ?? sums ?? {};
    const count = (risk) => by[risk]?.files ?? 0;
    const total = RISKS.reduce((sum, risk) => sum + count(risk), 0);
    const section = el("section", { className: "card stack", hidden: total === 0 }, el("h2", {}, t("fleet.placed")));
    if (total === 0) return section;
    section.append(el("div", { className: "risk-bar", attrs: { role: "img" }, aria: { label: RISKS.filter(count).map((risk) => `${t(`risk.${risk}`)}: ${format.number(count(risk))}`).join(", ") } },
      RISKS.filter(count).map((risk) => el("span", { className: risk, style: { "flex-grow": String(count(risk)) } }))),
    el("ul", { className: "risks" }, RISKS.filter(count).map((risk) => el("li", {}, el("span", { className: `swatch ${risk}` }), el("span", {}, t(`risk.${risk}`)), el("span", { className: "number strong" }, format.number(count(risk)))))));
    if (files.length > 0) {
      section.append(el("h3", {}, t("fleet.worst")), el("ul", { className: "plain-list" }, files.map((file) => el("li", {}, icon("file"), el("span", { className: "cut", title: shown(file.path) }, shown(file.path)), el("span", { className: "muted small" }, file.holders.length > 0 ? t("fleet.held_by", { names: file.holders.join(", ") }) : t("fleet.held_by_none")), pill(t(`risk.${file.risk}`), file.risk === "gone" || file.risk === "only_away" ? "bad" : "warn")))));
    }
    if (more) section.append(el("p", { className: "note" }, t("fleet.more_files")));
    return section;
  }

  function relayCard({ relays, own }) {
    return el("section", { className: "card stack" }, el("div", { className: "card-head" }, el("h2", {}, t("fleet.reach")), bench),
      el("dl", { className: "facts" }, el("dt", {}, t("fleet.own")), el("dd", {}, own.length > 0 ? own.map((address) => el("code", { className: "small address" }, address)) : t("fleet.own.none"))),
      el("div", {}, el("h3", {}, t("fleet.relays")), relays.length === 0 ? el("p", { className: "muted" }, t("fleet.relays.none"))
        : el("ul", { className: "plain-list" }, relays.map((relay) => el("li", {}, dot(relay.connected ? "on" : "warn"), el("code", { className: "small cut", title: relay.url }, relay.url), el("span", { className: "small muted" }, relay.connected ? t("online.short") : relay.why || t("offline.short")))))));
  }

  let placement = { sums: {}, files: [], more: false };
  function paint() {
    wait.remove();
    const coarse = (s) => (s === null ? null : s - (s % (s < 3600 ? 60 : 3600)));
    const cells = peers.map((peer) => {
      const route = routeOf(peer);
      return {
        id: peer.id, name: peer.name, online: peer.online, favorite: peer.favorite, kind: route?.kind ?? null, rate: route?.down_bytes_per_s ?? 0,
        text: route ? (innerWidth <= 760 ? speed(route).split(" · ")[0] : speed(route)) : "",
      };
    });
    parts.put("map", { cells, own: ctx.state.status?.name ?? "", relays: routes.relays }, cells.length > 0 ? map : () => el("span", { hidden: true }));
    parts.put("list", peers.map((peer) => ({ peer: { ...peer, last_seen_s: coarse(peer.last_seen_s), watched_s: 0, silent_s: 0, settle_left_s: 0 }, route: routeOf(peer), days: health.get(peer.id) ?? [], isOpen: openPeer === peer.id, routes: openPeer === peer.id ? routes : null })), list);
    parts.put("placement", placement, placementCard);
    parts.put("relays", { relays: routes.relays, own: routes.own_addresses ?? [] }, relayCard);
  }

  async function load() {
    const options = { signal: ctx.signal };
    try {
      const [one, two, three] = await Promise.all([api.get("peers", {}, options), api.get("routes", {}, options), api.get("peers/health", {}, options).catch(() => ({ peers: [] }))]);
      peers = one.peers;
      routes = two;
      health = new Map((three.peers ?? []).map((each) => [each.id, each.days]));
      paint();
    } catch (error) {
      ctx.fail(error);
    }
  }

  async function loadPlacement() {
    try {
      const told = await api.get("placement", { limit: 20, risky: 1 }, { signal: ctx.signal });
      placement = { sums: told.sums, files: (told.files ?? []).slice(0, 8).map((file) => ({ path: file.path, risk: file.risk, holders: (file.holders ?? file.on ?? []).map((holder) => holder.peer ?? holder.name) })), more: Boolean(told.next) };
      paint();
    } catch {
      // The list above tells the rest.
    }
  }

  show = (path) => {
    openPeer = path[0] ?? null;
    paint();
    const target = openPeer && body.querySelector(`[data-peer-card="${CSS.escape(openPeer)}"]`);
    target?.scrollIntoView({ block: "nearest" });
  };
  ctx.events.on(["peers", "status"], load);
  ctx.events.on("files", loadPlacement);
  await load();
  loadPlacement();
  if (openPeer) show([openPeer]);
}

let show = () => {};

export function moved(path) {
  show(path);
}
