// Pieces that every tab uses: dialogs, toasts, menus, fields, meters.

import { el, icon, svg } from "./dom.js";
import { sentence } from "./format.js";
import { t } from "../texts.js";

/** A button with a drawing and a word. `kind`: "main", "plain" (default), "quiet", "danger". */
export function button(label, run, { kind = "plain", icon: drawing, title, type = "button", ...more } = {}) {
  return el("button", { className: `button ${kind}`, type, title, on: run ? { click: run } : {}, ...more },
    drawing && icon(drawing), el("span", {}, label));
}

/** A button that is a drawing alone; `label` is for screen readers and as a tip. */
export function iconButton(drawing, label, run, { className = "", ...more } = {}) {
  return el("button", {
    className: `icon-button ${className}`, type: "button", title: label, aria: { label }, on: run ? { click: run } : {}, ...more,
  }, icon(drawing));
}

let fieldNumber = 0;

/** A labelled input: `{ root, input }`. `note` stands below it. */
export function field(label, props = {}, note = "") {
  fieldNumber += 1;
  const id = `field-${fieldNumber}`;
  const { options, multiline, ...rest } = props;
  const describe = note ? { describedby: `${id}-note` } : {};
  const input = options
    ? el("select", { id, aria: describe, ...rest }, options.map(([value, text]) => el("option", { value }, text)))
    : el(multiline ? "textarea" : "input", { id, aria: describe, ...rest });
  if (options && rest.value !== undefined) input.value = rest.value;
  const root = el("div", { className: "field" }, el("label", { htmlFor: id }, label), input,
    note && el("p", { className: "note", id: `${id}-note` }, note));
  return { root, input };
}

/** A switch with its word: `{ root, input }`. */
export function toggle(label, checked, onChange, note = "") {
  fieldNumber += 1;
  const id = `field-${fieldNumber}`;
  const input = el("input", {
    type: "checkbox", id, checked, className: "switch", attrs: { role: "switch" }, aria: note ? { describedby: `${id}-note` } : {},
    on: { change: () => onChange?.(input.checked) },
  });
  const root = el("div", { className: "toggle" },
    el("div", {}, el("label", { htmlFor: id }, label), note && el("p", { className: "note", id: `${id}-note` }, note)), input);
  return { root, input };
}

/** What went wrong, as text: the message, and what to do. */
export const errorText = (error) => [error.message, error.hint].filter(Boolean).map(sentence).join(" ");

/** A bar; without a number it only shows that something goes on. */
export function meter(value, max, label, className = "") {
  const bar = el("progress", { className, aria: { label } });
  if (max > 0) Object.assign(bar, { max, value: Math.min(value, max) });
  return bar;
}

/** What stands where there is nothing yet. */
export function empty(drawing, title, text, ...actions) {
  return el("div", { className: "empty" }, el("div", { className: "empty-mark" }, icon(drawing)),
    el("p", { className: "empty-title" }, title), text && el("p", { className: "muted" }, text),
    actions.length > 0 && el("div", { className: "actions" }, actions));
}

/** A few grey bars while something is on its way. */
export const waiting = () => el("div", { className: "waiting", attrs: { role: "status" }, aria: { label: t("wait") } },
  el("span"), el("span"), el("span"));

export const pill = (text, kind = "") => el("span", { className: `pill ${kind}` }, text);
export const dot = (kind) => el("span", { className: `dot ${kind}`, aria: { hidden: "true" } });

/** A round mark with the first letter of a name, and whether it is here. */
export function face(name, online) {
  const hue = [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 6, 7);
  return el("span", { className: `face face-${hue}`, aria: { hidden: "true" } }, ([...name.trim()][0] ?? "?").toUpperCase(), dot(online ? "on" : ""));
}

// Toasts

/** Says something for a few seconds. */
export function toast(text, { kind = "good", action } = {}) {
  const root = document.getElementById("toasts");
  const gone = () => note.remove();
  const note = el("div", { className: `toast ${kind}` }, icon(kind === "bad" ? "warn" : "check"), el("p", {}, text),
    action && el("button", { className: "link", type: "button", on: { click: () => { gone(); action.run(); } } }, action.label),
    iconButton("close", t("close"), gone));
  while (root.children.length >= 3) root.firstChild.remove();
  root.append(note);
  let timer;
  const start = () => { timer = setTimeout(gone, kind === "bad" ? 9000 : action ? 12_000 : 5000); };
  note.addEventListener("pointerenter", () => clearTimeout(timer));
  note.addEventListener("pointerleave", start);
  start();
}

