// The way in: first visit, recovery phrase, sign-in, second factor.

import assert from "node:assert/strict";
import tls from "node:tls";
import { checkAxe, newPage, pressed, shot, signIn } from "./lib/browser.mjs";
import { Cell, PASSWORD, befriend, totp } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

test("a first visit ends with a kept phrase, a file that is safe, and a friend", async () => {
  const cell = await Cell.start("fresh");
  const other = await Cell.start("other");
  const page = await newPage({ width: 390 });
  // The cell starts anew to go by its name.
  page.allow(/40[0-9].*\/(setup|phrase\/kept)|status of (40[0-9]|503)|net::ERR|503/);
  let clicks = 0;
  const press = async (name) => {
    clicks += 1;
    await page.getByRole("button", { name, exact: true }).click();
  };
  await page.goto(cell.url);
  await page.getByRole("heading", { name: "Welcome to Grove" }).waitFor();
  await checkAxe(page, "set-up");
  await shot(page, "walk-1-set-up-390-light");
  await page.getByLabel("New password").fill(PASSWORD);
  await page.getByLabel("The same again").fill("another one");
  await page.getByLabel("Set-up code").fill("AAAA-AAAA");
  await page.getByRole("button", { name: "Begin" }).click();
  await page.getByText("The two passwords differ.").waitFor();
  await page.getByLabel("The same again").fill(PASSWORD);
  await page.getByRole("button", { name: "Begin" }).click();
  await page.locator(".problem:not([hidden])").waitFor();
  await page.getByLabel("Set-up code").fill(cell.code);
  await press("Begin");
  await page.getByRole("heading", { name: "What shall this cell be?" }).waitFor();
  await checkAxe(page, "choice");
  await shot(page, "walk-2-choice-390-light");
  clicks += 1;
  await page.getByRole("button", { name: /A new cell/ }).click();
  await page.getByLabel("Name of this cell").fill("Ann's Pi");
  await press("Continue");
  await page.getByRole("heading", { name: "Your recovery phrase" }).waitFor();
  const words = (await page.locator(".words li").allInnerTexts()).map((text) => text.replace(/^\d+\s*/, "").trim());
  assert.equal(words.length, 24);
  assert.ok(words.every((word) => /^[a-z]{3,8}$/.test(word)), words.join(" "));
  await checkAxe(page, "phrase");
  await shot(page, "walk-3-phrase-390-light");
  await press("I have written them down");
  const fields = page.locator("input[data-word]");
  assert.equal(await fields.count(), 3);
  for (const field of await fields.all()) await field.fill("wrong");
  await page.getByRole("button", { name: "Continue" }).click();
  await page.locator(".problem:not([hidden])").waitFor();
  for (const field of await fields.all()) await field.fill(words[Number(await field.getAttribute("data-word")) - 1].toUpperCase());
  await press("Continue");
  await page.getByRole("heading", { name: "Your first files" }).waitFor();
  await checkAxe(page, "first files");
  const chooser = page.waitForEvent("filechooser");
  await press("Choose files");
  await (await chooser).setFiles([{ name: "first.txt", mimeType: "text/plain", buffer: Buffer.from("the first file") }]);
  // The same is told to those who listen, a moment later.
  await page.locator(".uploads .strong", { hasText: "Uploaded 1 file" }).waitFor();
  await shot(page, "walk-4-files-390-light");
  assert.equal(cell.read("first.txt").toString(), "the first file");
  await press("Continue");
  await press("Make an invitation");
  const token = await page.locator(".copy-box code").innerText();
  assert.match(token, /^grove:/);
  await page.locator("svg.qr").waitFor();
  await checkAxe(page, "first invitation");
  await shot(page, "walk-5-invite-390-light");
  await other.cli("join", token);
  await page.getByText("other is here").waitFor();
  await press("Go to my cell");
  await page.waitForSelector(".frame .hero");
  await waitFor("the file is safe", async () => (await page.locator("#sentence").innerText()).includes("safe"), 120_000);
  console.log(`  the first walk took ${clicks} presses`);
  assert.ok(clicks <= 10, `${clicks} presses`);
  const status = await cell.api("GET", "status");
  assert.ok(!status.alerts.some((alert) => alert.code === "phrase"));
  assert.equal(status.name, "Ann's Pi");
  await page.done();
  await cell.end();
  await other.end();
});

test("a lost cell comes back through the page, with its phrase and a peer", async () => {
  const old = await Cell.start("lost");
  const keeper = await Cell.start("keeper");
  await old.setUp();
  await keeper.setUp();
  await befriend(old, keeper);
  old.put("letters/dear.txt", "what must not be lost");
  await old.settle();
  await old.cli("sync", "--wait");
  const { phrase } = await old.api("POST", "phrase");
  await old.end();
  const anew = await Cell.start("anew");
  const page = await newPage();
  page.allow(/.*/);
  await page.goto(anew.url);
  await page.getByLabel("Set-up code").fill(anew.code);
  await page.getByLabel("New password").fill(PASSWORD);
  await page.getByLabel("The same again").fill(PASSWORD);
  await page.getByRole("button", { name: "Begin" }).click();
  await page.getByRole("button", { name: /My lost cell/ }).click();
  await checkAxe(page, "recovery");
  await page.getByLabel("Recovery phrase").fill("abandon ".repeat(23) + "art");
  await page.getByLabel("Address of another cell").fill(`127.0.0.1:${keeper.peerPort}`);
  await page.getByRole("button", { name: "Bring it back" }).click();
  await page.locator(".problem:not([hidden])").waitFor({ timeout: 60_000 });
  await page.getByLabel("Recovery phrase").fill(`  ${phrase.toUpperCase()} `);
  await page.getByRole("button", { name: "Bring it back" }).click();
  await waitFor("the file is back", () => anew.has("letters/dear.txt") && anew.read("letters/dear.txt").toString() === "what must not be lost", 180_000);
  await page.waitForSelector(".frame, .door form");
  await page.done();
  await anew.end();
  await keeper.end();
});

