// Names and messages that are made to be run are only ever shown.

import assert from "node:assert/strict";
import { checkAxe, goTo, signIn } from "./lib/browser.mjs";
import { Cell, befriend } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

const CORPUS = [
  "<script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>", "\"><svg onload=window.hacked=1>", "'-window.hacked=1-'",
  "{{constructor.constructor('window.hacked=1')()}}", "javascript:window.hacked=1", "<a href=javascript:window.hacked=1>x</a>",
  "<iframe srcdoc='<script>parent.hacked=1</script>'>", "</title><script>window.hacked=1</script>", "${window.hacked=1}", "%3Cscript%3Ewindow.hacked=1%3C%2Fscript%3E",
  "\u202egnp.exe", "a\u0000b".replace("\u0000", ""), "line\nbreak", "&lt;b&gt;&amp;", "#?&=;/%2e%2e".replaceAll("/", "∕"), "..\\..\\x", " leading and trailing ", "\u{1F469}\u200D\u{1F4BB}", "ﷺ".repeat(20), "very".repeat(60),
];

test("a corpus of hostile names and messages is shown as text everywhere", async () => {
  const mine = "<img src=x onerror=window.hacked=1>ann";
  const [ann, bob] = [await Cell.start(mine), await Cell.start("\"><script>window.hacked=1</script>bob")];
  await ann.setUp();
  await bob.setUp();
  await befriend(ann, bob);
  const names = CORPUS.map((text, n) => `${n} ${text}`.replaceAll("/", "∕").slice(0, 60));
  for (const name of names) ann.put(`hostile <b>folder</b>/${name}.txt`, `content of ${name}`);
  ann.put("<script>window.hacked=1<∕script>.svg", "<svg xmlns='http://www.w3.org/2000/svg'><script>parent.hacked=1;window.hacked=1</script></svg>");
  ann.put("page.html", "<script>parent.hacked=1;window.hacked=1</script>");
  await ann.settle();
  const [{ id: bobs }] = (await ann.api("GET", "peers")).peers;
  const [{ id: anns }] = (await bob.api("GET", "peers")).peers;
  await ann.api("POST", "share", { path: "hostile <b>folder</b>", peers: [bobs] });
  for (const text of CORPUS) await ann.api("POST", "chat/send", { peer: bobs, text });
  await waitFor("all messages have arrived", async () => (await bob.api("GET", "chat")).conversations[0]?.unread >= CORPUS.length);
  await waitFor("all is announced", async () => (await bob.api("GET", "feed")).entries.length >= names.length);
  const clean = async (page, where) => {
    assert.equal(await page.evaluate(() => window.hacked), undefined, where);
    assert.deepEqual(await page.evaluate(() => [...document.querySelectorAll("main script, main img:not([src^='/']), main iframe, main [onerror], main [onload]")].map((each) => each.outerHTML)), [], where);
  };
  const here = await signIn(ann);
  await goTo(here, "files");
  await here.locator(".virtual > li", { hasText: "page.html" }).waitFor();
  await clean(here, "files");
  await goTo(here, `files/${encodeURIComponent("hostile <b>folder</b>")}`);
  await here.locator(".virtual > li", { hasText: "onerror" }).first().waitFor();
  const missing = new Set(names.map((name) => `${name}.txt`.replace(/[\u0000-\u001f]/g, "\ufffd")));
  await waitFor("every name has stood in the list", async () => {
    for (const name of await here.locator(".virtual > li").evaluateAll((rows) => rows.map((each) => each.dataset.name))) missing.delete(name);
    await here.mouse.wheel(0, 300);
    return missing.size === 0;
  }).catch((error) => { throw new Error(`${error.message}: ${JSON.stringify([...missing])}`); });
  await clean(here, "a folder");
  await checkAxe(here, "hostile names");
  await here.locator(".virtual > li", { hasText: "<script>" }).first().locator("[data-role=open]").click();
  await here.getByText("content of 0 <script>").waitFor();
  await clean(here, "a look");
  await here.keyboard.press("Escape");
  for (const tab of ["home", "fleet", "invites", "settings/about", "feed/mine", "chat"]) {
    await goTo(here, tab);
    await here.waitForTimeout(400);
    await clean(here, tab);
  }
  const there = await signIn(bob);
  await goTo(there, "feed");
  await there.locator(".feed-row", { hasText: "onerror" }).first().waitFor();
  await clean(there, "feed");
  await checkAxe(there, "a hostile feed");
  await goTo(there, `chat/${anns}`, ".bubble");
  await waitFor("the messages", async () => await there.locator(".bubble").count() >= CORPUS.length);
  const said = await there.locator(".bubble-text").evaluateAll((all) => all.map((each) => each.textContent));
  for (const text of CORPUS) assert.ok(said.includes(text), JSON.stringify(text));
  await clean(there, "chat");
  // Markup in a file is text when it is opened by itself, too.
  await here.goto(`${ann.url}/api/v1/content?path=page.html&inline=1`);
  await clean(here, "an HTML file");
  await here.goto(`${ann.url}/api/v1/content?path=${encodeURIComponent("<script>window.hacked=1<∕script>.svg")}&inline=1`);
  await clean(here, "an SVG file");
  await there.done();
  await here.done();
  await ann.end();
  await bob.end();
});
