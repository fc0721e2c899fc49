// The way in: set-up, sign-in, and the first walk through a new cell.

import * as api from "./api.js";
import { t } from "./texts.js";
import { el, icon } from "./ui/dom.js";

import { button, copyBox, errorText, fail, field, meter, qr, waiting } from "./ui/pieces.js";

const WALK = ["choice", "name", "phrase", "check", "files", "invite"];

const app = document.getElementById("app");

function stage(...children) {
  app.className = "door";
  const main = el("main", {}, el("div", { className: "door-brand" }, el("img", { src: "/icon.svg", alt: "", width: 40, height: 40 }),
    el("span", { className: "strong" }, "Grove")), children);
  app.replaceChildren(main);
  document.title = `${main.querySelector("h1")?.textContent ?? ""} – Grove`;
  return main;
}

/** A form that says below its fields what went wrong. */
function form({ title, text, fields, action, send, more = [] }) {
  const problem = el("p", { className: "problem", attrs: { role: "alert" }, hidden: true });
  const submit = button(action, null, { kind: "main", type: "submit" });
  const root = el("form", { className: "card", on: { submit: async (event) => {
    event.preventDefault();
    problem.hidden = true;
    submit.disabled = true;
    try {
      await send(submit);
    } catch (error) {
      problem.textContent = errorText(error);
      problem.hidden = false;
      const wrong = /code/.test(error.code) ? root.querySelector("input") : root.querySelector("input[type=password]") ?? root.querySelector("input");
      wrong?.select();
    }
    submit.disabled = false;
  } } }, el("div", { className: "stack tight" }, el("h1", {}, title), text && el("p", { className: "muted" }, text)), fields, problem, submit, more);
  return root;
}

const plainWarning = (session) => session.secure === false && el("p", { className: "hint" }, t("door.plain"), " ",
  el("a", { href: `https://${location.host}/` }, t("door.plain.link")));

function showSetup(session, start) {
  const code = field(t("door.code"), {
    required: true, autocomplete: "one-time-code", autocapitalize: "characters", spellcheck: false, placeholder: "XXXX-XXXX", className: "code",
  }, t("door.code.note"));
  const password = field(t("door.password"), { type: "password", required: true, autocomplete: "new-password", minLength: 8 }, t("door.password.note"));
  const again = field(t("door.password.again"), { type: "password", required: true, autocomplete: "new-password" });
  stage(plainWarning(session), form({
    title: t("door.title"), text: t("door.text"), fields: [code.root, password.root, again.root], action: t("door.begin"),
    async send() {
      if (password.input.value !== again.input.value) throw new api.ApiError(0, "", t("door.differ"), "");
      await api.post("setup", { code: code.input.value, password: password.input.value });
      await start();
    },
    more: session.fingerprint && location.protocol === "https:"
      ? [el("details", {}, el("summary", { className: "muted" }, t("door.fingerprint")), el("code", { className: "small" }, session.fingerprint))] : [],
  }));
  code.input.focus();
}

function showSignIn(session, start) {
  const password = field(t("door.password.current"), { type: "password", required: true, autocomplete: "current-password" });
  const totp = field(t("door.totp"), { inputMode: "numeric", autocomplete: "one-time-code", maxLength: 8, className: "code" }, t("door.totp.note"));
  totp.root.hidden = !session.totp;
  stage(plainWarning(session), form({
    title: session.name, text: t("door.sign_in.text"), fields: [password.root, totp.root], action: t("door.sign_in"),
    async send() {
      try {
        await api.post("login", { password: password.input.value, ...(totp.input.value ? { totp: totp.input.value.replace(/\s/g, "") } : {}) });
      } catch (error) {
        if (error.code === "totp_needed" && totp.root.hidden) {
          totp.root.hidden = false;
          totp.input.focus();
          return;
        }
        throw error;
      }
      sessionStorage.setItem("walk", "done");
      await start();
    },
    more: [el("p", { className: "note" }, t("door.forgot"))],
  }));
  password.input.focus();
}

// The walk

