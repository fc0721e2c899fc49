// Uploads: files and folders, dropped or chosen; paused; gone on with after a reload and after the cell was killed.

import assert from "node:assert/strict";
import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { checkAxe, goTo, shot, signIn, signInAgain } from "./lib/browser.mjs";
import { Cell } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

const hash = (bytes) => crypto.createHash("sha256").update(bytes).digest("hex");

async function addFiles(page, files, item = "Upload files") {
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByRole("menuitem", { name: item }).click();
  await (await chooser).setFiles(files);
}

/** Holds back what the page is told about its uploads; gives what lets it through again. */
async function holdAnswers(page) {
  const place = "**/api/v1/uploads";
  let release;
  const held = new Promise((done) => { release = done; });
  await page.route(place, async (route) => {
    if (route.request().method() === "GET") await held;
    // The page may have given up meanwhile; it asks again.
    await route.continue().catch(() => {});
  });
  return async () => {
    release();
    await page.unroute(place);
  };
}

test("files and folders are uploaded, dropped ones too, and a taken name is asked about", async () => {
  const cell = await Cell.start("uploads");
  await cell.setUp();
  const tree = path.join(cell.root, "to upload");
  fs.mkdirSync(path.join(tree, "inner"), { recursive: true });
  fs.writeFileSync(path.join(tree, "one.txt"), "one");
  fs.writeFileSync(path.join(tree, "inner", "two.txt"), "two");
  const page = await signIn(cell);
  await goTo(page, "files");
  await addFiles(page, [{ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("first a") }]);
  await page.locator('.virtual > li[data-name="a.txt"]').waitFor();
  await addFiles(page, tree, "Upload a folder");
  await page.locator('.virtual > li[data-name="to upload"]').waitFor();
  await waitFor("the folder is on the disk", () => cell.has("to upload/inner/two.txt") && cell.read("to upload/one.txt").toString() === "one");
  // Dropped on the page.
  const data = await page.evaluateHandle(() => {
    const transfer = new DataTransfer();
    transfer.items.add(new File(["dropped"], "dropped.txt", { type: "text/plain" }));
    transfer.items.add(new File([""], "empty.txt", { type: "text/plain" }));
    return transfer;
  });
  for (const kind of ["dragenter", "dragover", "drop"]) await page.dispatchEvent(".files", kind, { dataTransfer: data });
  await waitFor("the dropped are on the disk", () => cell.has("dropped.txt") && cell.has("empty.txt") && cell.read("dropped.txt").toString() === "dropped");
  // The same name again.
  page.allow(/409/);
  await addFiles(page, [{ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("second a") }]);
  await page.getByText("There is a file of this name.").waitFor();
  await checkAxe(page, "a taken name");
  await page.getByRole("button", { name: "Keep both" }).click();
  await waitFor("both are there", () => cell.has("a (2).txt") && cell.read("a (2).txt").toString() === "second a" && cell.read("a.txt").toString() === "first a");
  await addFiles(page, [{ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("third a") }]);
  await page.getByRole("button", { name: "Replace" }).click();
  await waitFor("it is replaced", () => cell.read("a.txt").toString() === "third a");
  await page.done();
  await cell.end();
});

test("what has arrived is said to be kept only when it is, and stands in the list then", async () => {
  const cell = await Cell.start("sealing");
  await cell.setUp();
  const page = await signIn(cell);
  await goTo(page, "files");
  // Whoever asks holds the pass: the cell is busy with many other files while the upload arrives.
  for (let n = 0; n < 3000; n += 1) cell.put(`many/${n}.txt`, `number ${n}`);
  const settled = cell.settle();
  // However fast the cell is with them and with this one: the page hears of it when all else has been looked at.
  const goOn = await holdAnswers(page);
  await addFiles(page, [{ name: "arrived.bin", mimeType: "application/octet-stream", buffer: Buffer.alloc(8 * 1024 * 1024, 5) }]);
  const seen = page.locator(".uploads li", { hasText: "arrived.bin" });
  await seen.and(page.locator(".keeping")).waitFor();
  await page.getByText("Arrived. It is being sealed").waitFor();
  await page.locator(".uploads .strong", { hasText: "Arrived, being sealed: 1 file" }).waitFor();
  await checkAxe(page, "an upload that is being sealed");
  assert.ok(cell.has("arrived.bin"));
  await goOn();
  await seen.and(page.locator(".done")).waitFor();
  await page.locator('.virtual > li[data-name="arrived.bin"]').waitFor();
  assert.deepEqual((await cell.api("GET", "uploads")).keeping, []);
  await settled;
  await page.done();
  await cell.end();
});

