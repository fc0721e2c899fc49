// One file: where it is, who has copies, who may read it, and its older versions. And sharing.

import { button, fail, iconButton, pill } from "../ui/pieces.js";
import { iconOf, isSeen, kindOf, show, split } from "./names.js";
import { openLightbox } from "./lightbox.js";
import * as thumbs from "./thumbs.js";

const WEEK = 7 * 86400;

const COPIES_MAX = 20;

/** Chooses how many copies the files of a folder have. */
function numberOf(ctx, { path, name, wanted }) {
  const { el, t, api, format } = ctx;
  let now = wanted.own ? wanted.copies : 0;
  const words = (n) => (n === 0 ? t(now === 0 ? "details.wanted.like" : "details.wanted.default", { copies: format.counted(wanted.copies, "count.copy") }) : n === 1 ? t("details.wanted.one") : format.counted(n, "count.copy"));
  const pick = el("select", { aria: { label: t("details.wanted") } }, Array.from({ length: COPIES_MAX + 1 }, (_, n) => el("option", { value: String(n), selected: n === now }, words(n))));
  pick.addEventListener("change", async () => {
    const copies = Number(pick.value);
    const isMeant = copies !== 1 || await ctx.ask(t("details.wanted.ask", { what: name }), t("details.wanted.ask.text"), t("details.wanted.do"));
    try {
      if (isMeant) {
        await api.post("copies", { path, copies });
        now = copies;
        ctx.toast(t("details.wanted.done"));
        ctx.events.changed("files");
      }
    } catch (error) {
      ctx.fail(error);
    }
    pick.value = String(now);
  });
  return el("section", { className: "stack tight" }, el("h3", {}, t("details.wanted")), pick, el("p", { className: "muted small" }, t("details.wanted.note")));
}

/** Chooses friends for one or several entries. */
export async function shareDialog(ctx, entries) {
  const { el, t, api, format } = ctx;
  const { peers } = await api.get("peers");
  const friends = peers.filter((peer) => peer.friendship === "friends");
  const what = entries.length === 1 ? entries[0].name : format.counted(entries.length, "count.entry");
  if (friends.length === 0) {
    const go = await ctx.dialog({ title: t("share.title", { what }), body: [el("p", {}, t("share.no_friends"))],
      actions: [{ label: t("close") }, { label: t("share.invite"), kind: "main", value: "invite" }] });
    if (go === "invite") ctx.go("invites");
    return false;
  }
  const shares = entries.length === 1 ? (await api.get("shares")).shares.filter((share) => share.path === entries[0].path) : [];
  const boxes = friends.map((friend) => {
    const isOn = shares.some((share) => share.with_id === friend.id);
    const input = el("input", { type: "checkbox", checked: isOn, value: friend.id, attrs: { autofocus: friend === friends[0] } });
    return { friend, isOn, input, root: el("label", { className: "check-row" }, input, el("span", { className: "cut" }, friend.name), isOn && pill(t("share.has_it"), "good"), !friend.online && pill(t("fleet.away"))) };
  });
  const until = el("select", { aria: { label: t("share.until") } },
    [["0", "share.always"], [String(WEEK), "share.week"], [String(30 * 86400), "share.month"], [String(365 * 86400), "share.year"]].map(([value, key]) => el("option", { value }, t(key))));
  const hasFolder = entries.some((entry) => entry.kind === "folder");
  return ctx.dialog({
    title: t("share.title", { what }),
    body: [el("p", { className: "muted" }, t(hasFolder ? "share.folder" : "share.file")), el("div", { className: "stack tight" }, boxes.map((each) => each.root)),
      el("div", { className: "field" }, el("span", { className: "strong" }, t("share.until")), until), shares.length > 0 && el("p", { className: "note" }, t("share.stays"))],
    actions: [{ label: t("cancel") }, { label: t("share.do"), kind: "main", submit: true, run: async () => {
      const add = boxes.filter((each) => each.input.checked && !each.isOn).map((each) => each.friend.id);
      const drop = boxes.filter((each) => !each.input.checked && each.isOn).map((each) => each.friend.id);
      const span = Number(until.value);
      for (const entry of entries) {
        if (add.length > 0) await api.post("share", { path: entry.path, peers: add, ...(span > 0 ? { for_s: span } : {}) });
        if (drop.length > 0) await api.post("unshare", { path: entry.path, peers: drop });
      }
      if (add.length > 0) ctx.toast(t("share.done", { what }));
      else if (drop.length > 0) ctx.toast(t("share.undone", { what }));
      return true;
    } }],
  });
}