function step(name, title, text, body, foot, { wide } = {}) {
  const at = WALK.indexOf(name);
  const main = stage(
    at >= 0 && el("div", { className: "steps", attrs: { role: "img" }, aria: { label: t("walk.step", { n: at + 1, all: WALK.length }) } },
      WALK.map((_, n) => el("span", { className: n <= at ? "done" : "" }))),
    el("section", { className: "card" }, el("div", { className: "stack tight" }, el("h1", { tabIndex: -1 }, title), text && el("p", { className: "muted" }, text)),
      body, foot && el("div", { className: "foot" }, foot)));
  main.classList.toggle("wide", wide === true);
  (main.querySelector("input") ?? main.querySelector("h1")).focus();
  return main;
}

function showChoice(walk) {
  const choose = (drawing, title, text, run) => el("button", { type: "button", on: { click: run } }, icon(drawing),
    el("span", {}, el("span", { className: "strong" }, title), el("br"), el("span", { className: "muted" }, text)), icon("next"));
  step("choice", t("walk.choice"), t("walk.choice.text"), el("div", { className: "choice" },
    choose("plus", t("walk.new"), t("walk.new.text"), () => showName(walk)),
    choose("restore", t("walk.recover"), t("walk.recover.text"), () => showRecover(walk))));
}

function showName(walk) {
  const name = field(t("walk.name.label"), { value: walk.session.name, required: true, maxLength: 63, autocomplete: "off" }, t("walk.name.note"));
  stepForm("name", t("walk.name"), t("walk.name.text"), [name.root], t("next"), async () => {
    const wanted = name.input.value.trim();
    if (wanted && wanted !== walk.session.name) {
      await api.post("settings", { name: wanted });
      walk.session.name = wanted;
      // The cell goes by its new name after a new start: before an invitation carries the old one.
      if ((await api.session()).name !== wanted) await startAnew(wanted);
    }
    await showPhrase(walk);
  });
}

/** Restarts the cell and waits until it answers by its name. */
async function startAnew(name) {
  await api.post("restart").catch((error) => { if (error.status !== 0) throw error; });
  for (const end = Date.now() + 30000; Date.now() < end;) {
    await new Promise((done) => setTimeout(done, 500));
    const session = await api.session().catch(() => null);
    if (session?.name === name) return;
  }
  throw new api.ApiError(0, "", t("error.no_answer"), t("error.no_answer.hint"));
}

function stepForm(name, title, text, fields, action, send, more = []) {
  const at = WALK.indexOf(name);
  stage(at >= 0 && el("div", { className: "steps", attrs: { role: "img" }, aria: { label: t("walk.step", { n: at + 1, all: WALK.length }) } },
    WALK.map((_, n) => el("span", { className: n <= at ? "done" : "" }))), form({ title, text, fields, action, send, more }));
  app.querySelector("input, textarea")?.focus();
}

async function readPhrase(walk, plain = false) {
  if (!walk.words) {
    const told = await api.post("phrase", plain ? { plain: true } : {});
    walk.words = told.words ?? told.phrase.trim().split(/\s+/);
    walk.kept = told.kept === true;
  }
  return walk.words;
}

async function showPhrase(walk, plain = false) {
  let words;
  try {
    words = await readPhrase(walk, plain);
  } catch (error) {
    if (!/plain/.test(error.code)) throw error;
    step("phrase", t("walk.phrase"), t("walk.phrase.plain"), null, [
      el("a", { className: "button", href: `https://${location.host}/` }, t("door.plain.link")),
      button(t("walk.phrase.plain.show"), () => showPhrase(walk, true).catch(fail), { kind: "main" })]);
    return;
  }
  step("phrase", t("walk.phrase"), t("walk.phrase.text"),
    el("ol", { className: "words", aria: { label: t("walk.phrase.list") } },
      words.map((word, n) => el("li", {}, el("span", { className: "n", aria: { hidden: "true" } }, n + 1), word))),
    [button(t("walk.phrase.print"), () => print(), { icon: "text" }), button(t("walk.phrase.done"), () => showCheck(walk), { kind: "main" })], { wide: true });
}

function showCheck(walk) {
  // Three places that differ at each try; one in each third.
  const pick = (from) => from + (crypto.getRandomValues(new Uint8Array(1))[0] % 8);
  const places = [pick(1), pick(9), pick(17)];
  const fields = places.map((n) => field(t("walk.check.word", { n }), {
    required: true, autocomplete: "off", autocapitalize: "none", spellcheck: false, data: { word: n } }));
  stepForm("check", t("walk.check"), t("walk.check.text"), fields.map((each) => each.root), t("next"), async () => {
    const words = Object.fromEntries(places.map((n, at) => [n, fields[at].input.value.trim().toLowerCase()]));
    await api.post("phrase/kept", { words });
    await showFiles(walk);
  }, [button(t("walk.check.again"), () => showPhrase(walk), { kind: "quiet" })]);
}

