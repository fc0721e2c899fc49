// Everything one does with files.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { SHOTS, checkAxe, chooseFrom, goTo, shot, signIn } from "./lib/browser.mjs";
import { Cell, befriend, png, wav } from "./lib/cell.mjs";
import { film, pdf } from "./lib/film.mjs";
import { test, waitFor } from "./lib/runner.mjs";

const PDF = Buffer.from("%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj 3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]>>endobj trailer<</Root 1 0 R>>");

const row = (page, name) => page.locator(`.virtual > li[data-name="${name}"]`);

const choose = (page, name, item) => chooseFrom(page, row(page, name).getByRole("button", { name: /What to do with/ }), { name: item, exact: true });

test("folders, names and places change on the page and on the disk", async () => {
  const cell = await Cell.start("files");
  await cell.setUp();
  cell.put("Pictures/sea.png", await png(64, 48, [20, 80, 200]));
  cell.put("letter.txt", "dear");
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files");
  await row(page, "letter.txt").waitFor();
  await page.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByRole("menuitem", { name: "New folder" }).click();
  await page.getByLabel("Name", { exact: true }).fill("Häuser & Höfe");
  await page.getByRole("button", { name: "Create" }).click();
  await row(page, "Häuser & Höfe").waitFor();
  assert.ok(cell.has("Häuser & Höfe"));
  await choose(page, "letter.txt", "Rename");
  await page.getByLabel("Name", { exact: true }).fill("brief.txt");
  await page.locator("dialog").getByRole("button", { name: "Rename" }).click();
  await row(page, "brief.txt").waitFor();
  assert.ok(cell.has("brief.txt") && !cell.has("letter.txt"));
  await choose(page, "brief.txt", "Move");
  await page.locator(".place", { hasText: "Häuser" }).click();
  await checkAxe(page, "moving");
  await page.getByRole("button", { name: "Move here" }).click();
  await row(page, "brief.txt").waitFor({ state: "detached" });
  assert.equal(cell.read("Häuser & Höfe/brief.txt").toString(), "dear");
  await row(page, "Häuser & Höfe").getByRole("link").click();
  await row(page, "brief.txt").waitFor();
  assert.match(await page.locator(".crumbs").innerText(), /GroveHome[\s\S]*Häuser & Höfe/);
  await page.locator(".crumbs a").first().click();
  await row(page, "Pictures").waitFor();
  // The tree leads to the same places.
  await page.getByRole("navigation", { name: "Folders" }).getByRole("link", { name: "Pictures" }).click();
  await row(page, "sea.png").waitFor();
  // A name that is taken is refused, with words.
  cell.put("Pictures/lake.png", await png(64, 48, [20, 180, 90]));
  await cell.settle();
  await row(page, "lake.png").waitFor();
  page.allow(/409/);
  await choose(page, "lake.png", "Rename");
  await page.getByLabel("Name", { exact: true }).fill("sea.png");
  await page.locator("dialog").getByRole("button", { name: "Rename" }).click();
  await page.locator("dialog .problem:not([hidden])").waitFor();
  await page.keyboard.press("Escape");
  await page.done();
  await cell.end();
});

