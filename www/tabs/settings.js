// Settings: those of config.json that a person changes, who may come in, the phrase, the log, and the cell itself.

import { button, copyBox, empty, errorText, field, meter, pill, qr, toggle, waiting } from "../ui/pieces.js";

const PARTS = ["general", "access", "phrase", "logs", "about"];
const DRAWINGS = { general: "settings", access: "key", phrase: "shield", logs: "text", about: "info" };
const UNITS = { bytes: [[1, "unit.bytes"], [1e6, "unit.mb"], [1e9, "unit.gb"]], "bytes/s": [[1, "setting.bytes_s"], [1e3, "setting.kb_s"], [1e6, "setting.mb_s"]] };

let switchTo = () => {};

export async function open(root, ctx) {
  const { el, t, format, api, icon } = ctx;
  const { root: page, body } = ctx.page(t("tab.settings"));
  body.classList.add("settings-body");
  const links = PARTS.map((part) => el("a", { href: ctx.href("settings", part), data: { part } }, icon(DRAWINGS[part]), el("span", {}, t(`settings.${part}`))));
  const nav = el("nav", { className: "sub-nav", aria: { label: t("settings.parts") } }, links);
  const pane = el("div", { className: "stack settings-pane" });
  body.append(nav, pane);
  root.append(page);
  let stop = null;

  const card = (title, text, ...children) => el("section", { className: "card stack" }, el("div", { className: "stack tight" }, el("h2", {}, title), text && el("p", { className: "muted" }, text)), children);

  /** A form with its own place for what went wrong. */
  function form(title, text, fields, action, run) {
    const problem = el("p", { className: "problem", attrs: { role: "alert" }, hidden: true });
    const submit = button(action, null, { kind: "main", type: "submit" });
    return el("form", { className: "card stack", on: { submit: async (event) => {
      event.preventDefault();
      problem.hidden = true;
      submit.disabled = true;
      try {
        await run();
      } catch (error) {
        problem.textContent = errorText(error);
        problem.hidden = false;
      }
      submit.disabled = false;
    } } }, el("div", { className: "stack tight" }, el("h2", {}, title), text && el("p", { className: "muted" }, text)), fields, problem, el("div", { className: "actions" }, submit));
  }

  // General

  function editor(setting, set) {
    const label = t.has(`set.${setting.key}`) ? t(`set.${setting.key}`) : setting.key;
    const words = t.has(`set.${setting.key}.note`) ? t(`set.${setting.key}.note`) : setting.text ?? "";
    const note = [words, setting.pending && t("setting.pending")].filter(Boolean).join(" ");
    if (setting.choices?.length > 0) {
      const { root: node, input } = field(label, { options: setting.choices.map((choice) => [choice, choice]), value: setting.value, disabled: !setting.editable, on: { change: () => set(input.value) } }, note);
      return node;
    }
    if (setting.type === "bool" || typeof setting.value === "boolean") {
      const { root: node, input } = toggle(label, setting.value === true, (on) => set(on), note);
      input.disabled = !setting.editable;
      return node;
    }
    if (Array.isArray(setting.value)) {
      const { root: node, input } = field(label, { multiline: true, rows: Math.max(2, setting.value.length), value: setting.value.join("\n"), disabled: !setting.editable, spellcheck: false, on: { input: () => set(input.value.split("\n").map((line) => line.trim()).filter(Boolean)) } }, [note, t("setting.lines")].join(" "));
      return node;
    }
    if (typeof setting.value === "number") {
      const units = UNITS[setting.unit];
      const start = units ? [...units].reverse().find(([size]) => setting.value >= size && setting.value % size === 0) ?? units.at(-1) : [1, ""];
      let size = units ? (setting.value === 0 ? units.at(-1)[0] : start[0]) : 1;
      const tell = () => { if (input.value !== "") set(Math.round(Number(input.value) * size)); };
      const { root: node, input } = field(label, { type: "number", inputMode: "numeric", min: 0, step: "any", value: setting.value / size, disabled: !setting.editable, on: { input: tell } }, note);
      if (setting.min !== undefined && !units) input.min = setting.min;
      if (setting.max !== undefined && !units) input.max = setting.max;
      const unit = units ? el("select", { aria: { label: t("setting.unit") }, disabled: !setting.editable, on: { change: () => { size = Number(unit.value); tell(); } } }, units.map(([n, key]) => el("option", { value: n, selected: n === size }, t(key))))
        : setting.unit ? el("span", { className: "muted unit" }, t.has(`unit.word.${setting.unit}`) ? t(`unit.word.${setting.unit}`) : setting.unit) : null;
      if (unit) {
        const line = el("div", { className: "with-unit" });
        input.replaceWith(line);
        line.append(input, unit);
      }
      return node;
    }
    const { root: node, input } = field(label, { value: setting.value ?? "", disabled: !setting.editable, spellcheck: false, on: { input: () => set(input.value) } }, note);
    return node;
  }

  async function general() {
    const { settings } = await api.get("settings", {}, { signal: ctx.signal });
    const changes = {};
    const groups = new Map();
    for (const setting of settings) groups.set(setting.group || "Advanced", [...(groups.get(setting.group || "Advanced") ?? []), setting]);
    // Ports that were given on the command line differ from the file for good.
    const isPending = settings.some((setting) => setting.pending && !/(port|listen)$/.test(setting.key));
    const save = button(t("save"), null, { kind: "main", type: "submit", disabled: true });
    const undo = button(t("setting.undo"), () => general().catch(ctx.fail), { kind: "plain", disabled: true });
    const problem = el("p", { className: "problem", attrs: { role: "alert" }, hidden: true });
    const bar = el("div", { className: "save-bar" }, problem, el("div", { className: "actions" }, el("span", { className: "muted", attrs: { role: "status" } }), undo, save));
    const told = bar.querySelector("span");
    const set = (setting, value) => {
      if (JSON.stringify(value) === JSON.stringify(setting.value)) delete changes[setting.key];
      else changes[setting.key] = value;
      const count = Object.keys(changes).length;
      save.disabled = undo.disabled = count === 0;
      told.textContent = count > 0 ? format.counted(count, "setting.changed") : "";
      bar.classList.toggle("active", count > 0);
    };
    const sections = [...groups].map(([group, items]) => {
      const first = items.filter((item) => item.editable);
      const rest = items.filter((item) => !item.editable);
      const title = t.has(`group.${group}`) ? t(`group.${group}`) : group;
      if (group === "Advanced") {
        return el("section", { className: "card" }, el("details", {}, el("summary", {}, el("h2", { className: "in-line" }, title)), el("div", { className: "stack" }, items.map((item) => editor(item, (value) => set(item, value))))));
      }
      return el("section", { className: "card stack" }, el("h2", {}, title), first.map((item) => editor(item, (value) => set(item, value))),
        rest.length > 0 && el("details", {}, el("summary", {}, t("setting.in_file", { n: rest.length })), el("div", { className: "stack" }, rest.map((item) => editor(item, () => {})))));
    });
    pane.replaceChildren(el("form", { className: "stack", on: { submit: async (event) => {
      event.preventDefault();
      save.disabled = true;
      problem.hidden = true;
      const needsRestart = settings.some((setting) => setting.restart && setting.key in changes);
      try {
        await api.post("settings", changes);
        ctx.toast(t("setting.saved"));
        ctx.refresh();
        if (needsRestart && await ctx.ask(t("about.restart"), t("setting.restart.ask"), t("about.restart"))) await restart();
        await general();
      } catch (error) {
        problem.textContent = errorText(error);
        problem.hidden = false;
        save.disabled = false;
      }
    } } }, isPending && el("div", { className: "hint wanted" }, el("span", {}, t("setting.is_pending")), button(t("about.restart"), () => restart().catch(ctx.fail), { className: "button small-button" })), sections, bar));
  }

  // Access

  async function access() {
    const current = field(t("access.current"), { type: "password", autocomplete: "current-password", required: true });
    const wanted = field(t("door.password"), { type: "password", autocomplete: "new-password", required: true, minLength: 8 });
    const again = field(t("door.password.again"), { type: "password", autocomplete: "new-password", required: true });
    const password = form(t("access.password"), "", [current.root, wanted.root, again.root], t("access.password.do"), async () => {
      if (wanted.input.value !== again.input.value) throw new api.ApiError(0, "", t("door.differ"), "");
      await api.post("password", { current: current.input.value, password: wanted.input.value });
      password.reset();
      ctx.toast(t("access.password.done"));
    });
    const totp = el("section", { className: "card stack" });
    const sessions = el("section", { className: "card stack" }, waiting());
    pane.replaceChildren(sessions, password, totp);
    const session = await api.session();
    ctx.state.session = session;
    paintTotp(totp, session.totp);
    await paintSessions(sessions);
  }

  async function paintSessions(node) {
    const { sessions } = await api.get("sessions", {}, { signal: ctx.signal });
    const revoke = async (data, key) => {
      try {
        await api.post("sessions/revoke", data);
        ctx.toast(t(key));
        await paintSessions(node);
      } catch (error) {
        ctx.fail(error);
      }
    };
    node.replaceChildren(el("div", { className: "card-head" }, el("h2", {}, t("access.sessions")), sessions.length > 1 && button(t("access.others"), () => revoke({ others: true }, "access.others.done"), { className: "button small-button" })),
      el("ul", { className: "lines" }, sessions.map((one) => el("li", { className: "feed-row" }, el("span", { className: "picture" }, icon(one.current ? "check" : "key")),
        el("div", { className: "file-words" }, el("p", { className: "strong cut", title: one.agent }, device(one.agent)), el("p", { className: "small muted" }, [one.from, t("access.used", { span: format.ago(Math.max(0, Date.now() / 1000 - one.used_unix)) })].filter(Boolean).join(" · "))),
        one.current ? pill(t("access.this"), "good") : button(t("access.revoke"), () => revoke({ id: one.id }, "access.revoked"), { className: "button small-button" })))));
  }

  function device(agent = "") {
    const browser = /Firefox\//.test(agent) ? "Firefox" : /Edg\//.test(agent) ? "Edge" : /Chrome\//.test(agent) ? "Chrome" : /Safari\//.test(agent) ? "Safari" : "";
    const system = /Android/.test(agent) ? "Android" : /iPhone|iPad/.test(agent) ? "iOS" : /Windows/.test(agent) ? "Windows" : /Mac OS/.test(agent) ? "macOS" : /Linux/.test(agent) ? "Linux" : "";
    return browser && system ? t("access.device", { browser, system }) : agent || t("access.unknown");
  }

  function paintTotp(node, isOn) {
    const head = el("div", { className: "stack tight" }, el("div", { className: "card-head" }, el("h2", {}, t("totp.title")), pill(t(isOn ? "totp.on" : "totp.off"), isOn ? "good" : "")), el("p", { className: "muted" }, t("totp.text")));
    if (isOn) {
      node.replaceChildren(head, el("div", { className: "actions" }, button(t("totp.remove"), async () => {
        const { root: one, input } = field(t("access.current"), { type: "password", autocomplete: "current-password", required: true });
        await ctx.dialog({ title: t("totp.remove"), body: [el("p", {}, t("totp.remove.text")), one], actions: [{ label: t("cancel") }, { label: t("totp.remove"), kind: "danger", submit: true, run: async () => {
          await api.post("totp/remove", { password: input.value });
          ctx.toast(t("totp.removed"));
          paintTotp(node, false);
          return true;
        } }] });
      })));
      return;
    }
    node.replaceChildren(head, el("div", { className: "actions" }, button(t("totp.begin"), async () => {
      try {
        const { secret, uri } = await api.post("totp/begin");
        const { root: one, input } = field(t("totp.code"), { inputMode: "numeric", autocomplete: "one-time-code", required: true, maxLength: 8, className: "code" });
        await ctx.dialog({ title: t("totp.begin"), body: [el("p", {}, t("totp.scan")), await qr(uri, t("totp.qr")), copyBox(secret, t("totp.secret")), one], actions: [{ label: t("cancel") }, { label: t("totp.confirm"), kind: "main", submit: true, run: async () => {
          await api.post("totp/confirm", { code: input.value.replace(/\s/g, "") });
          ctx.toast(t("totp.done"));
          paintTotp(node, true);
          return true;
        } }] });
      } catch (error) {
        ctx.fail(error);
      }
    }, { icon: "shield" })));
  }

  // Phrase

  async function phrase() {
    const show = button(t("phrase.show"), () => reveal(false), { kind: "main", icon: "eye" });
    const out = el("div", { className: "stack" });
    const isKept = !ctx.state.status?.alerts?.some((alert) => alert.code === "phrase");
    pane.replaceChildren(card(t("walk.phrase"), t("walk.phrase.text"), el("div", { className: "actions" }, show, pill(t(isKept ? "phrase.kept" : "phrase.not_kept"), isKept ? "good" : "warn")), out));
    async function reveal(plain) {
      try {
        const told = await api.post("phrase", plain ? { plain: true } : {});
        const words = told.words ?? told.phrase.split(/\s+/);
        show.remove();
        const places = [3, 11, 19];
        const fields = places.map((n) => field(t("walk.check.word", { n }), { required: true, autocomplete: "off", autocapitalize: "none", spellcheck: false }));
        const check = el("div", {});
        out.replaceChildren(el("ol", { className: "words", aria: { label: t("walk.phrase.list") } }, words.map((word, n) => el("li", {}, el("span", { className: "n", aria: { hidden: "true" } }, n + 1), word))),
          told.addresses?.length > 0 && el("div", { className: "stack tight" }, el("p", { className: "muted" }, t("phrase.addresses")), el("ul", {}, told.addresses.map((address) => el("li", {}, el("code", {}, address))))),
          el("div", { className: "actions" }, button(t("walk.phrase.print"), () => print(), { icon: "text" }), button(t("walk.phrase.done"), () => {
            out.replaceChildren(check);
            check.replaceChildren(form(t("walk.check"), t("walk.check.text"), fields.map((each) => each.root), t("phrase.check"), async () => {
              await api.post("phrase/kept", { words: Object.fromEntries(places.map((n, at) => [n, fields[at].input.value.trim().toLowerCase()])) });
              ctx.toast(t("phrase.done"));
              ctx.refresh();
              const timer = setTimeout(phrase, 2000);
              stop = () => clearTimeout(timer);
              check.replaceChildren(el("p", { className: "pill good" }, t("phrase.kept")));
            }));
          }, { kind: "main" })));
      } catch (error) {
        if (!/plain/.test(error.code)) return void ctx.fail(error);
        out.replaceChildren(el("p", { className: "hint" }, t("walk.phrase.plain")), el("div", { className: "actions" }, el("a", { className: "button", href: `https://${location.host}/` }, t("door.plain.link")), button(t("walk.phrase.plain.show"), () => reveal(true))));
      }
      return undefined;
    }
  }

  // Logs

  async function logs() {
    const log = el("div", { className: "log", attrs: { role: "log", tabindex: "0" }, aria: { label: t("settings.logs") } });
    const level = el("select", { aria: { label: t("logs.level") }, on: { change: () => repaint() } }, ["all", "warn", "error"].map((each) => el("option", { value: each }, t(`logs.${each}`))));
    pane.replaceChildren(el("section", { className: "card stack" }, el("div", { className: "card-head" }, el("h2", {}, t("settings.logs")), el("span", {}, level)), log));
    let last = 0;
    let lines = [];
    const line = (one) => el("p", { className: `log-line ${one.level.toLowerCase()}` }, el("span", { className: "muted number" }, format.moment(one.unix_ms / 1000)), el("span", { className: "log-level" }, one.level), el("span", {}, one.text));
    const wanted = (one) => level.value === "all" || /error/i.test(one.level) || (level.value === "warn" && /warn/i.test(one.level));
    const repaint = () => {
      const some = lines.filter(wanted);
      log.replaceChildren(...(some.length > 0 ? some.map(line) : [empty("text", t("logs.none"), "")]));
      log.scrollTop = log.scrollHeight;
    };
    const more = async () => {
      const told = await api.get("logs", { after: last }, { signal: ctx.signal });
      if (told.lines.length > 0 || last === 0) {
        lines = [...lines, ...told.lines].slice(-1000);
        last = told.last;
        repaint();
      }
    };
    await more();
    const timer = setInterval(() => more().catch(() => {}), 3000);
    stop = () => clearInterval(timer);
  }

  // About

  async function restart() {
    await api.post("restart").catch((error) => { if (error.status !== 0) throw error; });
    ctx.toast(t("about.restarting"));
  }

  async function about() {
    const status = ctx.state.status ?? await api.status();
    const session = ctx.state.session;
    const checks = el("div", { className: "stack tight" });
    const check = button(t("about.check"), async () => {
      check.disabled = true;
      try {
        const told = await api.get("doctor", {}, { limit: 120000 });
        checks.replaceChildren(el("ul", { className: "plain-list" }, (told.checks ?? []).map((one) => {
          const state = one.state ?? one.status ?? (one.ok ? "ok" : "fail");
          return el("li", {}, icon(state === "ok" ? "check" : "warn"), el("span", {}, one.text ?? one.name), state !== "ok" && el("span", { className: "small muted" }, one.remedy ?? one.hint ?? ""));
        })));
      } catch (error) {
        ctx.fail(error);
      }
      check.disabled = false;
    });
    const verify = button(t("about.verify"), async () => {
      verify.disabled = true;
      const bar = meter(0, 0, t("about.verify"));
      checks.replaceChildren(bar);
      try {
        const told = await api.job("verify", { deep: true }, (job) => { if (job.total > 0) Object.assign(bar, { max: job.total, value: job.done }); });
        checks.replaceChildren(el("p", {}, t("about.verified", { chunks: format.number(told.chunks), repaired: format.number(told.repaired), missing: format.number(told.missing) })));
      } catch (error) {
        ctx.fail(error);
        checks.replaceChildren();
      }
      verify.disabled = false;
    });
    pane.replaceChildren(card(t("about.title"), "", el("dl", { className: "facts" },
      el("dt", {}, t("about.name")), el("dd", {}, status.name), el("dt", {}, t("about.version")), el("dd", {}, `Grove ${status.version}`),
      el("dt", {}, t("about.folder")), el("dd", {}, el("code", {}, status.home)), el("dt", {}, t("fleet.id")), el("dd", {}, el("code", { className: "small" }, status.id)),
      el("dt", {}, t("about.life")), el("dd", {}, String(status.life)), el("dt", {}, t("about.up")), el("dd", {}, format.duration(status.uptime_s)),
      session.fingerprint && [el("dt", {}, t("about.fingerprint")), el("dd", {}, el("code", { className: "small" }, session.fingerprint))]),
    el("div", { className: "actions" }, button(t("about.restart"), async () => {
      if (await ctx.ask(t("about.restart"), t("about.restart.ask"), t("about.restart"))) await restart().catch(ctx.fail);
    }, { icon: "power" }), el("a", { className: "button", href: ctx.href("help") }, icon("help"), el("span", {}, t("tab.help"))))),
    card(t("about.health"), t("about.health.text"), el("div", { className: "actions" }, check, verify), checks),
    card(t("about.libraries"), t("about.libraries.text")));
  }

  const run = { general, access, phrase, logs, about };
  switchTo = async (path) => {
    stop?.();
    stop = null;
    const part = PARTS.includes(path[0]) ? path[0] : "general";
    for (const link of links) {
      if (link.dataset.part === part) {
        link.setAttribute("aria-current", "page");
        link.parentElement.scrollLeft = link.offsetLeft - 40;
      } else link.removeAttribute("aria-current");
    }
    pane.replaceChildren(waiting());
    try {
      await run[part]();
    } catch (error) {
      if (error.status === -1) return;
      pane.replaceChildren(el("p", { className: "problem", attrs: { role: "alert" } }, errorText(error)));
      if (error.status === undefined) console.error(error);
    }
  };
  ctx.signal.addEventListener("abort", () => stop?.());
  await switchTo(ctx.path);
}

export function moved(path) {
  switchTo(path);
}