async function showFiles(walk) {
  const status = await api.status().catch(() => null);
  const { Uploads, dropZone, uploadList } = await import("./files/uploads.js");
  const uploads = Uploads.shared();
  const zone = dropZone((items) => uploads.add(items, ""));
  const list = uploadList(uploads);
  const go = button(t("walk.files.later"), () => showInvite(walk), {});
  uploads.watch(() => {
    if (uploads.count > 0) {
      go.lastChild.textContent = t("next");
      go.className = "button main";
    }
  });
  step("files", t("walk.files"), t("walk.files.text"), [
    status && el("div", { className: "stack tight" }, el("p", { className: "small muted" }, t("walk.files.where")), copyBox(status.home, t("walk.files.where"))),
    zone, list], [go]);
}

async function showInvite(walk) {
  const body = el("div", { className: "stack" });
  const finish = button(t("walk.finish"), () => walk.finish(), {});
  step("invite", t("walk.invite"), t("walk.invite.text"), body, [finish]);
  const make = button(t("walk.invite.make"), async () => {
    make.disabled = true;
    try {
      const made = await api.post("invites", { role: "friend" });
      const state = el("p", { className: "muted", attrs: { role: "status" } }, t("walk.invite.wait"));
      body.replaceChildren(await qr(made.token, t("invite.qr")), copyBox(made.token, t("invite.token")), state);
      finish.className = "button main";
      const look = async () => {
        if (!state.isConnected) return;
        const { peers } = await api.get("peers").catch(() => ({ peers: [] }));
        if (peers.length > 0) {
          state.textContent = t("walk.invite.joined", { name: peers[0].name });
          state.className = "pill good";
        } else setTimeout(look, 3000);
      };
      look();
    } catch (error) {
      fail(error);
      make.disabled = false;
    }
  }, { kind: "main", icon: "invite" });
  body.append(make);
}

function showRecover(walk) {
  const phrase = field(t("walk.recover.phrase"), { multiline: true, required: true, autocomplete: "off", autocapitalize: "none", spellcheck: false, rows: 4 }, t("walk.recover.phrase.note"));
  const peer = field(t("walk.recover.peer"), { required: true, autocomplete: "off", spellcheck: false, autocapitalize: "none" }, t("walk.recover.peer.note"));
  const told = el("p", { className: "muted", attrs: { role: "status" } });
  const bar = meter(0, 0, t("wait"));
  bar.hidden = true;
  stepForm("recover", t("walk.recover.title"), t("walk.recover.note"), [phrase.root, peer.root, told, bar], t("walk.recover.go"), async () => {
    bar.hidden = false;
    told.textContent = t("walk.recover.busy");
    try {
      await api.job("recover", { phrase: phrase.input.value, peer: peer.input.value.trim() }, (job) => { told.textContent = job.text; });
    } catch (error) {
      // A cell that starts anew answers nothing for a while: that is how it ends.
      if (error.status !== 0 && error.status !== 401 && error.status !== 404 && error.status !== 503) {
        bar.hidden = true;
        told.textContent = "";
        throw error;
      }
    }
    told.textContent = t("walk.recover.restart");
    await new Promise((done) => setTimeout(done, 1500));
    for (;;) {
      const session = await api.session().catch(() => null);
      if (session) break;
      await new Promise((done) => setTimeout(done, 1000));
    }
    sessionStorage.setItem("walk", "done");
    await walk.start();
  }, [button(t("back"), () => showChoice(walk), { kind: "quiet" })]);
}

/** Shows what is for this visitor; `start` looks anew. */
export async function show(session, start) {
  if (!session.set_up) return showSetup(session, start);
  if (!session.signed_in) return showSignIn(session, start);
  stage(waiting());
  const walk = {
    session, start,
    finish() {
      sessionStorage.setItem("walk", "done");
      location.hash = "";
      start();
    },
  };
  try {
    const plainOk = session.secure !== false;
    if (plainOk) await readPhrase(walk).catch(() => {});
    if (walk.kept) await showFiles(walk);
    else showChoice(walk);
  } catch (error) {
    fail(error);
  }
  return undefined;
}