/** Says what went wrong; nothing if the page was left meanwhile. */
export function fail(error) {
  if (error?.status === -1) return;
  if (error?.status === undefined) console.error(error);
  toast(errorText(error), { kind: "bad" });
}

// Dialogs

/**
 * A dialog; gives the value of the action chosen, or undefined.
 * An action's `run` may be async: while it works the dialog waits, and an error is shown in it.
 * @param {{title: string, body?: Node|Node[], actions?: {label: string, value?: any, kind?: string, run?: () => any, submit?: boolean}[],
 *   wide?: boolean, className?: string}} spec
 */
export function dialog({ title, body, actions = [{ label: t("close"), value: undefined }], wide = false, className = "" }) {
  return new Promise((done) => {
    const problem = el("p", { className: "problem", attrs: { role: "alert" }, hidden: true });
    let answer;
    const finish = (value) => { answer = value; box.close(); };
    const buttons = actions.map((action) => {
      const press = async () => {
        if (!action.run) return finish(action.value);
        problem.hidden = true;
        for (const each of buttons) each.disabled = true;
        try {
          const value = await action.run();
          if (value !== false) finish(value ?? action.value ?? true);
        } catch (error) {
          if (error.status === undefined) console.error(error);
          problem.textContent = errorText(error);
          problem.hidden = false;
        }
        for (const each of buttons) each.disabled = false;
      };
      return button(action.label, action.submit ? null : press,
        { kind: action.kind ?? "plain", type: action.submit ? "submit" : "button", data: { press: "" }, press });
    });
    const heading = el("h2", { id: `dialog-${Date.now()}` }, title);
    const form = el("form", { className: "dialog-form", on: { submit: (event) => {
      event.preventDefault();
      buttons.find((each) => each.type === "submit")?.press();
    } } },
      el("header", {}, heading, iconButton("close", t("close"), () => finish(undefined))),
      el("div", { className: "dialog-body" }, body, problem),
      actions.length > 0 && el("footer", {}, buttons));
    const box = el("dialog", { className: `${wide ? "wide" : ""} ${className}`, aria: { labelledby: heading.id } }, form);
    box.addEventListener("click", (event) => { if (event.target === box) finish(undefined); });
    box.addEventListener("close", () => {
      box.remove();
      done(answer);
    });
    document.body.append(box);
    box.showModal();
    const first = box.querySelector("[autofocus], .dialog-body input:not([type=checkbox]), .dialog-body textarea, .dialog-body select")
      ?? buttons.at(-1);
    first?.focus();
  });
}

/** A question with yes and no. */
export async function ask(title, text, label, { danger = false, more } = {}) {
  const body = [].concat(text).map((line) => el("p", {}, line));
  const actions = [{ label: t("cancel"), value: false }, { label, value: true, kind: danger ? "danger" : "main", submit: true, run: () => true }];
  return (await dialog({ title, body: [...body, more], actions })) === true;
}

/** A question for one line of text. */
export async function askText(title, label, value, action, run, note = "") {
  const { root, input } = field(label, { value, autocomplete: "off", spellcheck: false, required: true, maxLength: 255 }, note);
  const shown = dialog({ title, body: [root], actions: [
    { label: t("cancel") },
    { label: action, kind: "main", submit: true, run: async () => { await run(input.value); return input.value; } }] });
  const dotAt = value.lastIndexOf(".");
  input.setSelectionRange(0, dotAt > 0 ? dotAt : value.length);
  return shown;
}

// Menus

let openMenu = null;

/**
 * A menu below `anchor`; a sheet from below on a phone.
 * @param {HTMLElement} anchor @param {({label: string, icon?: string, run: () => void, danger?: boolean}|null)[]} items
 */
