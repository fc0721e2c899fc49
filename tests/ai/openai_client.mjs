// The official OpenAI client for JavaScript against a cell: exact tokens, and errors as it knows them.
//
// usage: openai_client.mjs BASE_URL KEY BROKEN_BASE_URL BROKEN_KEY    (behind the second one answers are cut)

import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey, brokenURL, brokenKey] = process.argv.slice(2);
const options = { maxRetries: 0, timeout: 60_000 };
const client = new OpenAI({ baseURL, apiKey, ...options });
const count = [{ role: "user", content: "count" }];
const wanted = Array.from({ length: 999 }, (_, n) => ` ${n + 1}`).join("");

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.deepEqual(names, ["auto", "grove-tiny"]);

const asked = { model: "auto", messages: count, temperature: 0 };
const stream = await client.chat.completions.create({
  ...asked,
  max_tokens: 999,
  stream: true,
  stream_options: { include_usage: true },
});
let [text, usage, finish] = ["", null, null];
const ids = new Set();
for await (const chunk of stream) {
  ids.add(chunk.id);
  usage = chunk.usage ?? usage;
  for (const choice of chunk.choices) {
    text += choice.delta.content ?? "";
    finish = choice.finish_reason ?? finish;
  }
}
assert.equal(text, wanted);
assert.deepEqual([ids.size, usage.completion_tokens, finish], [1, 999, "length"]);

const { data, response } = await client.chat.completions.create({ ...asked, max_tokens: 5 }).withResponse();
assert.equal(response.headers.get("x-grove-cell"), "ann");
assert.equal(data.choices[0].message.content, " 1 2 3 4 5");
assert.equal(data.usage.completion_tokens, 5);

const parts = await client.completions.create({ model: "grove-tiny", prompt: " 1 2 3", max_tokens: 3, temperature: 0, stream: true });
let completed = "";
for await (const part of parts) completed += part.choices[0]?.text ?? "";
assert.equal(completed, " 4 5 6");

// Its own helper puts an answer together.
const runner = client.chat.completions.stream({ ...asked, max_tokens: 20 });
assert.equal(await runner.finalContent(), wanted.slice(0, " 1 2 3 4 5 6 7 8 9".length + 11 * 3));

const refused = (kind, status, code, work) =>
  assert.rejects(work, (why) => {
    assert.ok(why instanceof kind, `${why.constructor.name}: ${why.message}`);
    assert.deepEqual([why.status, why.code ?? null], [status, code]);
    assert.ok(why.message.length > 10);
    return true;
  });
const long = [{ role: "user", content: "count ".repeat(9000) }];
for (const streams of [false, true]) {
  const create = (more) => () => client.chat.completions.create({ ...asked, stream: streams, ...more });
  await refused(OpenAI.NotFoundError, 404, "model_not_found", create({ model: "gpt-9" }));
  await refused(OpenAI.BadRequestError, 400, "context_length_exceeded", create({ messages: long }));
  await refused(OpenAI.BadRequestError, 400, null, create({ messages: [] }));
}
const headers = { "Content-Type": "application/json" };
await refused(OpenAI.BadRequestError, 400, null, () => client.post("/chat/completions", { body: "{\"model\":", headers }));
for (const defaultHeaders of [{}, { Authorization: null }]) {
  const stranger = new OpenAI({ baseURL, apiKey: "grove-wrong", defaultHeaders, ...options });
  await refused(OpenAI.AuthenticationError, 401, "invalid_api_key", () => stranger.chat.completions.create(asked));
}
await refused(OpenAI.NotFoundError, 404, "not_supported", () =>
  client.embeddings.create({ model: "grove-tiny", input: "count", encoding_format: "float" }),
);

// Given up in the middle, and asked again at once.
const cut = await client.chat.completions.create({ ...asked, max_tokens: 999, stream: true });
let heard = 0;
for await (const _ of cut) if (++heard === 20) break;
const aborted = new AbortController();
const other = await client.chat.completions.create({ ...asked, max_tokens: 999, stream: true }, { signal: aborted.signal });
heard = 0;
for await (const _ of other) if (++heard === 20) aborted.abort();
assert.ok(heard < 900, `${heard}`);
const again = await client.chat.completions.create({ ...asked, max_tokens: 3 });
assert.equal(again.choices[0].message.content, " 1 2 3");

// An answer that breaks off is an error, not a short answer.
const broken = new OpenAI({ baseURL: brokenURL, apiKey: brokenKey, ...options });
let before = "";
await assert.rejects(
  async () => {
    for await (const chunk of await broken.chat.completions.create({ ...asked, max_tokens: 300, stream: true })) {
      before += chunk.choices[0]?.delta.content ?? "";
    }
  },
  (why) => why instanceof OpenAI.APIError && why.code === "broke_off",
);
assert.ok(before.startsWith(" 1 2 3") && wanted.startsWith(before) && before.length < 200, before);
await refused(OpenAI.InternalServerError, 502, "broke_off", () => broken.chat.completions.create({ ...asked, max_tokens: 300 }));
console.log("ok");
