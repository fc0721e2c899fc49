// Chat with friends: conversations beside the messages of one; one after the other on a phone.

import { openLightbox } from "../files/lightbox.js";
import { iconOf, isSeen, kindOf, show } from "../files/names.js";
import { button, empty, face, iconButton, menu, waiting } from "../ui/pieces.js";

const PAGE = 50;
const MARKS = { sent: "chat.mark.sent", delivered: "chat.mark.delivered", read: "chat.mark.read" };

let current = null;
/** What is written and not sent yet, by friend: it outlives a look at another tab. */
const drafts = new Map();
/** What could not be sent, by friend: said again as it is, it has the same key and comes once. */
const unsent = new Map();

class ChatPage {
  constructor(root, ctx) {
    this.ctx = ctx;
    const { el, t } = ctx;
    this.peer = null;
    this.messages = [];
    this.conversations = [];
    /** What is on its way, the first of it asked for now. */
    this.queue = [];
    this.search = el("input", { type: "search", placeholder: t("chat.search"), aria: { label: t("chat.search") }, on: { input: () => this.searchSoon() } });
    this.list = el("ul", { className: "talks" });
    this.side = el("section", { className: "card chat-side", aria: { label: t("chat.talks") } }, el("div", { className: "search-box" }, ctx.icon("search"), this.search), this.list);
    this.pane = el("section", { className: "card chat-pane", aria: { label: t("chat.messages") } });
    const { root: page, body } = ctx.page(t("tab.chat"));
    page.classList.add("chat");
    body.classList.add("chat-body");
    body.append(this.side, this.pane);
    this.body = body;
    root.append(page);
    ctx.events.on("chat", () => { this.loadTalks(); this.loadNew(); });
    ctx.events.on(["peers", "feed"], () => this.loadTalks());
  }

  async loadTalks() {
    const { api, fail } = this.ctx;
    try {
      const [{ conversations }, { peers }] = await Promise.all([api.get("chat", {}, { signal: this.ctx.signal }), api.get("peers", {}, { signal: this.ctx.signal })]);
      const friends = peers.filter((peer) => peer.friendship === "friends" && !conversations.some((talk) => talk.id === peer.id));
      this.conversations = [...conversations, ...friends.map((peer) => ({ name: peer.name, id: peer.id, friend: true, online: peer.online, unread: 0, queued: 0, last: null }))];
      if (!this.search.value.trim()) this.paintTalks();
      this.paintHead();
    } catch (error) {
      fail(error);
    }
  }

  paintTalks() {
    const { el, t, format, href } = this.ctx;
    const text = JSON.stringify([this.conversations, this.peer]);
    if (text === this.talksText) return;
    this.talksText = text;
    this.list.replaceChildren(...this.conversations.map((talk) => {
      const last = talk.last;
      const words = last ? `${last.ours ? `${t("chat.you")}: ` : ""}${last.text || t("chat.attachment")}` : t("chat.begin");
      return el("li", {}, el("a", { className: "talk", href: href("chat", talk.id), data: { peer: talk.id }, aria: talk.id === this.peer ? { current: "true" } : {} },
        face(talk.name, talk.online),
        el("span", { className: "talk-words" }, el("span", { className: "row" }, el("span", { className: "strong cut" }, talk.name), last && el("span", { className: "small muted" }, format.when(last.arrived_unix || last.said_unix))),
          el("span", { className: "row" }, el("span", { className: "small muted cut" }, words), talk.unread > 0 && el("span", { className: "badge" }, format.number(talk.unread), el("span", { className: "sr" }, ` ${t("badge")}`))))));
    }));
    if (this.conversations.length === 0) {
      this.list.append(el("li", {}, empty("chat", t("chat.empty"), t("chat.empty.text"), el("a", { className: "button", href: href("invites") }, t("share.invite")))));
    }
  }

  searchSoon() {
    clearTimeout(this.searching);
    this.searching = setTimeout(() => this.find().catch(this.ctx.fail), 250);
  }