export function menu(anchor, items, { at } = {}) {
  openMenu?.();
  const shade = el("div", { className: "menu-shade" });
  const list = el("div", { className: "menu", attrs: { role: "menu", tabindex: "-1" } },
    items.map((item) => item === null ? el("hr") : el("button", {
      type: "button", className: item.danger ? "danger" : "", attrs: { role: "menuitem", tabindex: "-1" },
      on: { click: () => { shut(true); item.run(); } },
    }, icon(item.icon ?? "next"), el("span", {}, item.label))));
  const buttons = [...list.querySelectorAll("button")];
  const shut = (refocus) => {
    list.remove();
    shade.remove();
    openMenu = null;
    document.removeEventListener("keydown", onKey, true);
    anchor?.setAttribute?.("aria-expanded", "false");
    if (refocus) anchor?.focus?.({ preventScroll: true });
  };
  const onKey = (event) => {
    const at = buttons.indexOf(document.activeElement);
    if (event.key === "Escape" || event.key === "Tab") { event.preventDefault(); event.stopPropagation(); shut(true); }
    else if (event.key === "ArrowDown") { event.preventDefault(); buttons[(at + 1) % buttons.length].focus(); }
    else if (event.key === "ArrowUp") { event.preventDefault(); buttons[(at - 1 + buttons.length) % buttons.length].focus(); }
    else if (event.key === "Home") { event.preventDefault(); buttons[0].focus(); }
    else if (event.key === "End") { event.preventDefault(); buttons.at(-1).focus(); }
  };
  shade.addEventListener("click", () => shut(true));
  shade.addEventListener("contextmenu", (event) => { event.preventDefault(); shut(true); });
  document.addEventListener("keydown", onKey, true);
  const home = anchor?.closest?.("dialog") ?? document.body;
  home.append(shade, list);
  anchor?.setAttribute?.("aria-expanded", "true");
  if (!matchMedia("(max-width: 760px)").matches) {
    const from = at ? { left: at.x, right: at.x, top: at.y, bottom: at.y } : anchor.getBoundingClientRect();
    const { width, height } = list.getBoundingClientRect();
    const left = Math.max(8, Math.min(at ? from.left : from.right - width, innerWidth - width - 8));
    const below = from.bottom + 4 + height < innerHeight - 8;
    list.style.left = `${left}px`;
    list.style.top = `${below ? from.bottom + 4 : Math.max(8, from.top - 4 - height)}px`;
  }
  openMenu = shut;
  buttons[0]?.focus({ preventScroll: true });
}

// Copying

/** Puts text on the clipboard; over plain HTTP by selecting, as browsers have it. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { value: text, className: "sr" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t("copied"));
}

/** A text to copy, with its button. */
export function copyBox(text, label) {
  return el("div", { className: "copy-box" }, el("code", { attrs: { tabindex: "0" }, aria: { label } }, text),
    iconButton("copy", t("copy"), () => copy(text)));
}

/** A QR code, as a drawing. */
export async function qr(text, label) {
  const { default: make } = await import("../vendor/qrcode.mjs");
  const code = make(0, "M");
  code.addData(text);
  code.make();
  const count = code.getModuleCount();
  let path = "";
  for (let y = 0; y < count; y += 1) {
    for (let x = 0; x < count; x += 1) if (code.isDark(y, x)) path += `M${x + 4} ${y + 4}h1v1h-1z`;
  }
  return svg("svg", { viewBox: `0 0 ${count + 8} ${count + 8}`, class: "qr", role: "img", "aria-label": label },
    svg("rect", { width: count + 8, height: count + 8, fill: "#fff" }), svg("path", { d: path, fill: "#000" }));
}

/** Builds a part anew only when what it shows has changed. */
export class Parts {
  constructor(root) {
    this.root = root;
    this.shown = new Map();
  }

  /** @param {string} name @param {any} shows plain data @param {(shows: any) => Node} build */
  put(name, shows, build) {
    const text = JSON.stringify(shows);
    const before = this.shown.get(name);
    if (before?.text === text) return before.node;
    const node = build(shows);
    if (before) before.node.replaceWith(node);
    else this.root.append(node);
    this.shown.set(name, { text, node });
    return node;
  }
}