/** Everything about one entry. */
export async function showDetails(ctx, path, page) {
  const { el, t, api, format } = ctx;
  let file;
  try {
    file = await api.get("file", { path });
  } catch (error) {
    fail(error);
    return;
  }
  const entry = { ...file, name: show(file.name), path };
  const isFolder = entry.kind === "folder";
  const abort = new AbortController();
  const canvas = thumbs.canShow(entry) ? el("canvas", { width: 1, height: 1, aria: { hidden: "true" } }) : null;
  const picture = el("span", { className: `picture big ${isFolder ? "folder" : kindOf(entry.name)}` }, ctx.icon(iconOf(entry)), canvas);
  if (canvas) thumbs.draw(canvas, entry, abort.signal);
  const facts = el("dl", { className: "facts" },
    el("dt", {}, t("details.where")), el("dd", {}, show(split(path)[0]) || t("files.root")),
    !isFolder && [el("dt", {}, t("files.sort.size")), el("dd", {}, format.bytes(entry.size))],
    el("dt", {}, t("files.sort.modified")), el("dd", {}, format.moment(entry.modified_unix_ms / 1000)),
    el("dt", {}, t("details.state")), el("dd", {}, t(`files.state.${entry.state ?? "here"}`)));

  const holders = entry.copies_on ?? [];
  const copies = !isFolder && entry.size > 0 && el("section", { className: "stack tight" }, el("h3", {}, t("details.copies")),
    el("ul", { className: "plain-list" },
      el("li", {}, ctx.icon("home"), el("span", {}, t(entry.here === false || entry.state === "away" ? "details.not_here" : "details.here"))),
      holders.map((holder) => el("li", {}, ctx.icon("shield"), el("span", { className: "strong cut" }, holder.name),
        el("span", { className: "muted small" }, holder.proven_unix ? t("details.proven", { span: format.ago(Math.max(0, Date.now() / 1000 - holder.proven_unix)) }) : t("details.unproven")))),
      holders.length === 0 && el("li", { className: "muted" }, ctx.icon("warn"), el("span", {}, t("details.no_copies")))));

  const wanted = isFolder && path !== "" && entry.wanted && numberOf(ctx, entry);

  const shared = entry.shared_with ?? [];
  const sharing = el("section", { className: "stack tight" }, el("h3", {}, t("details.shared")),
    shared.length > 0 ? el("ul", { className: "plain-list" }, shared.map((friend) => el("li", {}, ctx.icon("share"), el("span", { className: "strong cut" }, friend.name),
      button(t("share.stop"), async (event) => {
        event.target.closest("button").disabled = true;
        try {
          await api.post("unshare", { path, peers: [friend.id] });
          ctx.toast(t("share.undone", { what: entry.name }));
          event.target.closest("li").remove();
          ctx.events.changed("files", "feed");
        } catch (error) {
          ctx.fail(error);
        }
      }, { className: "button small-button" })))) : el("p", { className: "muted" }, t("details.shared.none")));

  const versions = (entry.versions ?? []).slice(0, 200).map((one) => ({ ...one, modified_unix_ms: one.modified_unix_ms ?? one.mtime_s * 1000 }));
  const look = (one) => openLightbox({ at: 0, count: 1, entry: async () => ({ ...entry, size: one.size, modified_unix_ms: one.modified_unix_ms }),
    url: () => api.url("content", { id: entry.id, version: one.version, inline: 1 }), download: () => api.url("content", { id: entry.id, version: one.version }) });
  const history = !isFolder && versions.length > 0 && el("section", { className: "stack tight" }, el("h3", {}, t("details.versions")),
    el("ul", { className: "plain-list" }, versions.map((one) => el("li", { className: "version" }, ctx.icon("versions"),
      el("span", { className: "version-words" }, el("span", { className: "number" }, one.tombstone ? t("details.deleted") : format.moment(one.modified_unix_ms / 1000)),
        el("span", { className: "muted small number" }, one.tombstone ? "" : format.bytes(one.size))),
      one.current ? pill(t("details.current"), "good") : !one.tombstone && el("span", { className: "version-tools" },
        isSeen(kindOf(entry.name)) && iconButton("eye", t("details.version.look", { n: one.version }), () => look(one)),
        el("a", { className: "icon-button", href: api.url("content", { id: entry.id, version: one.version }), download: entry.name, title: t("files.download"), aria: { label: t("details.version.download", { n: one.version }) } }, ctx.icon("download")),
        iconButton("restore", t("details.version.restore", { n: one.version }), async (event) => {
          const pressed = event.currentTarget;
          if (!await ctx.ask(t("details.version.ask"), t("details.version.ask.text", { when: format.moment(one.modified_unix_ms / 1000) }), t("details.version.do"))) return;
          pressed.disabled = true;
          try {
            await api.job("restore", { path, version: one.version });
            ctx.toast(t("details.version.done"));
            box?.close();
            ctx.events.changed("files");
          } catch (error) {
            ctx.fail(error);
            pressed.disabled = false;
          }
        }))))));

  const shut = (run) => () => { box?.close(); run(); };
  const seen = !isFolder && isSeen(kindOf(entry.name));
  const body = el("div", { className: "details" }, el("div", { className: "details-top" }, picture, facts),
    el("div", { className: "actions" },
      seen && button(t("files.look"), () => openLightbox({ at: 0, count: 1, entry: async () => entry, url: () => api.url("content", { path, inline: 1 }), download: () => api.url("content", { path }) }), { icon: "eye", kind: "main", className: "button main small-button" }),
      el("a", { className: "button small-button", href: api.url(isFolder ? "archive" : "content", { path }), download: isFolder ? `${entry.name}.zip` : entry.name }, ctx.icon("download"), el("span", {}, t(isFolder ? "files.download_zip" : "files.download"))),
      button(t("files.share"), shut(() => page.share([entry])), { icon: "share", className: "button small-button" }),
      button(t("files.rename"), shut(() => page.rename(entry)), { icon: "edit", className: "button small-button" }),
      entry.state === "away" ? button(t("files.bring_back"), shut(() => page.bringBack(entry)), { icon: "restore", className: "button small-button" })
        : button(t("files.free"), shut(() => page.free([entry])), { icon: "away", className: "button small-button" }),
      button(t("files.remove"), shut(() => page.remove([entry])), { icon: "trash", className: "button small-button danger-text" })),
    copies, wanted, sharing, history);
  const done = ctx.dialog({ title: entry.name, body: [body], actions: [], wide: true, className: "details-dialog" });
  const box = [...document.querySelectorAll("dialog.details-dialog")].at(-1);
  await done;
  abort.abort();
}