test("the page opens over TLS and shows the fingerprint that the connection has", async () => {
  const cell = await Cell.start("sealed");
  const page = await newPage({ ignoreHTTPSErrors: true });
  // No service worker under a certificate that nobody vouches for; the browser remarks on that.
  page.allow(/SSL certificate error occurred when fetching the script/);
  await page.goto(`https://127.0.0.1:${cell.port}/`);
  await page.getByText("fingerprint of this connection").click();
  const shown = (await page.locator("details code").innerText()).replace(/[^0-9A-F]/gi, "").toUpperCase();
  const seen = await new Promise((done, failed) => {
    const socket = tls.connect({ host: "127.0.0.1", port: cell.port, rejectUnauthorized: false }, () => {
      done(socket.getPeerCertificate().fingerprint256.replaceAll(":", ""));
      socket.end();
    });
    socket.on("error", failed);
  });
  assert.equal(shown, seen);
  await page.getByLabel("Set-up code").fill(cell.code);
  await page.getByLabel("New password").fill(PASSWORD);
  await page.getByLabel("The same again").fill(PASSWORD);
  await page.getByRole("button", { name: "Begin" }).click();
  await page.getByRole("heading", { name: "What shall this cell be?" }).waitFor();
  await page.done();
  await cell.end();
});

test("signing in, out, and with a second factor", async () => {
  const cell = await Cell.start("doors");
  await cell.setUp();
  const page = await newPage();
  page.allow(/4(0[139]|29).*\/(login|totp)|status of 4/);
  await page.goto(cell.url);
  await page.getByLabel("Password").fill("not this one");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.locator(".problem:not([hidden])").waitFor();
  await checkAxe(page, "sign-in");
  const enter = () => pressed(page, page.getByRole("button", { name: "Sign in" }), page.locator(".frame"));
  await waitFor("the door opens again", async () => {
    await page.getByLabel("Password").fill(PASSWORD);
    return enter();
  });
  await page.goto(`${cell.url}/#/settings/access`);
  await page.getByRole("button", { name: "Set it up" }).click();
  const secret = (await page.locator("dialog .copy-box code").innerText()).trim();
  await checkAxe(page, "setting up the second factor");
  await page.getByLabel("Six digits").fill(totp(secret));
  await page.getByRole("button", { name: "Switch it on" }).click();
  await page.getByText("The second factor is on.").waitFor();
  await page.getByRole("button", { name: "Sign out", exact: true }).first().click();
  await page.getByLabel("Password").fill(PASSWORD);
  if (!await page.getByLabel("Code from your app").isVisible()) await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByLabel("Code from your app").fill("000000");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.locator(".problem:not([hidden])").waitFor();
  // A code serves once: the next one is waited for, and tried until the door has cooled down.
  await waitFor("the second factor opens", async () => {
    await page.getByLabel("Password").fill(PASSWORD);
    await page.getByLabel("Code from your app").fill(totp(secret, Date.now() + 30_000));
    return enter();
  });
  await page.goto(`${cell.url}/#/settings/access`);
  await page.getByRole("button", { name: "Switch it off" }).click();
  await page.locator("dialog").getByLabel("Password now").fill(PASSWORD);
  await page.locator("dialog").getByRole("button", { name: "Switch it off" }).click();
  await page.getByText("The second factor is off.").waitFor();
  await page.done();
  const again = await signIn(cell);
  await again.done();
  await cell.end();
});

test("who signs out is shown the sign-in once, and what is typed there stays", async () => {
  const cell = await Cell.start("leaving");
  await cell.setUp();
  const page = await signIn(cell);
  page.allow(/401/);
  // What the page has asked before is answered when its session is over, and before it has looked who is there.
  let isOver;
  const over = new Promise((done) => { isOver = done; });
  await page.route("**/api/v1/status", async (route) => {
    await over;
    await route.continue().catch(() => {});
  });
  let looks = 0;
  await page.route("**/api/v1/session", async (route) => {
    looks += 1;
    if (looks === 1) {
      const refused = page.waitForResponse((response) => response.status() === 401 && response.url().endsWith("/status"));
      isOver();
      await refused;
      // The page has heard it.
      await page.evaluate(() => new Promise((done) => { setTimeout(done); }));
    }
    await route.continue().catch(() => {});
  });
  const asked = page.waitForRequest("**/api/v1/status");
  await page.evaluate(async () => (await import("/ui/live.js")).changed("status"));
  await asked;
  await page.getByRole("button", { name: "Sign out", exact: true }).first().click();
  await page.getByLabel("Password").fill("half a pass");
  await page.evaluate(async () => (await import("/api.js")).get("status").catch(() => {}));
  assert.equal(looks, 1);
  assert.equal(await page.getByLabel("Password").inputValue(), "half a pass");
  await page.done();
  await cell.end();
});
