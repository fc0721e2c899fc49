// Markdown of answers, as elements. What a model writes is never HTML here: every word enters as text, links lead only to web
// addresses and say where, and pictures are not fetched.

import { button } from "./pieces.js";
import { el } from "./dom.js";
import { t } from "../texts.js";

const LENGTH_MAX = 400000;
const DEPTH_MAX = 6;

/** Elements for a text in Markdown. */
export function markdown(text) {
  return blocks(text.slice(0, LENGTH_MAX).replace(/\r\n?/g, "\n").split("\n"), 0);
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const ITEM = /^( {0,8})([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const CELLS = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

function blocks(lines, depth) {
  const out = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (fence) {
      const code = [];
      at += 1;
      while (at < lines.length && !new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`).test(lines[at])) code.push(lines[at++]);
      at += 1;
      out.push(codeBox(code.join("\n"), fence[2]));
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      // Not one of the page's headings: those of an answer follow no order.
      out.push(el("p", { className: `said-heading level-${heading[1].length}` }, el("strong", {}, inline(heading[2]))));
      at += 1;
    } else if (RULE.test(line)) {
      out.push(el("hr"));
      at += 1;
    } else if (QUOTE.test(line) && depth < DEPTH_MAX) {
      const inside = [];
      while (at < lines.length && QUOTE.test(lines[at])) inside.push(QUOTE.exec(lines[at++])[1]);
      out.push(el("blockquote", {}, blocks(inside, depth + 1)));
    } else if (ITEM.test(line) && depth < DEPTH_MAX) {
      at = list(lines, at, depth, out);
    } else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && CELLS.test(lines[at + 1])) {
      at = table(lines, at, out);
    } else if (line.trim() === "") {
      at += 1;
    } else {
      const words = [];
      do words.push(lines[at++]); while (at < lines.length && lines[at].trim() !== "" && ![FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(lines[at])));
      out.push(el("p", {}, inline(words.join("\n"))));
    }
  }
  return out;
}

function codeBox(code, language) {
  const pre = el("pre", { tabIndex: 0 }, el("code", {}, code));
  const copy = button(t("copy"), () => navigator.clipboard?.writeText(code).then(() => { copy.lastChild.textContent = t("copied"); }), { kind: "quiet", icon: "copy" });
  return el("div", { className: "code-box" }, el("div", { className: "code-head" }, el("span", { className: "small muted" }, language), copy), pre);
}

function list(lines, from, depth, out) {
  let at = from;
  const [, space, mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark);
  const items = [];
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (item && item[1].length <= space.length + 1) {
      if (/\d/.test(item[2]) !== isOrdered) break;
      items.push([item[3]]);
      at += 1;
    } else if (lines[at].trim() === "") {
      const next = lines[at + 1] ?? "";
      if (!ITEM.test(next) && !/^ {2,}\S/.test(next)) break;
      items.at(-1).push("");
      at += 1;
    } else if (/^ {2,}/.test(lines[at]) || item) {
      items.at(-1).push(lines[at].replace(/^ {1,4}/, ""));
      at += 1;
    } else {
      break;
    }
  }
  const nodes = items.map((inside) => el("li", {}, inside.length === 1 ? inline(inside[0]) : unwrapped(blocks(inside, depth + 1))));
  out.push(isOrdered ? el("ol", { start: Number.parseInt(mark, 10) || 1 }, nodes) : el("ul", {}, nodes));
  return at;
}

/** The first paragraph of an item stands without one of its own. */
function unwrapped(nodes) {
  if (nodes[0]?.tagName === "P") nodes.splice(0, 1, ...nodes[0].childNodes);
  return nodes;
}

function table(lines, from, out) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const head = cells(lines[from]);
  const sides = cells(lines[from + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start"));
  const row = (line, tag) => el("tr", {}, cells(line).slice(0, head.length).map((cell, n) => el(tag, { style: { "text-align": sides[n] ?? "start" } }, inline(cell))));
  const body = [];
  let at = from + 2;
  while (at < lines.length && lines[at].includes("|") && lines[at].trim() !== "") body.push(row(lines[at++], "td"));
  out.push(el("div", { className: "table-box" }, el("table", {}, el("thead", {}, row(lines[from], "th")), el("tbody", {}, body))));
  return at;
}

const INLINE = /(`+)([\s\S]+?)\1(?!`)|\*\*([^*\n]+(?:\*(?!\*)[^*\n]+)*)\*\*|__([^_\n]+)__|~~([^~\n]+)~~|\*([^*\n]+)\*|(?<![\w])_([^_\n]+)_(?![\w])|!?\[([^\]\n]{0,500})\]\(([^()\s]{1,2000})(?:\s+"[^"\n]*")?\)|(https?:\/\/[^\s<>()"'`]{1,2000}[^\s<>()"'`.,;:!?])/g;

function inline(text, depth = 0) {
  const out = [];
  let last = 0;
  if (depth > 4) return [text];
  for (const found of text.matchAll(INLINE)) {
    if (found.index > last) out.push(text.slice(last, found.index));
    last = found.index + found[0].length;
    const [, , code, bold, bold2, struck, slanted, slanted2, label, to, address] = found;
    if (code !== undefined) out.push(el("code", {}, code.replace(/^ (.*) $/s, "$1")));
    else if (bold ?? bold2) out.push(el("strong", {}, inline(bold ?? bold2, depth + 1)));
    else if (struck) out.push(el("s", {}, inline(struck, depth + 1)));
    else if (slanted ?? slanted2) out.push(el("em", {}, inline(slanted ?? slanted2, depth + 1)));
    else if (to !== undefined) out.push(link(to, label || to));
    else out.push(link(address, address));
  }
  if (last < text.length) out.push(text.slice(last));
  return out;
}

/** A link to a web address; anything else stays text. */
function link(to, label) {
  let address;
  try {
    address = new URL(to);
  } catch {
    return label;
  }
  if (!["http:", "https:"].includes(address.protocol)) return label;
  return el("a", { href: address.href, target: "_blank", rel: "noopener noreferrer nofollow", title: address.href }, label);
}