test("entries are dragged onto folders, the way to here and the tree, and go back", async () => {
  const cell = await Cell.start("drags");
  await cell.setUp();
  for (const name of ["a.txt", "b.txt", "c.txt", "inner/deep/d.txt", "other/e.txt"]) cell.put(name, name);
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files");
  await row(page, "a.txt").waitFor();
  const drag = async (from, to, check) => {
    await from.hover();
    await page.mouse.down();
    await to.hover();
    // A second movement over it: the first begins the drag.
    const box = await to.boundingBox();
    await page.mouse.move(box.x + box.width / 2 + 3, box.y + box.height / 2 + 1, { steps: 4 });
    await check?.();
    await page.mouse.up();
  };
  const words = (name) => row(page, name).locator(".file-words");
  await drag(words("a.txt"), row(page, "inner"), () => row(page, "inner").and(page.locator(".drop-here")).waitFor());
  await page.getByText("Moved 1 entry.").waitFor();
  await row(page, "a.txt").waitFor({ state: "detached" });
  assert.equal(cell.read("inner/a.txt").toString(), "a.txt");
  await page.locator(".toast").getByRole("button", { name: "Undo" }).click();
  await row(page, "a.txt").waitFor();
  assert.ok(cell.has("a.txt") && !cell.has("inner/a.txt"));
  // What comes meanwhile does not take the drag away.
  await drag(words("a.txt"), row(page, "inner"), async () => {
    cell.put("0 first.txt", "new");
    await row(page, "0 first.txt").waitFor();
    await row(page, "a.txt").waitFor();
    const box = await row(page, "inner").boundingBox();
    await page.mouse.move(box.x + box.width / 2 - 6, box.y + box.height / 2, { steps: 3 });
    await row(page, "inner").and(page.locator(".drop-here")).waitFor();
  });
  await row(page, "a.txt").waitFor({ state: "detached" });
  assert.equal(cell.read("inner/a.txt").toString(), "a.txt");
  await page.locator(".toast").getByRole("button", { name: "Undo" }).last().click();
  await row(page, "a.txt").waitFor();
  // All that is selected goes along; a folder is none into which it is put itself.
  for (const name of ["a.txt", "b.txt", "inner"]) await row(page, name).locator("[data-role=check]").check();
  await drag(words("a.txt"), row(page, "inner"));
  await drag(words("b.txt"), row(page, "c.txt"));
  await drag(words("b.txt"), row(page, "other"), () => shot(page, "dragged"));
  await page.getByText("Moved 3 entries.").waitFor();
  assert.ok(cell.has("other/a.txt") && cell.has("other/b.txt") && cell.has("other/inner/deep/d.txt") && cell.has("c.txt"));
  // Up again by the way to here, from the gallery, and across by the tree.
  await goTo(page, "files/other/inner");
  await row(page, "deep").waitFor();
  await page.getByRole("button", { name: "As a gallery" }).click();
  await page.locator(".file-tile").first().waitFor();
  await drag(words("deep"), page.locator(".crumbs a").first());
  await row(page, "deep").waitFor({ state: "detached" });
  assert.equal(cell.read("deep/d.txt").toString(), "inner/deep/d.txt");
  await goTo(page, "files/other");
  await row(page, "b.txt").waitFor();
  // The tree may still show where it was before.
  const tree = (folder) => page.getByRole("navigation", { name: "Folders" }).locator(`a[data-folder="${folder}"]`);
  await tree("other/inner/deep").waitFor({ state: "detached" });
  await drag(words("b.txt"), tree("deep"));
  await row(page, "b.txt").waitFor({ state: "detached" });
  assert.ok(cell.has("deep/b.txt"));
  // What is there already goes nowhere, and is not asked for.
  const asked = [];
  page.on("request", (request) => { if (request.url().endsWith("/move")) asked.push(request.url()); });
  await drag(words("a.txt"), page.locator(".crumbs a").last());
  await checkAxe(page, "after dragging");
  assert.deepEqual(asked, []);
  await page.done();
  await cell.end();
});

test("list and gallery, sorting, searching, selecting and the keys", async () => {
  const cell = await Cell.start("views");
  await cell.setUp();
  for (let n = 0; n < 12; n += 1) cell.put(`Holiday/picture ${String(n).padStart(2, "0")}.png`, await png(80, 60, [n * 15, 120, 200 - n * 10]));
  cell.put("Holiday/notes.txt", "x".repeat(50_000));
  cell.put("Elsewhere/deep/down/holiday plan.txt", "plan");
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files/Holiday");
  await row(page, "picture 00.png").waitFor();
  const names = () => page.locator(".virtual > li").evaluateAll((items) => items.sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map((item) => item.dataset.name));
  await page.getByRole("button", { name: "Sort by Size" }).click();
  await page.getByRole("button", { name: "Sort by Size" }).click();
  await waitFor("the largest comes first", async () => (await names())[0] === "notes.txt");
  await page.getByRole("button", { name: "Sort by Name" }).click();
  await waitFor("names go up", async () => (await names())[0] === "notes.txt" && (await names())[1] === "picture 00.png");
  // Thumbnails are made here, by the browser.
  await page.waitForSelector(".file-row canvas.drawn");
  await page.getByRole("button", { name: "As a gallery" }).click();
  await page.waitForSelector(".file-tile canvas.drawn");
  await checkAxe(page, "gallery");
  await page.getByRole("button", { name: "As a list" }).click();
  // Keys: into the list, down, select a range, unselect.
  await row(page, "notes.txt").locator("[data-role=open]").focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press(" ");
  await page.keyboard.press("Shift+ArrowDown");
  await page.keyboard.press("Shift+ArrowDown");
  await page.getByText(/^3 selected/).waitFor();
  await checkAxe(page, "a selection");
  await page.keyboard.press("Escape");
  await page.getByText(/^3 selected/).waitFor({ state: "hidden" });
  await page.getByLabel("Select all").check();
  await page.getByText(/^13 selected/).waitFor();
  await page.getByRole("button", { name: "Select nothing" }).click();
  await page.keyboard.press("/");
  // Search looks at all names, in all folders.
  await page.getByLabel("Search all files").fill("holiday");
  await row(page, "holiday plan.txt").waitFor();
  await page.getByText("Elsewhere/deep/down").waitFor();
  await page.getByLabel("Search all files").fill("no such thing");
  await page.getByText("Nothing found").waitFor();
  await page.done();
  await cell.end();
});

