// Questions to language models: conversations beside the messages of one; who answers and how fast; servers, offers and keys.

import { button, copyBox, empty, errorText, field, iconButton, menu, pill, toggle, waiting } from "../ui/pieces.js";
import { markdown } from "../ui/markdown.js";

const PAINT_MS = 60;
let current = null;

/** Events of an answer as they come. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n")) >= 0) {
      const line = held.slice(0, end).trim();
      held = held.slice(end + 1);
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

class AiPage {
  constructor(root, ctx) {
    this.ctx = ctx;
    const { el, t } = ctx;
    this.talk = null;
    this.messages = [];
    this.list = el("ul", { className: "talks" });
    this.side = el("section", { className: "card chat-side", aria: { label: t("chat.talks") } },
      el("div", { className: "ai-new" }, button(t("ai.new"), () => ctx.go("ai"), { icon: "spark", kind: "main" })), this.list);
    this.pane = el("section", { className: "card chat-pane", aria: { label: t("chat.messages") } });
    const { root: page, body } = ctx.page(t("tab.ai"), button(t("ai.setup"), () => ctx.go("ai", "setup"), { icon: "settings" }));
    page.classList.add("chat", "ai");
    body.classList.add("chat-body");
    body.append(this.side, this.pane);
    this.body = body;
    root.append(page);
    ctx.events.on("ai", () => this.loadModels());
    this.buildPane();
  }

  buildPane() {
    const { el, t } = this.ctx;
    this.model = el("select", { className: "ai-model", aria: { label: t("ai.model") } }, el("option", { value: "auto" }, t("ai.best")));
    this.onlyHere = el("input", { type: "checkbox", className: "switch", attrs: { role: "switch" }, id: "ai-here" });
    this.title = el("p", { className: "strong cut" }, t("ai.new"));
    this.head = el("header", { className: "chat-head" }, iconButton("back", t("back"), () => this.ctx.go("ai", "list"), { className: "chat-back" }),
      el("div", { className: "file-words" }, this.title), this.model,
      el("label", { className: "ai-here", title: t("ai.here.note"), htmlFor: "ai-here" }, this.onlyHere, el("span", { className: "small" }, t("ai.here"))),
      iconButton("more", t("more"), (event) => this.more(event.currentTarget)));
    this.log = el("div", { className: "chat-log ai-log", attrs: { role: "log", tabindex: "0" }, aria: { label: t("chat.messages") } });
    this.input = el("textarea", { rows: 1, placeholder: t("ai.say"), aria: { label: t("ai.say") }, maxLength: 200000, on: {
      input: () => this.grow(),
      keydown: (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          this.send();
        }
      },
    } });
    this.go = iconButton("send", t("chat.send"), null, { type: "submit", className: "icon-button send" });
    this.composer = el("form", { className: "composer", on: { submit: (event) => { event.preventDefault(); if (this.answering) this.answering.abort(); else this.send(); } } }, this.input, this.go);
    this.pane.replaceChildren(this.head, this.log, this.composer);
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, 200)}px`;
  }

  async loadModels() {
    try {
      const told = await this.ctx.api.get("ai", {}, { signal: this.ctx.signal });
      this.told = told;
      const chosen = this.model.value;
      const { el, t } = this.ctx;
      this.model.replaceChildren(el("option", { value: "auto" }, t("ai.best")), ...told.models.map((model) => el("option", { value: model.id }, `${model.id} (${model.on.join(", ")})`)));
      this.model.value = [...this.model.options].some((option) => option.value === chosen) ? chosen : "auto";
      if (this.messages.length === 0) this.paint();
    } catch (error) {
      this.ctx.fail(error);
    }
  }

  async loadTalks() {
    const { api, el, t, format, href } = this.ctx;
    try {
      const { conversations } = await api.get("ai/conversations", {}, { signal: this.ctx.signal });
      this.list.replaceChildren(...conversations.map((talk) => el("li", {}, el("a", { className: "talk", href: href("ai", talk.id), data: { talk: talk.id }, aria: talk.id === this.talk ? { current: "true" } : {} },
        el("span", { className: "talk-words" }, el("span", { className: "row" }, el("span", { className: "strong cut" }, talk.title || t("ai.untitled")), el("span", { className: "small muted" }, format.when(talk.changed_unix))))))));
      if (conversations.length === 0) this.list.append(el("li", { className: "muted chat-none" }, t("ai.none")));
    } catch (error) {
      this.ctx.fail(error);
    }
  }

  async show(id) {
    this.answering?.abort();
    this.body.classList.toggle("open", id !== "list");
    this.talk = id && id !== "list" ? id : null;
    this.messages = [];
    if (this.talk) {
      this.log.replaceChildren(waiting());
      try {
        const talk = await this.ctx.api.get(`ai/conversations/${this.talk}`, {}, { signal: this.ctx.signal });
        await this.known;
        if (this.talk !== id) return;
        this.messages = talk.messages;
        this.model.value = talk.model || "auto";
        if (!this.model.value) this.model.value = "auto";
        this.onlyHere.checked = talk.only_here;
        this.title.textContent = talk.title || this.ctx.t("ai.untitled");
      } catch (error) {
        this.ctx.fail(error);
        this.talk = null;
      }
    } else this.title.textContent = this.ctx.t("ai.new");
    this.loadTalks();
    this.paint();
    if (matchMedia("(min-width: 761px)").matches) this.input.focus();
  }

  paint() {
    const { el, t, href } = this.ctx;
    if (this.messages.length === 0) {
      const isSet = this.told?.configured;
      this.log.replaceChildren(isSet === false
        ? empty("spark", t("ai.nobody"), t("ai.nobody.text"), el("a", { className: "button main", href: href("ai", "setup") }, t("ai.setup")))
        : empty("spark", t("ai.hello"), t("ai.hello.text")));
      return;
    }
    this.log.replaceChildren(...this.messages.map((message, at) => this.bubble(message, at)));
    this.log.scrollTop = this.log.scrollHeight;
  }

  bubble(message, at) {
    const { el, t, toast } = this.ctx;
    const isOurs = message.role === "user";
    const text = el("div", { className: `bubble-text${isOurs ? "" : " said"}` }, isOurs ? message.content : markdown(message.content));
    const copy = iconButton("copy", t("copy"), () => navigator.clipboard?.writeText(message.content).then(() => toast(t("copied"))), { className: "icon-button bubble-more" });
    const again = !isOurs && at === this.messages.length - 1 && iconButton("refresh", t("ai.retry"), () => this.retry(), { className: "icon-button bubble-more" });
    const foot = el("span", { className: "bubble-foot" }, isOurs ? "" : this.who(message));
    return el("div", { className: `bubble${isOurs ? " ours" : ""}`, data: { at } }, el("div", { className: "bubble-box" }, text, message.error && el("p", { className: "problem" }, message.error), foot), copy, again);
  }

  who(message) {
    const { t, format } = this.ctx;
    const speed = message.tps ? ` · ${t("ai.speed", { n: format.number(Math.round(message.tps)) })}` : "";
    return message.cell ? `${message.cell}${message.backend && message.backend !== message.cell ? ` · ${message.backend}` : ""}${speed}` : "";
  }

  async send() {
    const content = this.input.value.trim();
    if (!content || this.answering || this.log.querySelector(".waiting")) return;
    this.input.value = "";
    this.grow();
    this.messages.push({ role: "user", content, at_unix: Math.floor(Date.now() / 1000) });
    await this.answer();
  }

  async retry() {
    if (this.answering) return;
    while (this.messages.at(-1)?.role === "assistant") this.messages.pop();
    if (this.messages.length > 0) await this.answer();
  }

  async answer() {
    const { t } = this.ctx;
    const abort = new AbortController();
    this.ctx.signal.addEventListener("abort", () => abort.abort(), { once: true });
    this.answering = abort;
    this.setBusy(true);
    const talk = { messages: this.messages, id: this.talk };
    const message = { role: "assistant", content: "", at_unix: Math.floor(Date.now() / 1000) };
    const body = {
      model: this.model.value, stream: true, stream_options: { include_usage: true },
      messages: this.messages.filter((each) => each.content).map(({ role, content }) => ({ role, content })),
      grove: { only_here: this.onlyHere.checked },
    };
    this.messages.push(message);
    this.paint();
    const node = this.log.lastChild;
    node.classList.add("writing");
    let painted = 0;
    let first = 0;
    let tokens = 0;
    const paint = (isLast) => {
      if (!isLast && performance.now() - painted < PAINT_MS) return;
      painted = performance.now();
      const isBelow = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
      node.querySelector(".bubble-text").replaceChildren(...markdown(message.content));
      node.querySelector(".bubble-foot").textContent = this.who(message);
      if (isBelow) this.log.scrollTop = this.log.scrollHeight;
    };
    try {
      const response = await fetch("/v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: abort.signal, cache: "no-store" });
      if (!response.ok) {
        const told = await response.json().catch(() => ({}));
        throw new Error(told.error?.message ?? t("error.no_answer"));
      }
      let isWhole = false;
      for await (const data of events(response)) {
        if (data === "[DONE]") {
          isWhole = true;
          break;
        }
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);
        if (event.grove) Object.assign(message, event.grove);
        if (event.usage) tokens = event.usage.completion_tokens;
        const text = event.choices?.[0]?.delta?.content;
        if (text) {
          first ||= performance.now();
          message.content += text;
          paint(false);
        }
      }
      if (!isWhole) throw new Error(t("ai.broke"));
    } catch (error) {
      if (abort.signal.aborted) message.error = t("ai.stopped");
      else message.error = errorText(error);
    }
    const seconds = (performance.now() - first) / 1000;
    if (first && tokens > 1 && seconds > 0.05) message.tps = Math.round(tokens / seconds * 10) / 10;
    if (this.answering === abort) {
      this.answering = null;
      this.setBusy(false);
    }
    if (this.messages !== talk.messages) return;
    if (!message.content && message.error) this.messages.pop();
    this.paint();
    if (!message.content && message.error) this.log.append(this.ctx.el("p", { className: "problem", attrs: { role: "alert" } }, message.error, " ", button(t("ai.retry"), () => this.retry(), { kind: "quiet", icon: "refresh" })));
    if (this.messages.length > 1) await this.keep();
  }

  setBusy(isBusy) {
    const { t } = this.ctx;
    this.go.replaceChildren(this.ctx.icon(isBusy ? "close" : "send"));
    this.go.title = t(isBusy ? "ai.stop" : "chat.send");
    this.go.setAttribute("aria-label", this.go.title);
    this.log.setAttribute("aria-busy", String(isBusy));
  }

  async keep() {
    const first = this.messages.find((message) => message.role === "user")?.content ?? "";
    const messages = this.messages.map(({ error, ...rest }) => rest);
    try {
      const { id } = await this.ctx.api.post("ai/conversations", { id: this.talk ?? "", title: first.split("\n")[0].slice(0, 80), model: this.model.value, only_here: this.onlyHere.checked, messages });
      if (!this.talk) {
        this.talk = id;
        this.title.textContent = first.split("\n")[0].slice(0, 80);
        history.replaceState(null, "", this.ctx.href("ai", id));
      }
      await this.loadTalks();
    } catch (error) {
      this.ctx.fail(error);
    }
  }

  more(anchor) {
    const { t, ask, api, go } = this.ctx;
    if (!this.talk) return;
    const id = this.talk;
    menu(anchor, [{ label: t("ai.delete"), icon: "trash", run: async () => {
      if (!await ask(t("ai.delete"), t("ai.delete.ask"), t("ai.delete"))) return;
      try {
        await api.post(`ai/conversations/${id}/delete`);
        go("ai");
      } catch (error) {
        this.ctx.fail(error);
      }
    } }]);
  }
}

// Servers, offers and keys

async function setup(root, ctx) {
  const { el, t, api, format, href } = ctx;
  const { root: page, body } = ctx.page(t("ai.setup"), el("a", { className: "button", href: href("ai") }, t("ai.back")));
  body.classList.add("stack");
  root.append(page);
  const run = (work) => async () => {
    try {
      await work();
      await paint();
    } catch (error) {
      ctx.fail(error);
    }
  };
  const url = field(t("ai.url"), { type: "url", required: true, placeholder: "http://pc.local:8080", spellcheck: false, autocapitalize: "off" }, t("ai.url.note"));
  const key = field(t("ai.server.key"), { type: "password", autocomplete: "off" }, t("ai.server.key.note"));
  const found = el("p", { attrs: { role: "status" } });
  const test = async () => {
    found.textContent = t("wait");
    const told = await api.post("ai/test", { url: url.input.value, key: key.input.value });
    found.textContent = told.ok ? t("ai.test.ok", { kind: told.kind, models: told.models.join(", "), ms: format.number(told.ms) }) : t("ai.test.bad", { why: told.error });
    return told.ok;
  };
  const form = el("form", { className: "stack", on: { submit: async (event) => {
    event.preventDefault();
    try {
      await test();
      await api.post("ai/backends", { add: { url: url.input.value, key: key.input.value } });
      form.reset();
      await paint();
    } catch (error) {
      found.textContent = errorText(error);
    }
  } } }, url.root, key.root, found, el("div", { className: "actions" }, button(t("ai.test"), () => test().catch((error) => { found.textContent = errorText(error); })), button(t("ai.add"), null, { kind: "main", type: "submit" })));
  const servers = el("div", { className: "stack" }, waiting());
  const offers = el("div", { className: "stack" });
  const keys = el("div", { className: "stack" });
  const card = (title, text, ...inside) => el("section", { className: "card stack" }, el("h2", {}, title), text && el("p", { className: "muted" }, text), inside);
  const folder = el("p", { className: "note" });
  body.append(card(t("ai.servers"), t("ai.servers.text"), servers, form, folder), card(t("ai.offers"), t("ai.offers.text"), offers),
    card(t("ai.keys"), t("ai.keys.text", { url: `${location.origin}/v1` }), keys));

  function offerRow(friend, offer, models) {
    const set = (change) => run(() => api.post("ai/offer", { peer: friend.id, on: offer?.on ?? false, ...change }))();
    const { root: on } = toggle(friend.name, offer?.on ?? false, (isOn) => set({ on: isOn }), offer?.on ? t("ai.used", { n: format.number(offer.used_today) }) : "");
    if (!offer?.on) return on;
    const tokens = field(t("ai.tokens"), { type: "number", min: 0, value: offer.tokens_per_day, on: { change: () => set({ tokens_per_day: Number(tokens.input.value) }) } }, t("ai.tokens.note"));
    const from = field(t("ai.from"), { type: "number", min: 0, max: 23, value: offer.from_hour, on: { change: () => set({ from_hour: Number(from.input.value) }) } });
    const to = field(t("ai.to"), { type: "number", min: 0, max: 24, value: offer.to_hour, on: { change: () => set({ to_hour: Number(to.input.value) }) } });
    const many = field(t("ai.concurrent"), { type: "number", min: 1, max: 8, value: offer.concurrent, on: { change: () => set({ concurrent: Number(many.input.value) }) } });
    const which = field(t("ai.models"), { value: offer.models.join(", "), placeholder: models.join(", "), on: { change: () => set({ models: which.input.value.split(",").map((each) => each.trim()).filter(Boolean) }) } }, t("ai.models.note"));
    return el("div", { className: "stack" }, on, el("details", {}, el("summary", {}, t("ai.limits")), el("div", { className: "stack" }, which.root, tokens.root, from.root, to.root, many.root)));
  }

  const name = field(t("ai.key.name"), { required: true, maxLength: 64 });
  const keyList = el("ul", { className: "lines" });
  keys.append(keyList, el("form", { className: "stack", on: { submit: async (event) => {
    event.preventDefault();
    try {
      const { key: made } = await api.post("ai/keys", { name: name.input.value });
      name.input.value = "";
      await ctx.dialog({ title: t("ai.key.made"), body: [el("p", {}, t("ai.key.once")), copyBox(made, t("ai.key.made"))] });
      await paint();
    } catch (error) {
      ctx.fail(error);
    }
  } } }, name.root, el("div", { className: "actions" }, button(t("ai.key.make"), null, { type: "submit", kind: "main" }))));

  const isTyping = () => body.contains(document.activeElement) && document.activeElement.tagName === "INPUT";

  async function paint(isLive) {
    const [told, { peers }] = await Promise.all([api.get("ai", {}, { signal: ctx.signal }), api.get("peers", {}, { signal: ctx.signal })]);
    if (isLive && isTyping()) return;
    folder.textContent = t("ai.folder", { folder: told.models_folder });
    const kinds = { ready: "good", busy: "warn", loading: "warn", asleep: "", down: "bad" };
    servers.replaceChildren(el("ul", { className: "lines" }, told.backends.map((one) => el("li", { className: "feed-row" },
      el("div", { className: "file-words" }, el("p", { className: "strong cut" }, one.name), el("p", { className: "small muted" }, [one.kind, one.models.join(", "), one.decode_tps && t("ai.speed", { n: format.number(Math.round(one.decode_tps)) }), one.last_error].filter(Boolean).join(" · "))),
      pill(t(`ai.state.${one.state}`), kinds[one.state]),
      one.url && !one.in_config && iconButton("trash", t("ai.remove"), run(() => api.post("ai/backends", { remove: one.url })))))));
    const friends = peers.filter((peer) => peer.friendship === "friends");
    const own = told.models.filter((model) => model.on.includes(told.cell)).map((model) => model.id);
    offers.replaceChildren(...friends.map((friend) => offerRow(friend, told.offers.find((offer) => offer.id === friend.id), own)));
    if (friends.length === 0) offers.append(el("p", { className: "muted" }, t("ai.no_friends")));
    keyList.replaceChildren(...told.keys.map((one) => el("li", { className: "feed-row" }, el("div", { className: "file-words" }, el("p", { className: "strong cut" }, one.name), el("p", { className: "small muted" }, one.used_unix ? t("ai.key.used", { when: format.when(one.used_unix) }) : t("ai.key.unused"))), button(t("ai.key.revoke"), run(() => api.post("ai/keys/revoke", { id: one.id }))))));
  }
  ctx.events.on("ai", () => { if (!isTyping()) paint(true).catch(() => {}); });
  await paint();
}

let isSetup = false;

export async function open(root, ctx) {
  isSetup = ctx.path[0] === "setup";
  if (isSetup) {
    await setup(root, ctx);
    return;
  }
  current = new AiPage(root, ctx);
  // One may ask at once: what is shown is not cleared any more when the models are known.
  current.known = current.loadModels();
  await current.show(ctx.path[0]);
}

export function moved(path) {
  if (isSetup !== (path[0] === "setup")) return false;
  if (!isSetup) current?.show(path[0]);
  return true;
}

export function close() {
  current?.answering?.abort();
  current = null;
}
