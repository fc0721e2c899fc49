// What changes shows by itself; a lost connection is told and healed; alerts have their remedy.

import fs from "node:fs";
import path from "node:path";
import { checkAxe, goTo, signIn, signInAgain } from "./lib/browser.mjs";
import { Cell, befriend } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

test("a file put into the folder shows up without a reload", async () => {
  const cell = await Cell.start("live");
  await cell.setUp();
  const page = await signIn(cell);
  await goTo(page, "files");
  await page.getByText("Nothing here yet").waitFor();
  cell.put("from outside.txt", "hello");
  await page.locator('.virtual > li[data-name="from outside.txt"]').waitFor();
  await goTo(page, "home");
  await page.getByText("are on this machine only").or(page.getByText("is on this machine only")).waitFor();
  await page.done();
  await cell.end();
});

test("a lost connection is told and heals", async () => {
  const cell = await Cell.start("gone");
  await cell.setUp();
  const page = await signIn(cell);
  page.allow(/.*/);
  await cell.kill();
  await page.locator(".banner", { hasText: "does not answer" }).waitFor();
  await checkAxe(page, "a lost connection");
  await cell.run();
  await page.locator(".banner").waitFor({ state: "hidden" });
  await signInAgain(page);
  cell.put("after.txt", "it lives");
  await goTo(page, "files");
  await page.locator('.virtual > li[data-name="after.txt"]').waitFor();
  await page.done();
  await cell.end();
});

test("Home says that files are safe once they are, and a trial restore proves it", async () => {
  const [ann, bob] = [await Cell.start("ann"), await Cell.start("bob")];
  await ann.setUp();
  await bob.setUp();
  const page = await signIn(ann);
  await page.getByText("There is nothing to keep yet.").waitFor();
  ann.put("keep/me.txt", "important ".repeat(500));
  await page.getByText("machine only").waitFor();
  await befriend(ann, bob);
  await waitFor("Home says so", async () => /safe, with 2/.test(await page.locator("#sentence").innerText())).catch(async (error) => {
    // Whether the copy is missing, or only the word of it.
    const { copies, files, uptime_s: up } = await ann.api("GET", "status");
    throw new Error(`${error.message}; the cell says ${JSON.stringify({ copies, files, up })}`);
  });
  await page.getByRole("button", { name: "Try now" }).click();
  await page.getByText("The trial restore has ended.").waitFor({ timeout: 60_000 });
  await page.getByText("Worked").waitFor();
  await checkAxe(page, "Home");
  await page.done();
  await ann.end();
  await bob.end();
});

test("most files deleted: Home says what to do, and it was me", async () => {
  const cell = await Cell.start("brake");
  await cell.setUp();
  for (let n = 0; n < 60; n += 1) cell.put(`${n < 50 ? "many" : "few"}/${n}.txt`, `file ${n}`);
  await cell.settle();
  const page = await signIn(cell);
  // All at once: whoever looks in between would see that fewer are gone.
  fs.renameSync(path.join(cell.home, "many"), path.join(cell.root, "gone"));
  await cell.settle();
  await page.locator('.alert[data-code="brake"]', { hasText: "50 files were deleted" }).waitFor();
  await page.getByText("Something is wrong that needs you now.").waitFor();
  await checkAxe(page, "an urgent alert");
  await page.getByRole("button", { name: "It was me" }).click();
  await page.locator("dialog", { hasText: "That is 50 files with" }).waitFor();
  await page.locator("dialog").getByRole("button", { name: "It was me" }).click();
  await page.locator('.alert[data-code="brake"]').waitFor({ state: "detached" });
  await page.done();
  await cell.end();
});