  async find() {
    const words = this.search.value.trim();
    const { el, t, format, href, api } = this.ctx;
    this.talksText = "";
    if (!words) return this.paintTalks();
    const { messages } = await api.get("chat/search", { words, limit: 50 });
    const name = (id) => this.conversations.find((talk) => talk.id === id)?.name ?? id.slice(0, 8);
    this.list.replaceChildren(...messages.map((message) => el("li", {}, el("a", { className: "talk", href: `${href("chat", message.peer)}?at=${message.id}` },
      face(name(message.peer), false),
      el("span", { className: "talk-words" }, el("span", { className: "row" }, el("span", { className: "strong cut" }, name(message.peer)), el("span", { className: "small muted" }, format.when(message.said_unix))),
        el("span", { className: "small muted two-lines" }, message.text))))),
    ...(messages.length === 0 ? [el("li", { className: "muted chat-none" }, t("chat.none_found"))] : []));
    return undefined;
  }

  keepDraft() {
    if (this.peer && this.input) drafts.set(this.peer, this.input.value);
  }

  async show(peer, at) {
    const { ctx } = this;
    this.keepDraft();
    this.peer = peer ?? null;
    this.body.classList.toggle("open", Boolean(peer));
    this.talksText = "";
    this.paintTalks();
    this.messages = [];
    this.more = false;
    // What was searched for stays in sight, whatever arrives meanwhile.
    this.jumped = Boolean(at);
    if (!peer) {
      this.pane.replaceChildren(empty("chat", ctx.t("chat.choose"), ctx.t("chat.choose.text")));
      return;
    }
    this.buildPane();
    try {
      const told = await ctx.api.get("chat/messages", { peer, limit: PAGE, ...(at ? { before: Number(at) + PAGE / 2 } : {}) }, { signal: ctx.signal });
      if (this.peer !== peer) return;
      this.take(told);
      this.more = told.more;
      this.paintMessages();
      const target = at && this.log.querySelector(`[data-id="${CSS.escape(String(at))}"]`);
      if (target) {
        target.scrollIntoView({ block: "center" });
        target.classList.add("found");
      } else this.log.scrollTop = this.log.scrollHeight;
      this.markRead();
    } catch (error) {
      ctx.fail(error);
    }
  }

  take(told) {
    Object.assign(this, { friend: told.friend, online: told.online, name: told.name });
    const known = new Map(this.messages.map((message) => [message.id, message]));
    for (const message of told.messages) known.set(message.id, message);
    this.messages = [...known.values()].sort((a, b) => a.id - b.id);
    this.delivered = told.delivered;
    this.read = told.read;
  }

  async loadNew() {
    const { peer, ctx } = this;
    if (!peer || this.jumped || !this.log) return;
    try {
      const told = await ctx.api.get("chat/messages", { peer, limit: PAGE }, { signal: ctx.signal });
      if (this.peer !== peer) return;
      const low = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
      const first = told.messages[0]?.id ?? 0;
      // What was deleted in the part that was asked for is gone here, too.
      const ids = new Set(told.messages.map((message) => message.id));
      this.messages = this.messages.filter((message) => message.id < first || ids.has(message.id));
      this.take(told);
      this.paintMessages();
      if (low) this.log.scrollTop = this.log.scrollHeight;
      this.markRead();
    } catch (error) {
      if (error.status !== 0) ctx.fail(error);
    }
  }

  async older() {
    const { peer, messages: [top] } = this;
    const told = await this.ctx.api.get("chat/messages", { peer, before: top.id, limit: PAGE });
    if (this.peer !== peer) return;
    const height = this.log.scrollHeight;
    this.take(told);
    this.more = told.more;
    this.paintMessages();
    this.log.scrollTop += this.log.scrollHeight - height;
  }

