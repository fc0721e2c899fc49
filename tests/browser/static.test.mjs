// What can be said of the files in www/ without a browser.

import assert from "node:assert/strict";
import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { ROOT } from "./lib/cell.mjs";
import { test } from "./lib/runner.mjs";

const WWW = path.join(ROOT, "www");

function all(folder = WWW) {
  return fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const place = path.join(folder, entry.name);
    return entry.isDirectory() ? all(place) : [place];
  });
}

const sources = () => all().filter((file) => file.endsWith(".js") && !file.includes("/vendor/"));

test("every text that is asked for is there, once", async () => {
  const text = fs.readFileSync(path.join(WWW, "texts.js"), "utf8");
  const keys = [...text.matchAll(/^ {2}"([^"]+)":/gm)].map((found) => found[1]);
  assert.deepEqual(keys.filter((key, n) => keys.indexOf(key) !== n), [], "twice");
  const known = new Set(keys);
  const missing = [];
  for (const file of sources()) {
    const source = fs.readFileSync(file, "utf8");
    for (const [, key] of source.matchAll(/\bt\(\s*"([^"]+)"/g)) if (!known.has(key)) missing.push(`${key} in ${file}`);
    for (const [, key] of source.matchAll(/counted\([^"`]+"([a-z.]+)"\)/g)) if (!known.has(`${key}.one`) || !known.has(`${key}.many`)) missing.push(`${key}.one or .many in ${file}`);
  }
  assert.deepEqual(missing, []);
});

test("every alert that the cell can raise has its words and a remedy", async () => {
  const text = fs.readFileSync(path.join(WWW, "texts.js"), "utf8");
  const table = fs.readFileSync(path.join(ROOT, "docs", "alerts.md"), "utf8").split("\n").filter((line) => /^\| `/.test(line));
  const codes = table.flatMap((line) => [...line.split("|")[1].matchAll(/`([a-z-]+)`/g)].map((found) => found[1]));
  assert.ok(codes.length > 15);
  for (const code of codes) for (const key of [`alert.${code}`, `alert.${code}.remedy`]) assert.ok(text.includes(`"${key}":`), key);
});

test("libraries are those that VERSIONS names, byte for byte", async () => {
  const lines = fs.readFileSync(path.join(WWW, "vendor", "VERSIONS"), "utf8").split("\n");
  const sums = new Map(lines.map((line) => line.match(/^([0-9a-f]{64}) {2}(\S+)$/)).filter(Boolean).map(([, sum, name]) => [name, sum]));
  const files = fs.readdirSync(path.join(WWW, "vendor")).filter((name) => /\.(js|mjs|css)$/.test(name));
  assert.deepEqual(files.sort(), [...sums.keys()].sort());
  for (const name of files) assert.equal(crypto.createHash("sha256").update(fs.readFileSync(path.join(WWW, "vendor", name))).digest("hex"), sums.get(name), name);
});

test("text enters as text: nothing in the sources makes HTML of it", async () => {
  for (const file of sources()) {
    const source = fs.readFileSync(file, "utf8");
    for (const word of ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "setAttribute(\"style\"", "setAttribute('style'"]) {
      assert.ok(!source.includes(word), `${word} in ${file}`);
    }
  }
  for (const file of all().filter((each) => each.endsWith(".html"))) {
    const source = fs.readFileSync(file, "utf8");
    assert.ok(!/ style=| on[a-z]+="|<style|<script(?![^>]* src=)|https?:\/\/[a-z]/.test(source), file);
  }
});