test("what cannot be kept yet is said to be so, with why, until it is; and what is never kept is left out", async () => {
  const cell = await Cell.start("unkept");
  await cell.setUp();
  const page = await signIn(cell);
  await goTo(page, "files");
  const [chunks, aside] = [path.join(cell.dir, "chunks", "tmp"), path.join(cell.dir, "tmp-aside")];
  fs.renameSync(chunks, aside);
  await addFiles(page, [{ name: "letter.txt", mimeType: "text/plain", buffer: crypto.randomBytes(300_000) }]);
  const seen = page.locator(".uploads li", { hasText: "letter.txt" });
  await seen.and(page.locator(".unkept")).waitFor();
  await page.getByText("Arrived in GroveHome, but not kept yet:").waitFor();
  await page.locator(".uploads .strong", { hasText: "Arrived, but not kept yet: 1 file" }).waitFor();
  await checkAxe(page, "an upload that is not kept");
  await shot(page, "unkept");
  // The cell tries again by itself, too: the page must not hear of that before one has asked for it here.
  const goOn = await holdAnswers(page);
  fs.rmSync(chunks, { recursive: true, force: true });
  fs.renameSync(aside, chunks);
  await seen.getByRole("button", { name: "Try again" }).click();
  await goOn();
  await seen.and(page.locator(".done")).waitFor();
  await page.locator('.virtual > li[data-name="letter.txt"]').waitFor();
  page.allow(/409/);
  await addFiles(page, [{ name: "film.part", mimeType: "text/plain", buffer: Buffer.from("half") }]);
  await page.locator(".uploads li.left_out", { hasText: "Left out: Grove keeps no files of this name." }).waitFor();
  assert.ok(!cell.has("film.part"));
  await page.done();
  await cell.end();
});

test("another tab leaves an upload alone, and what is typed to sign in again stays while it waits", async () => {
  const cell = await Cell.start("tabs");
  await cell.setUp();
  const source = path.join(cell.root, "slow.bin");
  fs.writeFileSync(source, Buffer.alloc(16 << 20));
  const page = await signIn(cell);
  await goTo(page, "files");
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  const slow = (bytesPerS) => session.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: bytesPerS });
  await slow(500_000);
  await addFiles(page, source);
  await waitFor("a part has arrived", async () => (await cell.api("GET", "uploads")).uploads[0]?.offset > 0);
  // It is under way for minutes, unless the line is let go.
  await slow(50_000);
  const other = await page.context().newPage();
  await other.goto(`${cell.url}/#/files`);
  await other.locator(".files").waitFor();
  // What the cell tells of it does not count, whenever the first tab finds time to say that it has it.
  await other.evaluate(async () => (await import("/files/uploads.js")).Uploads.shared().loadLeft());
  const known = () => other.evaluate(async () => (await import("/files/uploads.js")).Uploads.shared().others.size);
  await waitFor("the first tab has said so", async () => await known() === 1);
  const left = other.getByText("Not finished. Choose the file again to go on.");
  await left.waitFor({ state: "hidden" });
  await checkAxe(other, "another tab");
  assert.equal(await left.isVisible(), false);
  page.allow(/401|413|ERR_/);
  const refused = () => page.waitForResponse((response) => [401, 413].includes(response.status()) && response.url().includes("/uploads/"));
  const first = refused();
  await cell.api("POST", "sessions/revoke", { others: true });
  await first;
  await page.getByLabel("Password").fill("half a pass");
  await refused();
  // Whatever else the page asks for is refused, too.
  await page.evaluate(async () => (await import("/api.js")).get("status").catch(() => {}));
  await refused();
  assert.equal(await page.getByLabel("Password").inputValue(), "half a pass");
  await other.close();
  await signInAgain(page);
  await slow(-1);
  await waitFor("it arrives", () => cell.has("slow.bin"));
  page.once("dialog", (dialog) => dialog.accept());
  await page.done();
  await cell.end();
});

