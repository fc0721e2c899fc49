// The Bounty tab of two cells for whom a day lasts six seconds.

import assert from "node:assert/strict";
import crypto from "node:crypto";
import path from "node:path";
import { SHOTS, checkAxe, goTo, signIn } from "./lib/browser.mjs";
import { Cell, befriend } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

test("what two cells have stored for each other is shown, alike on both sides, and over time", async () => {
  process.env.GROVE_TEST_CLOCK = `${Math.floor(Date.now() / 1000)}:14400`;
  const settings = { "sync.every_s": 1, "drill.days": 0, "routes.measure_hours": 0 };
  const [ann, bob] = [await Cell.start("ann", settings), await Cell.start("bob", settings)];
  delete process.env.GROVE_TEST_CLOCK;
  await ann.setUp();
  await bob.setUp();
  const page = await signIn(ann);
  await goTo(page, "bounty");
  await page.getByText("No other cells yet").waitFor();
  await befriend(ann, bob);
  for (const cell of [ann, bob]) {
    cell.put("film", crypto.randomBytes(24 << 20));
    await cell.settle();
  }
  const known = async (cell) => (await cell.api("GET", "bounty")).peers[0];
  await waitFor("both have signed", async () => {
    const [ours, theirs] = [await known(ann), await known(bob)];
    return ours?.earned_mleaf > 50 && ours.spent_mleaf > 50 && ours.earned_byte_hours === theirs.spent_byte_hours && ours.spent_byte_hours === theirs.earned_byte_hours;
  });
  await page.reload();
  await goTo(page, "bounty");
  const card = page.locator('[data-bounty-peer][data-name="bob"]');
  await card.waitFor();
  assert.match(await card.locator('[data-figure="earned"]').innerText(), /^0\.\d{3}$/);
  await card.getByText("In order").waitFor();
  await card.getByText(/Signed by both on/).waitFor();
  await card.getByText("a friend").waitFor();
  await waitFor("two plots", async () => await page.locator(".plot canvas").count() === 2);
  await page.getByLabel("Over time with").selectOption({ label: "bob" });
  await waitFor("two plots again", async () => await page.locator(".plot canvas").count() === 2);
  await checkAxe(page, "Bounty");
  await page.screenshot({ path: path.join(SHOTS, "bounty.png"), fullPage: true });
  const phone = await signIn(ann, { width: 390, scheme: "dark" });
  await goTo(phone, "bounty");
  await phone.locator("[data-bounty-peer]").waitFor();
  const wide = await phone.evaluate(() => document.documentElement.scrollWidth > innerWidth + 1);
  assert.equal(wide, false, "nothing is wider than a phone");
  await checkAxe(phone, "Bounty on a phone");
  await phone.screenshot({ path: path.join(SHOTS, "bounty-phone.png"), fullPage: true });
  await phone.done();
  await page.done();
  await ann.end();
  await bob.end();
});