test("pictures, sound, text and PDF are looked at one after another with the keys", async () => {
  const cell = await Cell.start("looks");
  await cell.setUp();
  cell.put("a.png", await png(200, 120, [200, 40, 40]));
  cell.put("b.txt", "<b>not bold</b>\n".repeat(3));
  cell.put("c.wav", wav());
  cell.put("d.pdf", PDF);
  cell.put("e.bin", Buffer.alloc(10, 7));
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files");
  await row(page, "a.png").locator("[data-role=open]").click();
  await page.locator(".light img").waitFor();
  assert.ok(await page.locator(".light img").evaluate(async (image) => { await image.decode(); return image.naturalWidth === 200; }));
  await checkAxe(page, "a picture");
  await page.keyboard.press("ArrowRight");
  await page.getByText("<b>not bold</b>").waitFor();
  await checkAxe(page, "a text");
  await page.keyboard.press("ArrowRight");
  await page.locator(".light audio").waitFor();
  await waitFor("the sound plays or can", () => page.locator(".light audio").evaluate((audio) => audio.readyState >= 2 && Math.abs(audio.duration - 2) < 0.1));
  await page.keyboard.press("ArrowRight");
  await page.locator(".light iframe").waitFor();
  await page.keyboard.press("ArrowRight");
  await page.getByText("This kind of file cannot be shown here.").waitFor();
  await page.keyboard.press("Home");
  await page.locator(".light img").waitFor();
  await page.keyboard.press("Escape");
  await page.locator(".light").waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "a.png");
  await page.done();
  await cell.end();
});

