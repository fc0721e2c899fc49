// A look at a file without leaving the page: pictures, films, sound, text and PDF, one after another with the keys.

import { t } from "../texts.js";
import { el, icon } from "../ui/dom.js";
import * as format from "../ui/format.js";
import { iconButton, waiting } from "../ui/pieces.js";
import { kindOf } from "./names.js";

const TEXT_BYTES_MAX = 512 * 1024;

async function textView(url, size, signal) {
  const response = await fetch(url, { signal, headers: size > TEXT_BYTES_MAX ? { Range: `bytes=0-${TEXT_BYTES_MAX - 1}` } : {} });
  if (!response.ok) throw new Error(t("error.unknown"));
  const reader = response.body.getReader();
  const parts = [];
  let count = 0;
  while (count < TEXT_BYTES_MAX) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    count += value.length;
  }
  reader.cancel().catch(() => {});
  const text = new TextDecoder().decode(await new Blob(parts).slice(0, TEXT_BYTES_MAX).arrayBuffer());
  return el("div", { className: "light-text", attrs: { tabindex: "0" }, aria: { label: t("light.text") } }, el("pre", {}, text),
    size > TEXT_BYTES_MAX && el("p", { className: "note" }, t("light.part", { bytes: format.bytes(TEXT_BYTES_MAX) })));
}

/**
 * Opens the lightbox.
 * @param {{at: number, count: number, entry: (n: number) => Promise<object|undefined>, url: (entry: object) => string,
 *   download: (entry: object) => string, actions?: (entry: object, close: () => void) => Node[]}} source
 */
export function openLightbox({ at, count, entry: entryAt, url, download, actions = () => [] }) {
  const title = el("h2", { className: "cut" });
  const note = el("p", { className: "small cut" });
  const stage = el("div", { className: "light-stage" });
  const tools = el("div", { className: "actions" });
  const back = iconButton("back", t("light.back"), () => move(-1), { className: "icon-button light-side back" });
  const forth = iconButton("next", t("light.next"), () => move(1), { className: "icon-button light-side next" });
  title.id = "light-title";
  const box = el("dialog", { className: "light", tabIndex: -1, aria: { labelledby: "light-title" } },
    el("header", {}, el("div", { className: "light-words" }, title, note), tools), stage, back, forth);
  let abort = new AbortController();
  let step = 0;

  function fit() {
    const picture = stage.querySelector("img");
    if (!picture) return;
    picture.classList.toggle("real");
  }

  async function show(n, direction = 1) {
    const mine = ++step;
    abort.abort();
    abort = new AbortController();
    // Folders in between are passed over.
    let entry = await entryAt(n);
    while (entry && entry.kind === "folder" && n + direction >= 0 && n + direction < count) {
      n += direction;
      entry = await entryAt(n);
    }
    if (mine !== step || !entry || entry.kind === "folder") return;
    at = n;
    const kind = kindOf(entry.name);
    const source = url(entry);
    title.textContent = entry.name;
    title.title = entry.name;
    note.textContent = [entry.from, format.bytes(entry.size), entry.modified_unix_ms && format.moment(entry.modified_unix_ms / 1000), count > 1 && t("light.count", { n: format.number(n + 1), all: format.number(count) })].filter(Boolean).join(" · ");
    tools.replaceChildren(...actions(entry, () => box.close()),
      el("a", { className: "icon-button", href: download(entry), download: entry.name, title: t("files.download"), aria: { label: t("files.download") } }, icon("download")),
      iconButton("close", t("close"), () => box.close()));
    if (!box.contains(document.activeElement)) box.focus();
    back.disabled = n <= 0;
    forth.disabled = n >= count - 1;
    back.hidden = forth.hidden = count < 2;
    stage.replaceChildren(waiting());
    const failed = () => {
      if (mine !== step) return;
      stage.replaceChildren(el("div", { className: "light-none" }, icon("file"), el("p", {}, t("light.failed")),
        el("a", { className: "button main", href: download(entry), download: entry.name }, icon("download"), el("span", {}, t("files.download")))));
    };
    let view;
    if (entry.size === 0) view = el("div", { className: "light-none" }, icon("file"), el("p", {}, t("light.empty")));
    else if (kind === "image") view = el("img", { src: source, alt: entry.name, decoding: "async", on: { error: failed, dblclick: fit } });
    else if (kind === "video") view = el("video", { src: source, controls: true, autoplay: true, playsInline: true, on: { error: failed } });
    else if (kind === "audio") view = el("div", { className: "light-none" }, icon("audio"), el("audio", { src: source, controls: true, autoplay: true, on: { error: failed } }));
    else if (kind === "pdf") view = el("iframe", { src: source, title: entry.name });
    else if (kind === "text") {
      try {
        view = await textView(source, entry.size, abort.signal);
      } catch {
        return failed();
      }
    } else {
      view = el("div", { className: "light-none" }, icon("file"), el("p", {}, t("light.none")),
        el("a", { className: "button main", href: download(entry), download: entry.name }, icon("download"), el("span", {}, t("files.download"))));
    }
    if (mine !== step) return;
    stage.replaceChildren(view);
    return undefined;
  }

  function move(by) {
    const n = at + by;
    if (n >= 0 && n < count) show(n, by).catch(() => {});
  }

  box.addEventListener("keydown", (event) => {
    const media = stage.querySelector("video, audio");
    if (event.target.closest?.("video, audio") && event.key !== "Escape" && !["PageUp", "PageDown"].includes(event.key)) return;
    if (event.key === "ArrowLeft" || event.key === "PageUp") move(-1);
    else if (event.key === "ArrowRight" || event.key === "PageDown") move(1);
    else if (event.key === "Home") show(0, 1);
    else if (event.key === "End") show(count - 1, -1);
    else if (event.key === " " && media && event.target.tagName !== "BUTTON") {
      if (media.paused) media.play();
      else media.pause();
    } else if (event.key === "+" || event.key === "-") fit();
    else return;
    event.preventDefault();
  });
  let from = null;
  stage.addEventListener("pointerdown", (event) => { from = event.pointerType === "touch" ? event.clientX : null; });
  stage.addEventListener("pointerup", (event) => {
    if (from !== null && Math.abs(event.clientX - from) > 60 && !stage.querySelector("img.real")) move(event.clientX < from ? 1 : -1);
    from = null;
  });
  const opener = document.activeElement;
  return new Promise((done) => {
    box.addEventListener("close", () => {
      step += 1;
      abort.abort();
      box.remove();
      opener?.focus?.({ preventScroll: true });
      done();
    });
    box.addEventListener("click", (event) => { if (event.target === stage) box.close(); });
    document.body.append(box);
    box.showModal();
    box.focus();
    show(at).catch(() => {});
  });
}