  markRead() {
    const last = this.messages.filter((message) => !message.ours).at(-1);
    if (!last || last.state !== "new" || document.hidden) return;
    this.ctx.api.post("chat/read", { peer: this.peer, upto: last.id }).then(() => {
      last.state = "seen";
      this.ctx.events.changed("chat");
    }, () => {});
  }

  buildPane() {
    const { el, t } = this.ctx;
    this.messagesText = "";
    this.head = el("header", { className: "chat-head" });
    this.log = el("div", { className: "chat-log", attrs: { role: "log", tabindex: "0" }, aria: { label: t("chat.messages"), live: "polite" } }, waiting());
    this.input = el("textarea", { rows: 1, placeholder: t("chat.say"), aria: { label: t("chat.say") }, maxLength: 60000, value: drafts.get(this.peer) ?? "", on: {
      input: () => this.grow(),
      keydown: (event) => {
        // On a phone Enter is a new line, and the button sends.
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(hover: none)").matches) {
          event.preventDefault();
          this.send();
        }
      },
    } });
    this.attached = [];
    this.attachList = el("ul", { className: "attached", hidden: true });
    this.composer = el("form", { className: "composer", on: { submit: (event) => { event.preventDefault(); this.send(); } } },
      this.attachList, iconButton("attach", t("chat.attach"), () => this.attach()), this.input, iconButton("send", t("chat.send"), null, { type: "submit", className: "icon-button send" }));
    this.pane.replaceChildren(this.head, this.log, this.composer);
    this.paintHead();
    this.grow();
    if (matchMedia("(min-width: 761px)").matches) this.input.focus();
  }

  grow() {
    this.input.style.setProperty("height", "auto");
    this.input.style.setProperty("height", `${Math.min(160, this.input.scrollHeight + 2)}px`);
  }

  paintHead() {
    if (!this.head || !this.peer) return;
    const { el, t, href } = this.ctx;
    const talk = this.conversations.find((each) => each.id === this.peer);
    const name = talk?.name ?? this.name ?? "";
    const friend = talk?.friend ?? this.friend;
    const online = talk?.online ?? this.online;
    const text = JSON.stringify([name, friend, online, talk?.queued]);
    if (text === this.headText && this.head.childElementCount > 0) return;
    this.headText = text;
    const more = iconButton("more", t("chat.more"), () => menu(more, [
      { label: t("chat.to_fleet"), icon: "fleet", run: () => this.ctx.go("fleet", this.peer) },
      { label: t("chat.delete_all"), icon: "trash", danger: true, run: () => this.deleteAll(name) },
    ]), { attrs: { "aria-haspopup": "menu" } });
    this.head.replaceChildren(el("a", { className: "icon-button chat-back", href: href("chat"), title: t("back"), aria: { label: t("back") } }, this.ctx.icon("back")), face(name, online),
      el("div", { className: "file-words" }, el("h2", { className: "cut", title: name }, name), el("p", { className: "small muted" }, online ? t("chat.online") : talk?.queued > 0 ? t("chat.queued", { n: talk.queued }) : t("chat.offline"))), more);
    this.composer.hidden = friend === false;
    this.pane.querySelector(".hint")?.remove();
    if (friend === false) this.pane.append(el("p", { className: "hint" }, t("chat.no_friend")));
  }

  paintMessages() {
    const { el, t, format } = this.ctx;
    const text = JSON.stringify([this.messages, this.more]);
    if (text === this.messagesText) return;
    this.messagesText = text;
    const nodes = [];
    if (this.more) nodes.push(button(t("chat.older"), () => this.older().catch(this.ctx.fail), { kind: "quiet" }));
    if (this.messages.length === 0) nodes.push(el("p", { className: "muted chat-none" }, t("chat.first")));
    let day = "";
    for (const message of this.messages) {
      const at = message.said_unix || message.arrived_unix;
      const today = format.date(at);
      if (today !== day) nodes.push(el("p", { className: "chat-day small" }, today));
      day = today;
      nodes.push(this.bubble(message, at));
    }
    this.log.replaceChildren(...nodes);
  }

  bubble(message, at) {
    const { el, t, format } = this.ctx;
    const files = message.files ?? (message.attachments ?? []).map((id) => ({ id, name: "", size: 0, state: "gone" }));
    const more = iconButton("more", t("chat.message.more"), () => menu(more, [
      { label: t("copy"), icon: "copy", run: async () => (await import("../ui/pieces.js")).copy(message.text) },
      { label: t("chat.delete"), icon: "trash", danger: true, run: () => this.delete(message) },
    ]), { className: "icon-button bubble-more", attrs: { "aria-haspopup": "menu" } });
    return el("article", { className: `bubble ${message.ours ? "ours" : ""}`, data: { id: message.id } },
      el("div", { className: "bubble-box" }, message.text && el("p", { className: "bubble-text" }, message.text), files.map((file) => this.file(file, message)),
        el("p", { className: "bubble-foot" }, format.time(at), message.ours && el("span", { className: `ticks ${message.state}`, title: t(MARKS[message.state] ?? MARKS.sent), attrs: { role: "img" }, aria: { label: t(MARKS[message.state] ?? MARKS.sent) } }, message.state === "sent" ? "✓" : "✓✓"))), more);
  }

  file(file, message) {
    const { el, t, format, api, go } = this.ctx;
    const gone = file.state === "gone" || !file.name;
    const open = () => {
      if (message.ours) return void go("feed", "mine");
      if (!isSeen(kindOf(file.name))) return void go("feed");
      openLightbox({ at: 0, count: 1, entry: async () => ({ ...file, kind: "file", modified_unix_ms: 0 }), url: () => api.url("feed/content", { id: file.id, inline: 1 }), download: () => api.url("feed/content", { id: file.id }) });
      return undefined;
    };
    return el("div", { className: "bubble-file" }, el("span", { className: "picture" }, this.ctx.icon(gone ? "file" : iconOf({ kind: "file", name: file.name }))),
      el("div", { className: "file-words" }, gone ? el("span", { className: "small" }, t("chat.file.gone")) : el("button", { type: "button", className: "file-name cut", title: file.name, on: { click: open } }, file.name),
        !gone && el("span", { className: "small" }, format.bytes(file.size))),
      !gone && !message.ours && button(t("feed.add"), async (event) => {
        const pressed = event.currentTarget;
        pressed.disabled = true;
        try {
          await api.job("feed/fetch", { id: file.id, add: true });
          this.ctx.toast(t("feed.added", { name: file.name }));
        } catch (error) {
          this.ctx.fail(error);
        }
        pressed.disabled = false;
      }, { className: "button small-button" }));
  }

  async attach() {
    const { ctx } = this;
    const { el, t, api } = ctx;
    let folder = "";
    const places = el("div", { className: "places" });
    const chosen = new Set(this.attached);
    const paint = async () => {
      const { entries } = await api.get("files", { folder, sort: "name", order: "up", offset: 0, limit: 300 });
      places.replaceChildren(el("p", { className: "strong cut" }, show(folder) || t("files.root")), ...(folder ? [el("button", { type: "button", className: "place", on: { click: () => { folder = folder.split("/").slice(0, -1).join("/"); paint(); } } }, ctx.icon("up"), el("span", {}, t("files.parent")))] : []),
        ...entries.map((entry) => {
          const path = folder ? `${folder}/${entry.name}` : entry.name;
          if (entry.kind === "folder") return el("button", { type: "button", className: "place", on: { click: () => { folder = path; paint(); } } }, ctx.icon("folder"), el("span", { className: "cut" }, show(entry.name)));
          return el("label", { className: "place" }, el("input", { type: "checkbox", checked: chosen.has(path), on: { change: (event) => { if (event.target.checked) chosen.add(path); else chosen.delete(path); } } }), el("span", { className: "cut" }, show(entry.name)));
        }));
    };
    await paint();
    const ok = await ctx.dialog({ title: t("chat.attach"), body: [el("p", { className: "muted" }, t("chat.attach.text")), places], actions: [{ label: t("cancel"), value: false }, { label: t("chat.attach.do"), kind: "main", value: true, run: () => true }] });
    if (!ok) return;
    this.attached = [...chosen].slice(0, 16);
    this.paintAttached();
    this.input.focus();
  }

  paintAttached() {
    const { el, t } = this.ctx;
    this.attachList.hidden = this.attached.length === 0;
    this.attachList.replaceChildren(...this.attached.map((path) => el("li", { className: "pill good" }, show(path.split("/").at(-1)), iconButton("close", t("chat.detach"), () => { this.attached = this.attached.filter((each) => each !== path); this.paintAttached(); }))));
  }

  /** What is written from here on is the next message, whatever becomes of this one. */
  send() {
    const { peer, attached: attach } = this;
    const text = this.input.value.trim();
    if (!text && attach.length === 0) return;
    this.jumped = false;
    const last = unsent.get(peer);
    const key = last?.text === text && String(last.attach ?? []) === String(attach) ? last.key
      : Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    this.input.value = "";
    this.attached = [];
    this.paintAttached();
    this.grow();
    this.input.focus();
    if (this.queue.push({ peer, text, key, ...(attach.length > 0 ? { attach } : {}) }) === 1) this.post();
  }

  /** Sends what waits, one after the other. */
  async post() {
    let to;
    try {
      for (; this.queue.length > 0; this.queue.shift()) {
        const [message] = this.queue;
        to = message.peer;
        await this.ctx.api.post("chat/send", message);
        unsent.delete(to);
      }
      await this.loadNew();
      if (this.peer === to) this.log.scrollTop = this.log.scrollHeight;
      this.loadTalks();
    } catch (error) {
      const [message] = this.queue;
      unsent.set(message.peer, message);
      for (const each of this.queue.splice(0).reverse()) this.giveBack(each);
      this.ctx.fail(error);
    }
  }

  /** What could not be sent stands before what was written since. */
  giveBack({ peer, text, attach = [] }) {
    const before = (more) => [text, more].filter(Boolean).join("\n");
    if (this.peer !== peer || !this.input.isConnected) {
      drafts.set(peer, before(drafts.get(peer)));
      return;
    }
    this.input.value = before(this.input.value);
    this.attached = [...new Set([...attach, ...this.attached])].slice(0, 16);
    this.paintAttached();
    this.grow();
  }

  async delete(message) {
    const { t, ask, api } = this.ctx;
    if (!await ask(t("chat.delete"), t("chat.delete.ask"), t("chat.delete"), { danger: true })) return;
    try {
      await api.post("chat/delete", { peer: this.peer, id: message.id });
      this.messages = this.messages.filter((each) => each.id !== message.id);
      this.paintMessages();
      this.loadTalks();
    } catch (error) {
      this.ctx.fail(error);
    }
  }

  async deleteAll(name) {
    const { t, ask, api, go } = this.ctx;
    if (!await ask(t("chat.delete_all"), t("chat.delete_all.ask", { name }), t("chat.delete_all"), { danger: true })) return;
    try {
      // Of very many each request deletes a part, up to what was the last message at first.
      const peer = this.peer;
      let told = { more: true };
      while (told.more) told = await api.post("chat/delete", { peer, all: true, ...(told.upto === undefined ? {} : { upto: told.upto }) });
      this.loadTalks();
      go("chat");
    } catch (error) {
      this.ctx.fail(error);
    }
  }
}

export async function open(root, ctx) {
  current = new ChatPage(root, ctx);
  await current.loadTalks();
  await current.show(ctx.path[0], ctx.query.get("at"));
}

export function moved(path, ctx) {
  current?.show(path[0], ctx.query.get("at"));
}

export function close() {
  current?.keepDraft();
  current = null;
}