test("a film plays and jumps to any of its seconds, and a PDF shows its pages", async () => {
  const cell = await Cell.start("films");
  await cell.setUp();
  const page = await signIn(cell);
  const seconds = 20;
  const bytes = await film(page, seconds);
  cell.put("a film.webm", bytes);
  cell.put("b paper.pdf", pdf("Paper of Grove"));
  await cell.settle();
  await goTo(page, "files");
  const parts = [];
  page.on("response", (response) => { if (response.url().includes("film.webm")) parts.push([response.status(), response.headers()["content-range"]]); });
  await row(page, "a film.webm").locator("[data-role=open]").click();
  const video = page.locator(".light video");
  await waitFor("it plays", () => video.evaluate((each) => each.readyState >= 2 && each.currentTime > 0 && Math.abs(each.duration - 20) < 0.5));
  await page.keyboard.press(" ");
  await waitFor("it stands", () => video.evaluate((each) => each.paused));
  await checkAxe(page, "a film");
  // Forth, to the end, and back: what is shown is of that second.
  const greys = new Map();
  for (const second of [15, 19, 3]) {
    greys.set(second, await video.evaluate(async (each, to) => {
      const there = new Promise((done, failed) => {
        each.addEventListener("seeked", done, { once: true });
        setTimeout(() => failed(new Error(`no picture of second ${to}`)), 60_000);
      });
      each.currentTime = to + 0.5;
      await there;
      const canvas = new OffscreenCanvas(8, 8);
      const pen = canvas.getContext("2d");
      pen.drawImage(each, 10, 10, 50, 50, 0, 0, 8, 8);
      return pen.getImageData(4, 4, 1, 1).data[0];
    }, second));
  }
  // Encoder and player may differ by a scale and a shift of all greys, not by which is how much lighter.
  const step = (greys.get(19) - greys.get(3)) / 16;
  assert.ok(step > 8 && step < 13 && Math.abs(greys.get(15) - greys.get(3) - 12 * step) < step / 2, JSON.stringify([...greys]));
  await shot(page, "film");
  assert.ok(parts.some(([status, range]) => status === 206 && Number(range?.match(/bytes (\d+)-/)?.[1]) > 0), `it is read in parts: ${JSON.stringify(parts)}`);
  await page.keyboard.press("PageDown");
  await page.locator(".light iframe").waitFor();
  const frame = await waitFor("the PDF is there", () => page.frames().find((each) => each.url().includes("paper.pdf")));
  await frame.waitForLoadState();
  // The browser's own reader has drawn it: there is black on white.
  const inked = async () => {
    const picture = await page.locator(".light iframe").screenshot({ path: path.join(SHOTS, "pdf.png") });
    return page.evaluate(async (base64) => {
      const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
      const pen = new OffscreenCanvas(image.width, image.height).getContext("2d");
      pen.drawImage(image, 0, 0);
      const { data } = pen.getImageData(0, 0, image.width, image.height);
      let [black, white] = [0, 0];
      for (let at = 0; at < data.length; at += 4) {
        if (data[at] < 60 && data[at + 1] < 60 && data[at + 2] < 60) black += 1;
        if (data[at] > 240 && data[at + 1] > 240 && data[at + 2] > 240) white += 1;
      }
      return [black, white];
    }, picture.toString("base64"));
  };
  await waitFor("the PDF is drawn", async () => {
    const [black, white] = await inked();
    return black > 500 && white > 10_000;
  });
  await page.keyboard.press("Escape");
  await page.done();
  await cell.end();
});

test("downloads: a file, a range of one, a folder as zip", async () => {
  const cell = await Cell.start("downloads");
  await cell.setUp();
  const bytes = Buffer.alloc(3_000_000);
  for (let n = 0; n < bytes.length; n += 4) bytes.writeUInt32LE((n * 2654435761) >>> 0, n);
  cell.put("box/data.bin", bytes);
  cell.put("box/inner/note.txt", "hello");
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files/box");
  await row(page, "data.bin").waitFor();
  let download = page.waitForEvent("download");
  await choose(page, "data.bin", "Download");
  assert.deepEqual(fs.readFileSync(await (await download).path()), bytes);
  const part = await page.evaluate(async () => {
    const response = await fetch("/api/v1/content?path=box%2Fdata.bin", { headers: { Range: "bytes=1000-1999" } });
    return [response.status, response.headers.get("content-range"), [...new Uint8Array(await response.arrayBuffer())]];
  });
  assert.deepEqual(part, [206, "bytes 1000-1999/3000000", [...bytes.subarray(1000, 2000)]]);
  await goTo(page, "files");
  await row(page, "box").waitFor();
  download = page.waitForEvent("download");
  await choose(page, "box", "Download as zip");
  const got = await download;
  assert.equal(got.suggestedFilename(), "box.zip");
  const zip = fs.readFileSync(await got.path());
  assert.ok(zip.subarray(0, 2).toString() === "PK" && zip.includes(Buffer.from("note.txt")) && zip.length > 3_000_000);
  await page.done();
  await cell.end();
});

