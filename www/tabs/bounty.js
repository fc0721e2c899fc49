// Credit with the peers: what each has stored for the other, proven and signed by both, over time, and what to do.

import { Parts, button, empty, meter, pill, waiting } from "../ui/pieces.js";

const DAY_S = 86400;
const KINDS = { ok: "good", vetting: "", suspended: "bad", disputed: "warn" };

export async function open(root, ctx) {
  const { el, t, format, api } = ctx;
  const { root: page, body } = ctx.page(t("tab.bounty"));
  root.append(page);
  const wait = waiting();
  body.append(wait);
  const parts = new Parts(body);
  let chosen = ctx.path[0] ?? "";
  let told = null;
  let days = [];

  const leaves = (thousandths) => (thousandths / 1000).toLocaleString(document.documentElement.lang || "en", { minimumFractionDigits: thousandths !== 0 && Math.abs(thousandths) < 10000 ? 3 : 0, maximumFractionDigits: 3 });
  const ofHours = (byteHours) => leaves(Math.round(byteHours / 25769803.776));

  function total({ earned_mleaf: earned, spent_mleaf: spent, balance_mleaf: balance }) {
    const fact = (key, figure) => el("div", { className: "bounty-sum" }, el("dt", {}, t(key)), el("dd", { className: "number strong" }, leaves(figure)));
    return el("section", { className: "card stack" }, el("h2", {}, t("bounty.total")),
      el("dl", { className: "bounty-sums" }, fact("bounty.earned", earned), fact("bounty.spent", spent), fact("bounty.balance", balance)),
      el("p", { className: "note" }, t("bounty.leaf")));
  }

  function advice(lines) {
    if (lines.length === 0) return el("span", { hidden: true });
    return el("section", { className: "card stack", aria: { label: t("bounty.advice") } }, el("h2", {}, t("bounty.advice")),
      el("ul", { className: "stack tight" }, lines.map((line) => el("li", {}, line))));
  }

  async function accept(peer) {
    const text = [t("bounty.accept.ask", { name: peer.name, theirs: ofHours(peer.dispute.theirs_byte_hours) }), t("bounty.accept.note")];
    if (!await ctx.ask(t("bounty.accept"), text, t("bounty.accept"))) return;
    try {
      await api.post("bounty/accept", { peer: peer.id });
      ctx.toast(t("bounty.accept.done", { name: peer.name }));
      await load();
    } catch (error) {
      ctx.fail(error);
    }
  }

  function dispute(peer) {
    if (!peer.dispute) return null;
    const { our_storage: ours, ours_byte_hours: own, theirs_byte_hours: theirs, cause } = peer.dispute;
    return el("div", { className: "hint warn bounty-dispute" },
      el("p", {}, t(ours ? "bounty.dispute.ours" : "bounty.dispute.theirs", { name: peer.name, ours: ofHours(own), theirs: ofHours(theirs) })),
      el("p", {}, t("bounty.cause", { cause: t(`bounty.cause.${cause}`) })),
      ours && button(t("bounty.accept"), () => accept(peer), { className: "button small-button" }));
  }

  function space(peer) {
    const { used_bytes: used, allowed_bytes: allowed, why } = peer.quota;
    return [el("span", { className: "number" }, allowed === null ? t("bounty.disk", { used: format.bytes(used) }) : t("bounty.of", { used: format.bytes(used), allowed: format.bytes(allowed) })),
      allowed !== null && meter(used, Math.max(1, allowed), t("bounty.used")), el("span", { className: "small muted bounty-why" }, why)];
  }

  function card(peer) {
    const fact = (key, ...value) => el("div", {}, el("dt", {}, t(key)), el("dd", {}, value));
    const signed = peer.statement ? t("bounty.signed.at", { when: new Date(peer.statement.until_unix * 1000).toLocaleDateString(), number: format.number(peer.statement.seq) }) : t("bounty.signed.never");
    const unsigned = peer.unsigned_byte_hours + peer.waiting_byte_hours;
    return el("li", { className: "card stack", data: { bountyPeer: peer.id, name: peer.name } },
      el("div", { className: "card-head" }, el("h3", { className: "cut", title: peer.name }, peer.name), pill(t(`bounty.state.${peer.state}`), KINDS[peer.state] ?? "")),
      dispute(peer),
      peer.forks.length > 0 && el("p", { className: "small" }, t("bounty.forks", { numbers: peer.forks.join(", ") })),
      el("dl", { className: "peer-facts" },
        fact("bounty.earned.short", el("span", { className: "number", data: { figure: "earned" } }, leaves(peer.earned_mleaf))),
        fact("bounty.spent.short", el("span", { className: "number", data: { figure: "spent" } }, leaves(peer.spent_mleaf))),
        fact("bounty.balance", el("span", { className: "number", data: { figure: "balance" } }, leaves(peer.balance_mleaf))),
        fact("bounty.proofs", t("bounty.proofs.text", { passed: format.number(peer.proofs_passed), failed: format.number(peer.proofs_failed) })),
        fact("bounty.here", space(peer)),
        peer.quota_there && fact("bounty.there", el("span", { className: "number" }, peer.quota_there.allowed_bytes > 0
          ? t("bounty.of", { used: format.bytes(peer.quota_there.used_bytes), allowed: format.bytes(peer.quota_there.allowed_bytes) }) : t("bounty.disk", { used: format.bytes(peer.quota_there.used_bytes) })))),
      el("p", { className: "small muted" }, [signed, unsigned > 0 && t("bounty.unsigned", { leaves: ofHours(unsigned) })].filter(Boolean).join(" · ")));
  }

  function list(peers) {
    if (peers.length === 0) {
      return el("section", { className: "card" }, empty("leaf", t("bounty.empty"), t("bounty.empty.text"), el("a", { className: "button main", href: ctx.href("invites") }, t("home.second.do"))));
    }
    return el("section", { className: "stack" }, el("h2", { className: "section-title" }, t("bounty.peers")), el("ul", { className: "peers-grid" }, peers.map(card)));
  }

  // Cumulative figures say more than days: a gap is a flat line, not a hole.
  function series() {
    let earned = 0;
    let spent = 0;
    const data = [[], [], []];
    for (const [day, more, less] of days) {
      earned += more;
      spent += less;
      data[0].push(day * DAY_S);
      data[1].push(earned / 1000);
      data[2].push(spent / 1000);
    }
    return data;
  }

  function history({ peers, now }) {
    const pick = el("select", { aria: { label: t("bounty.history.of") }, on: { change: () => { chosen = pick.value; loadHistory(); } } },
      el("option", { value: "" }, t("bounty.history.all")), peers.map((peer) => el("option", { value: peer.id }, peer.name)));
    pick.value = peers.some((peer) => peer.id === chosen) ? chosen : "";
    const area = el("div", { className: "stack" });
    const section = el("section", { className: "card stack" }, el("div", { className: "card-head" }, el("h2", {}, t("bounty.history")), pick), area);
    const value = (n) => leaves(Math.round(n * 1000));
    if (now.length === 0) area.append(el("p", { className: "muted" }, t("bounty.history.none")));
    else {
      const sums = el("div", {});
      const daily = el("div", {});
      area.append(el("h3", {}, t("bounty.history.sums")), sums, el("h3", {}, t("bounty.history.days")), daily);
      const names = [{ label: t("bounty.earned.short"), color: "--accent" }, { label: t("bounty.spent.short"), color: "--second" }];
      requestAnimationFrame(async () => {
        try {
          await ctx.plot(sums, { label: t("bounty.history.sums"), data: series(), value, series: names.map((one) => ({ ...one, fill: true })) });
          await ctx.plot(daily, { label: t("bounty.history.days"), data: [now.map(([day]) => day * DAY_S), now.map(([, more]) => more / 1000), now.map(([, , less]) => less / 1000)], value, series: names, height: 140 });
        } catch (error) {
          ctx.fail(error);
        }
      });
    }
    return section;
  }

  function paint() {
    wait.remove();
    parts.put("total", told.total, total);
    parts.put("advice", told.advice, advice);
    parts.put("list", told.peers, list);
    parts.put("history", { peers: told.peers.map(({ id, name }) => ({ id, name })), now: days, chosen }, told.peers.length > 0 ? history : () => el("span", { hidden: true }));
    parts.put("rules", 1, () => el("section", { className: "card stack" }, el("h2", {}, t("bounty.rules")), ["bounty.rules.count", "bounty.rules.quota", "bounty.rules.limits"].map((key) => el("p", {}, t(key)))));
  }

  async function loadHistory() {
    try {
      days = (await api.get("bounty/history", { peer: chosen }, { signal: ctx.signal })).days;
      if (told) paint();
    } catch (error) {
      ctx.fail(error);
    }
  }

  async function load() {
    try {
      told = await api.get("bounty", {}, { signal: ctx.signal });
      paint();
    } catch (error) {
      ctx.fail(error);
    }
  }

  ctx.events.on(["bounty", "peers"], load);
  await load();
  await loadHistory();
}
