// Invitations: make one with its QR code, see and revoke those that are out, and take one from another cell.

import { button, copy, copyBox, empty, errorText, field, pill, qr, waiting } from "../ui/pieces.js";

const SPANS = [[3600, "invite.hour"], [86400, "invite.day"], [7 * 86400, "invite.week"], [30 * 86400, "invite.month"]];

/** Of a link; a message in which a percent sign stands is none. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export async function open(root, ctx) {
  const { el, t, format, api, icon } = ctx;
  const { root: page, body } = ctx.page(t("tab.invites"));
  root.append(page);
  body.classList.add("two-columns");

  // Make

  const role = el("div", { className: "choice-row", attrs: { role: "radiogroup" }, aria: { label: t("invite.role") } }, ["friend", "peer"].map((each, n) =>
    el("label", { className: "check-row tall" }, el("input", { type: "radio", name: "role", value: each, checked: n === 0 }), el("span", {}, el("span", { className: "strong" }, t(`invite.${each}`)), el("br"), el("span", { className: "small muted" }, t(`invite.${each}.text`))))));
  const span = field(t("invite.span"), { options: SPANS.map(([s, key]) => [String(s), t(key)]), value: String(7 * 86400) });
  const problem = el("p", { className: "problem", attrs: { role: "alert" }, hidden: true });
  const made = el("div", { className: "stack made", hidden: true });
  const make = button(t("invite.make"), null, { kind: "main", icon: "plus", type: "submit" });
  const form = el("form", { className: "card stack", on: { submit: async (event) => {
    event.preventDefault();
    make.disabled = true;
    problem.hidden = true;
    try {
      const invite = await api.post("invites", { role: role.querySelector("input:checked").value, expires_s: Number(span.input.value) });
      made.replaceChildren(el("h3", {}, t("invite.made")), await qr(invite.token, t("invite.qr")), el("p", { className: "muted" }, t("invite.made.text")), copyBox(invite.token, t("invite.token")),
        el("div", { className: "actions" }, button(t("invite.message"), () => copy(t("invite.message.text", { name: ctx.state.status?.name ?? "", token: invite.token })), { icon: "send" }),
          navigator.share && button(t("invite.share"), () => navigator.share({ text: t("invite.message.text", { name: ctx.state.status?.name ?? "", token: invite.token }) }).catch(() => {}), { icon: "share" })),
        invite.addresses?.length > 0 ? el("p", { className: "note" }, t("invite.reached", { addresses: invite.addresses.slice(0, 3).join(", ") })) : el("p", { className: "hint" }, t("invite.unreached")));
      made.dataset.id = invite.id;
      made.hidden = false;
      made.scrollIntoView({ block: "nearest" });
      await load();
    } catch (error) {
      problem.textContent = errorText(error);
      problem.hidden = false;
    }
    make.disabled = false;
  } } }, el("h2", {}, t("invite.title")), el("p", { className: "muted" }, t("invite.text")), role, span.root, problem, make, made);

  // Join

  const token = field(t("invite.paste"), { multiline: true, rows: 3, required: true, autocomplete: "off", spellcheck: false, autocapitalize: "none", placeholder: "grove:…", value: ctx.path[0] ?? "" }, t("invite.paste.note"));
  const failed = el("p", { className: "problem", attrs: { role: "alert" }, hidden: true });
  const joinButton = button(t("invite.join"), null, { kind: "main", type: "submit" });
  const join = el("form", { className: "card stack", on: { submit: async (event) => {
    event.preventDefault();
    failed.hidden = true;
    joinButton.disabled = true;
    try {
      // A link around the invitation is taken as the invitation in it.
      const text = decoded(token.input.value.trim()).match(/grove:\S+/)?.[0] ?? token.input.value.trim();
      const peer = await api.post("join", { token: text }, { limit: 60000 });
      token.input.value = "";
      ctx.toast(t("invite.joined", { name: peer.name }), { action: { label: t("feed.show"), run: () => ctx.go("fleet", peer.id) } });
      ctx.refresh();
    } catch (error) {
      failed.textContent = errorText(error);
      failed.hidden = false;
    }
    joinButton.disabled = false;
  } } }, el("h2", {}, t("invite.join.title")), el("p", { className: "muted" }, t("invite.join.text")), token.root, failed, joinButton);

  // Out

  const list = el("section", { className: "card stack", aria: { label: t("invite.list") } }, waiting());
  body.append(form, el("div", { className: "stack" }, join, list));
  if (ctx.path[0]) token.input.focus();

  let shown = "";
  async function load() {
    const { invites } = await api.get("invites", {}, { signal: ctx.signal });
    const { peers } = await api.get("peers", {}, { signal: ctx.signal });
    const text = JSON.stringify([invites, peers.map((peer) => peer.name)]);
    if (text === shown) return;
    shown = text;
    const name = (id) => peers.find((peer) => peer.id === id)?.name ?? t("invite.someone");
    const order = { open: 0, used: 1, expired: 2, revoked: 3 };
    const rows = [...invites].sort((a, b) => (order[a.state] ?? 0) - (order[b.state] ?? 0) || b.expires_s - a.expires_s).map((invite) => {
      const isOpen = !["used", "expired", "revoked"].includes(invite.state);
      return el("li", { className: "feed-row", data: { id: invite.id, state: invite.state } }, el("span", { className: "picture" }, icon("invite")),
        el("div", { className: "file-words" }, el("p", { className: "strong" }, t(`invite.for.${invite.role}`)),
          el("p", { className: "small muted" }, invite.state === "used" ? t("invite.used", { name: name(invite.used_by) }) : isOpen ? t("invite.expires", { span: format.until(invite.expires_s) }) : t(`invite.state.${invite.state}`))),
        isOpen ? button(t("invite.revoke"), async (event) => {
          const pressed = event.currentTarget;
          if (!await ctx.ask(t("invite.revoke"), t("invite.revoke.ask"), t("invite.revoke"), { danger: true })) return;
          pressed.disabled = true;
          try {
            await api.post("invites/revoke", { id: invite.id });
            if (made.dataset.id === invite.id) made.hidden = true;
            ctx.toast(t("invite.revoked"));
            await load();
          } catch (error) {
            ctx.fail(error);
            pressed.disabled = false;
          }
        }, { className: "button small-button" }) : pill(t(`invite.state.${invite.state}`), invite.state === "used" ? "good" : ""));
    });
    list.replaceChildren(el("h2", {}, t("invite.list")), rows.length > 0 ? el("ul", { className: "lines" }, rows) : empty("invite", t("invite.none"), t("invite.none.text")));
  }
  ctx.events.on(["peers", "status"], () => load().catch(() => {}));
  await load();
}
