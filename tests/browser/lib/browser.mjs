// A real browser, and pages in which nothing may go wrong unseen.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { chromium } from "playwright-core";
import { PASSWORD, TARGET } from "./cell.mjs";
import { witness } from "./runner.mjs";

const require = createRequire(import.meta.url);
const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
export const SHOTS = path.join(TARGET, "screenshots");

/** Where a browser is, or undefined. */
export const chromiumPath = () => process.env.CHROMIUM ?? PLACES.find((place) => fs.existsSync(place));

const TEXT_MAX = 1500;
// How long a page is waited for; only what fails takes so long.
const PAGE_MS_MAX = 90_000;
// For whoever looks for what is chance: GROVE_TEST_CPU=4 makes every page four times slower, GROVE_TEST_LATE=800 sends what it asks
// of the cell up to 800 ms late, so that answers come in another order.
const CPU_RATE = Number(process.env.GROVE_TEST_CPU ?? 1);
const LATE_MS = Number(process.env.GROVE_TEST_LATE ?? 0);

let browser = null;
const pages = new Set();
let failures = 0;

/** What a page shows and what it complained about. */
async function told(page) {
  const shown = await page.evaluate(() => {
    const text = (selector) => [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility()).map((each) => each.innerText.replace(/\s*\n\s*/g, " / ")).join(" // ");
    const active = document.activeElement;
    return { main: text("main, .door"), over: text("dialog, .light, .toast, .banner, .problem, [role=menu]"), active: `${active?.tagName} ${active?.getAttribute("aria-label") ?? active?.textContent.slice(0, 60)}` };
  });
  failures += 1;
  const name = `failure-${failures}`;
  await shot(page, name);
  return [`page ${page.url()} (screenshots/${name}.png), focus on ${shown.active}`, `shows: ${shown.main.slice(0, TEXT_MAX)}`, `over it: ${shown.over.slice(0, TEXT_MAX)}`, ...page.heard.slice(-15)]
    .flatMap((line) => line.match(/.{1,280}/gs) ?? []).join("\n");
}

witness(async () => {
  const all = [];
  for (const page of pages) all.push(await told(page).catch((error) => `page ${page.url()}: ${error.message}`));
  return all.join("\n");
}, async () => {
  for (const page of [...pages]) await page.context().close();
});

export async function launch() {
  // One that has crashed fails one test, not all that follow.
  if (browser?.isConnected() === false) browser = null;
  browser ??= await chromium.launch({ executablePath: chromiumPath(), args: FLAGS, timeout: PAGE_MS_MAX, handleSIGTERM: false, handleSIGINT: false, handleSIGHUP: false });
  return browser;
}

export async function closeBrowser() {
  await browser?.close();
  browser = null;
}

/**
 * A page of a browser of its own. What goes wrong in it is in `page.problems`; answers that a test provokes are let pass by
 * `page.allow(/…/)`.
 */
export async function newPage({ width = 1280, height = 800, scheme = "light", ...more } = {}) {
  const isPhone = width < 760;
  const context = await (await launch()).newContext({ viewport: { width, height: isPhone ? 844 : height }, colorScheme: scheme, reducedMotion: "reduce", isMobile: isPhone, hasTouch: isPhone, acceptDownloads: true, ...more });
  const page = await context.newPage();
  page.setDefaultTimeout(PAGE_MS_MAX);
  if (CPU_RATE > 1) await (await context.newCDPSession(page)).send("Emulation.setCPUThrottlingRate", { rate: CPU_RATE });
  // A page that is left while its service worker is fetched: the browser reports the fetch that it broke off itself.
  const allowed = [/unknown error occurred when fetching the script/];
  if (LATE_MS > 0) {
    await context.route("**/api/**", async (route) => {
      await new Promise((done) => setTimeout(done, Math.random() * LATE_MS));
      await route.continue().catch(() => {});
    });
  }
  page.problems = [];
  page.heard = [];
  const note = (text) => {
    page.heard.push(text.slice(0, 600));
    if (page.heard.length > 60) page.heard.shift();
    if (!allowed.some((one) => one.test(text))) page.problems.push(text);
  };
  pages.add(page);
  page.on("close", () => pages.delete(page));
  page.allow = (pattern) => {
    allowed.push(pattern);
    page.problems = page.problems.filter((text) => !pattern.test(text));
  };
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) note(`console: ${message.text()} ${message.location().url}`); });
  page.on("pageerror", (error) => note(`script: ${error.stack}`));
  page.on("requestfailed", (request) => { if (request.failure()?.errorText !== "net::ERR_ABORTED") note(`request: ${request.failure()?.errorText} ${request.url()}`); });
  page.on("response", (response) => { if (response.status() >= 400) note(`answer: ${response.status()} ${response.url()}`); });
  page.done = async () => {
    const problems = [...page.problems];
    await context.close();
    if (problems.length > 0) throw new Error(`the page was not clean:\n${problems.join("\n")}`);
  };
  return page;
}

/** Signs in again where the page asks for it, as after a restart. */
export async function signInAgain(page) {
  await page.waitForSelector(".frame .page, .door input[type=password]");
  if (!await page.locator(".door input[type=password]").count()) return;
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForSelector(".frame .page");
}

/** Opens a cell's page, signed in. */
export async function signIn(cell, options) {
  const page = await newPage(options);
  await page.goto(cell.url);
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForSelector(".frame .page");
  return page;
}

/**
 * Opens a menu and takes an item of it. A list that is painted anew while the button is pressed takes the press away; whether
 * the menu has opened is known as soon as it is let go.
 */
export async function chooseFrom(page, button, item) {
  for (let tries = 0; tries < 5 && await page.getByRole("menu").count() === 0; tries += 1) await button.click();
  await page.getByRole("menuitem", item).click();
}

/** Presses the button of a form that shows what went wrong; gives whether `done` is there instead. */
export async function pressed(page, button, done) {
  await button.click();
  const refused = page.locator(".problem:not([hidden])");
  await done.or(refused).first().waitFor();
  return await refused.count() === 0;
}

/** Goes to a tab by its address. */
export async function goTo(page, hash, selector = ".page h1") {
  await page.evaluate((to) => { location.hash = to; }, `#/${hash}`);
  await page.waitForSelector(`main[data-tab="${hash.split(/[/?]/)[0]}"] ${selector}`);
}

/** Throws where axe finds a violation. */
export async function checkAxe(page, where) {
  // What fades in has its colours at the end only; what is asked to keep still hardly does.
  await page.evaluate(() => Promise.all(document.getAnimations().filter((each) => each.effect.getTiming().iterations !== Infinity).map((each) => each.finished.catch(() => {}))));
  await page.evaluate(`${AXE}; 0`);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const told = found.violations.map((one) => `${one.id} (${one.impact}): ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" | ")}`);
  if (told.length > 0) throw new Error(`axe on ${where}:\n${told.join("\n")}`);
}

export async function shot(page, name) {
  fs.mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: path.join(SHOTS, `${name}.png`) });
}