test("a large upload is paused, reloaded, survives a kill of the cell, and arrives whole", async () => {
  const cell = await Cell.start("large");
  await cell.setUp();
  const source = path.join(cell.root, "film.bin");
  const bytes = Buffer.alloc(96 * 1024 * 1024);
  for (let at = 0; at < bytes.length; at += 65536) crypto.randomFillSync(bytes, at, 64);
  fs.writeFileSync(source, bytes);
  const page = await signIn(cell);
  await goTo(page, "files");
  // The line is made slow, so that there is something to break.
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  const slow = (bytesPerS) => session.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: bytesPerS });
  await slow(1_500_000);
  await addFiles(page, source);
  const offset = async () => (await cell.api("GET", "uploads")).uploads[0]?.offset ?? 0;
  await waitFor("a part has arrived", async () => await offset() > 4e6);
  await page.getByText(/[kM]B\/s/).first().waitFor();
  await page.getByText(/left/).first().waitFor();
  // Nearly stopped: however slow this machine is, there is something left to pause.
  await slow(30_000);
  await checkAxe(page, "an upload");
  await page.getByRole("button", { name: "Pause uploads" }).click();
  // The piece that is under way is sent to its end.
  await slow(1_500_000);
  await page.locator(".uploads .strong", { hasText: "Uploads are paused" }).waitFor();
  const paused = await waitFor("it stands still", async () => {
    const before = await offset();
    await new Promise((done) => setTimeout(done, 400));
    return await offset() === before && before;
  });
  await page.getByRole("button", { name: "Go on with uploads" }).click();
  await waitFor("it goes on", async () => await offset() > paused + 2e6);
  // The power fails, and comes back.
  page.allow(/.*/);
  await cell.kill();
  await page.getByText("Waiting for the cell…").first().waitFor();
  await page.locator(".banner:not([hidden])").waitFor();
  await cell.run();
  await page.locator(".banner").waitFor({ state: "hidden" });
  await signInAgain(page);
  await slow(2_000_000);
  await waitFor("it goes on after the restart", async () => await offset() > 12e6);
  await page.locator(".banner").waitFor({ state: "hidden" });
  // The page is loaded anew; the file is chosen again and only the rest is sent.
  page.once("dialog", (dialog) => dialog.accept());
  // What the cell tells the new page: of the piece that was broken off more may be written down a moment later.
  const answer = page.waitForResponse((response) => response.request().method() === "GET" && response.url().endsWith("/api/v1/uploads") && response.ok());
  await page.reload();
  await signInAgain(page);
  await page.getByText("Not finished. Choose the file again to go on.").waitFor();
  const kept = (await (await answer).json()).uploads[0].offset;
  assert.ok(kept > 12e6);
  const sent = [];
  page.on("request", (request) => { if (request.method() === "PUT") sent.push(Number(new URL(request.url()).searchParams.get("offset"))); });
  await slow(-1);
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Choose", exact: true }).click();
  await (await chooser).setFiles(source);
  await waitFor("it is whole", () => cell.has("film.bin"));
  assert.equal(hash(cell.read("film.bin")), hash(bytes));
  assert.ok(Math.min(...sent) >= kept, `sent from ${Math.min(...sent)}, kept were ${kept}`);
  await page.done();
  await cell.end();
});