test("versions come back, and what was removed does, too", async () => {
  const cell = await Cell.start("versions");
  await cell.setUp();
  cell.put("diary.txt", "first");
  cell.put("more/one.txt", "one");
  await cell.settle();
  cell.put("diary.txt", "second, longer");
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files");
  await choose(page, "diary.txt", "Details and versions");
  await page.locator(".version").nth(1).waitFor();
  await checkAxe(page, "details");
  await page.getByRole("button", { name: "Look at version 1" }).click();
  await page.locator(".light-text", { hasText: "first" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Bring back version 1" }).click();
  await page.getByRole("button", { name: "Bring it back" }).click();
  await page.getByText("The older version is back.").waitFor();
  await waitFor("the first version is on the disk", () => cell.read("diary.txt").toString() === "first");
  await row(page, "diary.txt").getByRole("checkbox").check();
  await row(page, "more").getByRole("checkbox").check();
  await page.getByRole("toolbar").getByRole("button", { name: "Remove from Grove" }).click();
  await page.locator("dialog").getByRole("button", { name: "Remove", exact: true }).click();
  await page.getByText("Moved 2 entries to the Recycle Bin.").waitFor();
  assert.ok(!cell.has("diary.txt") && !cell.has("more"));
  await page.getByRole("button", { name: "Recycle Bin" }).click();
  await page.getByRole("heading", { name: "Recycle Bin" }).waitFor();
  await page.locator(".bin-row", { hasText: "diary.txt" }).waitFor();
  await checkAxe(page, "the Recycle Bin");
  await page.locator(".bin-row", { hasText: "diary.txt" }).getByRole("button", { name: "Restore" }).click();
  await page.getByText("diary.txt is back.").waitFor();
  await waitFor("it is on the disk", () => cell.has("diary.txt"));
  await page.done();
  await cell.end();
});

test("a folder is given a number of copies of its own", async () => {
  const cell = await Cell.start("numbers");
  await cell.setUp();
  cell.put("films/one.txt", "one");
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files");
  await choose(page, "films", "Details and versions");
  const pick = page.getByRole("combobox", { name: "Copies of each file in it" });
  assert.equal(await pick.locator("option").first().textContent(), "Like the folder above: 2 copies");
  await checkAxe(page, "details of a folder");
  const number = async () => (await page.evaluate(async () => (await (await fetch("/api/v1/copies")).json()).folders)).map((folder) => `${folder.path} ${folder.copies}`);
  await pick.selectOption("3");
  await page.getByText("Done. Missing copies are made, and copies too many go.").waitFor();
  assert.deepEqual(await number(), ["films 3"]);
  // One copy is asked about first.
  await pick.selectOption("1");
  await page.getByText("If its disk dies, these files are gone.").waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  await waitFor("it is as before", async () => (await pick.inputValue()) === "3");
  await pick.selectOption("1");
  await page.getByRole("button", { name: "Only here" }).click();
  await waitFor("it is set", async () => (await number())[0] === "films 1");
  await pick.selectOption("0");
  await waitFor("it is taken back", async () => (await number()).length === 0);
  await page.done();
  await cell.end();
});

test("hundreds of files are moved, deleted and brought back at once, each with one request", async () => {
  const cell = await Cell.start("crowd");
  await cell.setUp();
  const count = 400;
  const name = (n) => `photo ${String(n).padStart(3, "0")}.txt`;
  for (let n = 0; n < count; n += 1) cell.put(`all/${name(n)}`, `photo number ${n}`);
  cell.put("stays.txt", "stays");
  fs.mkdirSync(`${cell.home}/other`);
  await cell.settle();
  const page = await signIn(cell);
  const asked = [];
  page.on("request", (request) => { if (/\/api\/v1\/(rm|move|restore)$/.test(request.url())) asked.push(request.url().split("/").pop()); });
  await goTo(page, "files/all");
  await row(page, name(0)).waitFor();
  await page.getByLabel("Select all").check();
  await page.getByText(`${count} selected`).waitFor();
  await page.getByRole("toolbar").getByRole("button", { name: "Remove from Grove" }).click();
  // Nearly everything: that is told with its number, and then it is decided.
  await page.locator("dialog", { hasText: `That is ${count} files of ${count + 1}.` }).waitFor();
  await page.locator("dialog").getByRole("button", { name: "Remove", exact: true }).click();
  const note = page.locator(".toast", { hasText: `Moved ${count} entries to the Recycle Bin.` });
  await note.waitFor();
  // As long as one points at it, it stays.
  await note.hover();
  await shot(page, "many-deleted");
  const isBraked = async () => (await cell.api("GET", "status")).alerts.some((alert) => alert.code === "brake");
  assert.equal(await isBraked(), false);
  assert.ok(fs.readdirSync(`${cell.home}/all`).length === 0 && cell.has("stays.txt"));
  await note.getByRole("button", { name: "Undo" }).click();
  await page.getByText(`Brought back ${count} entries.`).waitFor();
  assert.deepEqual(asked, ["rm", "restore"]);
  for (let n = 0; n < count; n += 1) assert.equal(cell.read(`all/${name(n)}`).toString(), `photo number ${n}`);
  await page.getByText(`${count} entries`, { exact: true }).waitFor();
  // Whoever removed as much without being asked meets the brake, until all of it is back.
  const paths = Array.from({ length: count }, (_, n) => `all/${name(n)}`);
  await cell.api("POST", "rm", { paths });
  assert.equal(await isBraked(), true);
  await page.getByText("This folder is empty").waitFor();
  const bring = async (some) => {
    const { job } = await cell.api("POST", "restore", { paths: some });
    await waitFor("they are back", async () => (await cell.api("GET", `jobs/${job}`)).state !== "running");
  };
  await bring(paths.slice(0, count - 30));
  assert.equal(await isBraked(), true);
  await bring(paths.slice(count - 30));
  assert.equal(await isBraked(), false);
  await page.getByText(`${count} entries`, { exact: true }).waitFor();
  asked.length = 0;
  await page.getByLabel("Select all").check();
  await page.getByText(`${count} selected`).waitFor();
  await page.getByRole("toolbar").getByRole("button", { name: "Move", exact: true }).click();
  await page.locator(".place", { hasText: "One folder up" }).click();
  await page.locator(".place", { hasText: "other" }).click();
  await page.getByRole("button", { name: "Move here" }).click();
  await page.getByText(`Moved ${count} entries.`).waitFor();
  assert.equal(fs.readdirSync(`${cell.home}/other`).length, count);
  assert.deepEqual(asked, ["move"]);
  // One that cannot be moved is told, and the others are.
  page.allow(/409/);
  cell.put("all/a.txt", "a");
  cell.put("all/b.txt", "b");
  cell.put("other/a.txt", "another a");
  await cell.settle();
  const { results } = await cell.api("POST", "move", { paths: ["all/a.txt", "all/b.txt", "all/c.txt"], to: "other" });
  assert.deepEqual(results.map((one) => one.error?.code ?? one.path), ["exists", "other/b.txt", "not_found"]);
  const gone = await cell.api("POST", "rm", { paths: ["all/a.txt", "nothing.txt"] });
  assert.deepEqual([gone.files, gone.results[0].files, gone.results[1].error.code], [1, 1, "refused"]);
  await assert.rejects(cell.api("POST", "rm", { paths: Array.from({ length: 1001 }, (_, n) => `${n}`) }), /bad_request/);
  await assert.rejects(cell.api("POST", "restore", { paths: [] }), /bad_request/);
  await page.done();
  await cell.end();
});

test("no more is removed than was told", async () => {
  const cell = await Cell.start("told");
  await cell.setUp();
  for (let n = 0; n < 30; n += 1) cell.put(`box/${n}.txt`, "seven!!");
  cell.put("stays.txt", "stays");
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files");
  await choose(page, "box", "Remove from Grove");
  await page.locator("dialog", { hasText: "That is 30 files of 31. They have 210 bytes." }).waitFor();
  cell.put("box/late.txt", "late");
  await cell.settle();
  page.allow(/409/);
  const press = () => page.locator("dialog").getByRole("button", { name: "Remove", exact: true }).click();
  await press();
  await page.locator("dialog", { hasText: "Meanwhile there is more than you were told" }).waitFor();
  await page.locator("dialog", { hasText: "That is 31 files of 32. They have 214 bytes." }).waitFor();
  await checkAxe(page, "being asked again");
  assert.ok(cell.has("box/0.txt") && cell.has("box/late.txt"));
  await press();
  await page.getByText("Moved 1 entry to the Recycle Bin.").waitFor();
  assert.ok(!cell.has("box") && cell.has("stays.txt"));
  // All of it comes back at once, the folder before what was in it.
  await page.getByRole("button", { name: "Recycle Bin" }).click();
  await page.locator(".bin-row").nth(31).waitFor();
  await page.getByLabel("Select all").check();
  await checkAxe(page, "a selection in the Recycle Bin");
  await page.getByRole("button", { name: "Restore what is selected" }).click();
  await page.getByText("Brought back 32 entries.").waitFor();
  assert.ok(cell.has("box/0.txt") && cell.has("box/late.txt"));
  await page.getByText("The Recycle Bin is empty").waitFor();
  assert.ok(!(await cell.api("GET", "status")).alerts.some((alert) => alert.code === "brake"));
  await page.done();
  await cell.end();
});

test("the Recycle Bin shows all that is in it, some at a time", async () => {
  const cell = await Cell.start("bin");
  await cell.setUp();
  for (let n = 0; n < 1100; n += 1) cell.put(`many/${n}.txt`, `${n}`);
  await cell.settle();
  const { files, bytes } = await cell.api("POST", "weigh", { paths: ["many"] });
  await cell.api("POST", "rm", { paths: ["many"], confirmed: true, files, bytes });
  const page = await signIn(cell);
  await goTo(page, "files?bin");
  const rows = page.locator(".bin-row");
  // The folder is an entry, too; more than 1,000 come in two requests.
  for (const shown of [100, 200, 400, 800, 1101]) {
    await rows.nth(shown - 1).waitFor();
    assert.equal(await rows.count(), shown);
    if (shown < 1101) await page.getByRole("button", { name: "Show more" }).click();
  }
  assert.equal(await page.getByRole("button", { name: "Show more" }).isVisible(), false);
  const ids = await rows.evaluateAll((all) => all.map((each) => each.dataset.id));
  assert.equal(new Set(ids).size, 1101);
  await shot(page, "bin-all");
  const last = rows.nth(1100);
  const id = await last.getAttribute("data-id");
  await last.getByRole("button", { name: "Restore" }).click();
  await page.locator(`.bin-row[data-id="${id}"]`).waitFor({ state: "detached" });
  assert.ok(await rows.count() >= 1099, "what is shown stays shown");
  await page.done();
  await cell.end();
});

test("a folder that is not there says so once, and can be asked for again", async () => {
  const cell = await Cell.start("nowhere");
  await cell.setUp();
  const page = await signIn(cell);
  page.allow(/409/);
  let asked = 0;
  page.on("request", (request) => { if (request.url().includes("/api/v1/files?folder=later")) asked += 1; });
  await goTo(page, "files/later");
  await page.getByRole("button", { name: "Try again" }).waitFor();
  await checkAxe(page, "a folder that is not there");
  assert.ok(asked < 5, `asked ${asked} times`);
  cell.put("later/here.txt", "now");
  await cell.settle();
  await row(page, "here.txt").waitFor();
  await page.done();
  await cell.end();
});

test("Remove Locally frees the disk, and the file is still there to look at", async () => {
  const cell = await Cell.start("small", { copies: 1 });
  const keeper = await Cell.start("keeper");
  await cell.setUp();
  await keeper.setUp();
  await befriend(cell, keeper);
  cell.put("song.txt", "la la la ".repeat(1000));
  await cell.settle();
  const page = await signIn(cell);
  await goTo(page, "files");
  // Asked for once, a copy is made elsewhere; then the same frees the file.
  page.allow(/409/);
  await waitFor("it is freed", async () => {
    const answered = page.waitForResponse((response) => response.url().endsWith("/api/v1/rm"));
    await choose(page, "song.txt", "Remove Locally");
    await page.locator("dialog").getByRole("button", { name: "Remove Locally" }).click();
    await answered;
    if (!cell.has("song.txt")) return true;
    // It fails: what is freed wants two copies elsewhere, and there is one keeper.
    await cell.cli("sync", "--wait").catch(() => {});
    return false;
  });
  await row(page, "song.txt").getByLabel("Not on this machine; other cells have it").waitFor();
  await choose(page, "song.txt", "Look at it");
  await page.locator(".light-text", { hasText: "la la la" }).waitFor();
  await page.keyboard.press("Escape");
  await choose(page, "song.txt", "Details and versions");
  await page.locator("dialog").getByText("keeper").waitFor();
  await page.keyboard.press("Escape");
  await choose(page, "song.txt", "Bring back here");
  await waitFor("it is on the disk", () => cell.has("song.txt"));
  await page.done();
  await cell.end();
  await keeper.end();
});
