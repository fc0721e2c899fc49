// Settings, sessions, password, phrase, log, and the cell itself.

import assert from "node:assert/strict";
import { checkAxe, goTo, newPage, pressed, signIn, signInAgain } from "./lib/browser.mjs";
import { Cell, PASSWORD } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

test("settings are changed and hold over a restart from the page", async () => {
  const cell = await Cell.start("knobs");
  await cell.setUp();
  const page = await signIn(cell);
  await goTo(page, "settings");
  await page.getByLabel("Name of this cell").fill("Kitchen");
  await page.getByLabel("Copies of each file").fill("3");
  await page.getByText("2 changes").waitFor();
  await checkAxe(page, "changed settings");
  await page.getByRole("button", { name: "Save" }).click();
  await page.getByText("Saved.", { exact: true }).waitFor();
  if (await page.locator("dialog").count()) await page.keyboard.press("Escape");
  const read = async () => Object.fromEntries((await cell.api("GET", "settings")).settings.map((one) => [one.key, one.value]));
  assert.equal((await read()).copies, 3);
  // What makes no sense is refused, with words.
  page.allow(/40[0-9]/);
  await page.getByText("2 changes").waitFor({ state: "hidden" });
  await page.getByLabel("Relays", { exact: true }).fill("no address at all");
  await page.getByRole("button", { name: "Save" }).click();
  await page.locator(".problem:not([hidden])").waitFor();
  page.allow(/.*/);
  await goTo(page, "settings/about");
  await page.getByRole("button", { name: "Restart" }).click();
  await page.locator("dialog").getByRole("button", { name: "Restart" }).click();
  await waitFor("it has started anew", async () => (await cell.api("GET", "status").catch(() => null))?.name === "Kitchen");
  assert.equal((await read()).copies, 3);
  // The page has heard of the new one: it shows its name, or asks who is there.
  const heard = page.locator(".side .cell-name", { hasText: "Kitchen" });
  await heard.or(page.locator(".door input[type=password]")).waitFor();
  await signInAgain(page);
  await heard.waitFor();
  await page.getByRole("button", { name: "Look over the machine" }).click();
  await page.locator(".settings-pane .plain-list li").first().waitFor();
  await page.getByRole("button", { name: "Read everything" }).click();
  await page.getByText(/pieces were read/).waitFor();
  await page.done();
  await cell.end();
});

test("other sessions are seen and ended, the password is changed", async () => {
  const cell = await Cell.start("keys");
  await cell.setUp();
  const here = await signIn(cell);
  const other = await signIn(cell, { width: 390 });
  await goTo(here, "settings/access");
  await here.getByText("This one").waitFor();
  await here.getByRole("button", { name: "Sign out all others" }).click();
  await here.getByText("All others are signed out.").waitFor();
  other.allow(/.*/);
  await other.reload();
  await other.getByLabel("Password").waitFor();
  await other.done();
  here.allow(/40[0-9]/);
  await here.getByLabel("Password now").fill("wrong one");
  await here.getByLabel("New password").fill("another horse");
  await here.getByLabel("The same again").fill("another horse");
  await here.getByRole("button", { name: "Change password" }).click();
  await here.locator(".problem:not([hidden])").waitFor();
  await waitFor("the password is changed", async () => {
    await here.getByLabel("Password now").fill(PASSWORD);
    return pressed(here, here.getByRole("button", { name: "Change password" }), here.getByText("The password is changed."));
  });
  await here.done();
  const again = await newPage();
  await again.goto(cell.url);
  await again.getByLabel("Password").fill("another horse");
  await again.getByRole("button", { name: "Sign in" }).click();
  await again.waitForSelector(".frame");
  await again.done();
  await cell.end();
});

test("the phrase is shown when asked for, and the log tells what happened", async () => {
  const cell = await Cell.start("papers");
  await cell.setUp();
  const page = await signIn(cell);
  await goTo(page, "settings/phrase");
  await page.getByRole("button", { name: "Show the words" }).click();
  await page.locator(".words li").nth(23).waitFor();
  const words = (await page.locator(".words li").allInnerTexts()).map((text) => text.replace(/^\d+\s*/, "").trim());
  assert.equal(words.join(" "), (await cell.api("POST", "phrase")).phrase);
  await checkAxe(page, "the phrase");
  await page.getByRole("button", { name: "I have written them down" }).click();
  for (const n of [3, 11, 19]) await page.getByLabel(`Word ${n}`, { exact: true }).fill(words[n - 1]);
  await page.getByRole("button", { name: "Check" }).click();
  await page.getByText("Well kept.").waitFor();
  await goTo(page, "settings/logs");
  await page.locator(".log-line").first().waitFor();
  await page.getByLabel("What to show").selectOption("error");
  await page.done();
  await cell.end();
});

test("the help opens within the frame and by itself", async () => {
  const cell = await Cell.start("help");
  await cell.setUp();
  const page = await signIn(cell);
  for (const name of ["", "/sharing", "/recovery", "/security", "/trouble"]) {
    await goTo(page, `help${name}`, ".prose-title");
    await waitFor("the page", async () => (await page.locator(".doc-text").innerText()).length > 500);
  }
  await page.goto(`${cell.url}/docs/security.html`);
  await page.getByRole("heading", { level: 1 }).waitFor();
  await checkAxe(page, "docs/security.html");
  await page.done();
  await cell.end();
});
