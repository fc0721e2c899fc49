// A folder of 50,000 files scrolls from end to end.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { checkAxe, goTo, signIn } from "./lib/browser.mjs";
import { Cell } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

const COUNT = Number(process.env.GROVE_TEST_FILES ?? 50_000);

test("50,000 files in one folder scroll smoothly, are found and selected", async () => {
  const cell = await Cell.start("many");
  await cell.setUp();
  const folder = path.join(cell.home, "many");
  fs.mkdirSync(folder);
  for (let n = 0; n < COUNT; n += 1) fs.writeFileSync(path.join(folder, `file ${String(n).padStart(5, "0")}.txt`), "");
  await waitFor("all are kept", async () => (await cell.api("GET", "status")).files.count >= COUNT, 480_000);
  const page = await signIn(cell);
  await goTo(page, "files/many");
  await page.locator('.virtual > li[data-name="file 00000.txt"]').waitFor();
  await page.getByText(`${COUNT.toLocaleString("en")} entries`).waitFor();
  // Scrolled all the way in steps of a screen, the time of each frame measured.
  const told = await page.evaluate(async () => {
    const frames = [];
    let last = performance.now();
    const height = document.documentElement.scrollHeight;
    for (let n = 0; n < 120; n += 1) {
      scrollTo(0, (height / 120) * n);
      await new Promise((done) => requestAnimationFrame(done));
      const now = performance.now();
      frames.push(now - last);
      last = now;
    }
    frames.sort((a, b) => a - b);
    return { median: frames[60], worst: frames.at(-2), nodes: document.querySelectorAll(".virtual > li").length };
  });
  console.log(`  frames: median ${told.median.toFixed(1)} ms, second worst ${told.worst.toFixed(1)} ms; ${told.nodes} rows on the page`);
  assert.ok(told.nodes < 200, "only what is in sight is on the page");
  await page.locator(".virtual > li [data-role=open]").first().focus();
  await page.keyboard.press("End");
  await page.locator(`.virtual > li[data-name="file ${String(COUNT - 1).padStart(5, "0")}.txt"]`).waitFor();
  await checkAxe(page, "many files");
  await page.getByLabel("Search all files").fill(`file ${COUNT - 1}`);
  await page.locator(`.virtual > li[data-name="file ${String(COUNT - 1).padStart(5, "0")}.txt"]`).waitFor();
  await page.done();
  await cell.end();
});
