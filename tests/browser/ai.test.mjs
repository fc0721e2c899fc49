// The AI tab: an answer as it comes, Markdown that stays harmless, stop, retry, what is kept, and the set-up.

import assert from "node:assert/strict";
import http from "node:http";
import { checkAxe, goTo, signIn } from "./lib/browser.mjs";
import { Cell, request } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

const HOSTILE = [
  "# A heading\n\n", "Some **bold** and `code`.\n\n", "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</scr", "ipt>\n\n",
  "[a link](https://example.org/) and [another](javascript:window.hacked=1) and ![pic](https://example.org/x.png)\n\n",
  "- one\n- two\n  - three\n\n", "```js\nlet x = \"<b>\";\n```\n\n", "| a | b |\n|---|--:|\n| 1 | 2 |\n\n", "> quoted\n",
];

/** A model server that writes these pieces; "slowly" makes it write without end. */
function model() {
  const asked = [];
  const server = http.createServer((request, response) => {
    const json = (body) => response.end(JSON.stringify(body));
    if (request.url === "/props") return json({ total_slots: 2, default_generation_settings: { n_ctx: 4096 } });
    if (request.url === "/v1/models") return json({ data: [{ id: "tiny", meta: { n_params: 1e6 } }] });
    if (request.url === "/slots") return json([{ is_processing: true }]);
    if (request.url !== "/v1/chat/completions") {
      response.statusCode = 404;
      return response.end();
    }
    let body = "";
    request.on("data", (piece) => { body += piece; });
    request.on("end", async () => {
      const question = JSON.parse(body);
      asked.push(question);
      const isSlow = question.messages.at(-1).content.includes("slowly");
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      const send = (content, finish = null) => response.write(`data: ${JSON.stringify({ choices: [{ index: 0, delta: content ? { content } : {}, finish_reason: finish }] })}\n\n`);
      for (let n = 0; isSlow ? !response.destroyed : n < HOSTILE.length; n += 1) {
        send(isSlow ? `word ${n} ` : HOSTILE[n]);
        await new Promise((done) => setTimeout(done, isSlow ? 30 : 5));
      }
      send("", "stop");
      response.end("data: [DONE]\n\n");
    });
    return undefined;
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done({ server, asked, url: `http://127.0.0.1:${server.address().port}` })));
}

test("an answer is written as it comes, harmless, kept here, stopped and asked for again", async () => {
  const { server, asked, url } = await model();
  const ann = await Cell.start("ann", { "ai.backends": [url] });
  await ann.setUp();
  const page = await signIn(ann);
  await waitFor("the model is known", async () => (await ann.api("GET", "ai")).models.length > 0);
  // One asks before the page has heard which models there are, and is answered all the same.
  const place = "**/api/v1/ai";
  let hear;
  const heard = new Promise((done) => { hear = done; });
  await page.route(place, async (route) => {
    await heard;
    await route.continue().catch(() => {});
  });
  await goTo(page, "ai");
  await page.getByLabel("Ask something").fill("hello");
  await page.keyboard.press("Enter");
  const answer = page.locator(".bubble:not(.ours) .said");
  await answer.locator("blockquote").waitFor();
  hear();
  await page.unroute(place);
  await page.getByLabel("Model").locator("option", { hasText: "tiny" }).waitFor({ state: "attached" });
  assert.equal(await answer.locator("img, script").count(), 0);
  assert.equal(await answer.locator(".said-heading").innerText(), "A heading");
  assert.deepEqual(await answer.locator("a").evaluateAll((links) => links.map((link) => link.href)), ["https://example.org/", "https://example.org/x.png"]);
  assert.equal(await answer.locator("pre code").innerText(), "let x = \"<b>\";");
  assert.equal(await answer.locator("li li").innerText(), "three");
  assert.equal(await answer.locator("td").count(), 2);
  assert.ok((await answer.innerText()).includes("<script>window.hacked=1</script>"));
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  await page.locator(".bubble-foot").getByText("ann").waitFor();
  await checkAxe(page, "an answer");
  // An answer has ended when one can send again, and is kept when it stands in the list.
  const ended = () => page.locator(".ai-log[aria-busy=false]").waitFor();
  const kept = page.locator(".talk").getByText("hello");
  await ended();
  await kept.waitFor();

  await page.reload();
  await kept.waitFor();
  await page.locator(".bubble:not(.ours) blockquote").waitFor();
  await page.getByRole("button", { name: "Answer again" }).click();
  await waitFor("it is asked again", () => asked.length === 2);
  assert.equal(asked[1].messages.length, 1);
  await page.locator(".bubble:not(.ours) blockquote").waitFor();
  await ended();

  await page.getByLabel("Ask something").fill("write slowly");
  await page.keyboard.press("Enter");
  await page.getByText("word 5").waitFor();
  await page.getByRole("button", { name: "Stop", exact: true }).click();
  await page.getByText("Stopped.").waitFor();
  await page.done();
  await ann.end();
  server.close();
});

test("a model server is tried and used, and a key is made and ended", async () => {
  const { server, url } = await model();
  const ann = await Cell.start("ann");
  await ann.setUp();
  const page = await signIn(ann);
  await goTo(page, "ai");
  await page.getByText("No model is known yet").waitFor();
  await page.getByRole("link", { name: "Models and offers" }).click();
  await page.getByLabel("Address").fill(url);
  await page.getByRole("button", { name: "Try it" }).click();
  await page.getByText("llama.cpp answered after").waitFor();
  await page.getByRole("button", { name: "Use it", exact: true }).click();
  await page.locator(".pill").getByText("ready").or(page.locator(".pill").getByText("busy")).waitFor();
  await page.getByLabel("Name of the program or machine").fill("laptop");
  // What is typed stays, whatever changes meanwhile.
  const told = page.waitForResponse((response) => response.url().endsWith("/api/v1/ai"));
  await page.evaluate(async () => {
    document.activeElement.blur();
    (await import("/ui/live.js")).changed("ai");
  });
  await told;
  await checkAxe(page, "a key that is not made yet");
  await page.getByRole("button", { name: "Make a key" }).click();
  const key = await page.locator("dialog .copy-box code").innerText();
  assert.match(key, /^grove-[0-9a-f]{64}$/);
  await page.locator("dialog").getByRole("button", { name: "Close" }).first().click();
  const models = await request("GET", `${ann.url}/v1/models`, { Authorization: `Bearer ${key}` });
  assert.equal(models.status, 200);
  await page.getByRole("button", { name: "End it" }).click();
  await page.getByText("laptop").waitFor({ state: "detached" });
  await checkAxe(page, "the set-up");
  await page.done();
  await ann.end();
  server.close();
});
