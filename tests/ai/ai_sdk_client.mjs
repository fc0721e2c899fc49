// The AI SDK with its provider for servers of OpenAI's form against a cell: exact tokens, and errors as it knows them.
//
// usage: ai_sdk_client.mjs BASE_URL KEY BROKEN_BASE_URL BROKEN_KEY    (behind the second one answers are cut)

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";

const [baseURL, apiKey, brokenURL, brokenKey] = process.argv.slice(2);
const provider = (baseURL, apiKey) => createOpenAICompatible({ name: "grove", baseURL, apiKey, includeUsage: true });
const grove = provider(baseURL, apiKey);
const wanted = Array.from({ length: 999 }, (_, n) => ` ${n + 1}`).join("");
const asked = (model, more) => ({ model, prompt: "count", temperature: 0, maxRetries: 0, ...more });

const result = streamText(asked(grove("auto"), { maxOutputTokens: 999 }));
let [text, pieces] = ["", 0];
for await (const piece of result.textStream) [text, pieces] = [text + piece, pieces + 1];
assert.equal(text, wanted);
assert.ok(pieces > 500, `it comes piece by piece: ${pieces}`);
assert.deepEqual([(await result.usage).outputTokens, await result.finishReason], [999, "length"]);
assert.equal((await result.response).headers["x-grove-cell"], "ann");

const whole = await generateText(asked(grove("grove-tiny"), { maxOutputTokens: 5 }));
assert.deepEqual([whole.text, whole.usage.outputTokens, whole.finishReason], [" 1 2 3 4 5", 5, "length"]);
const said = await generateText(asked(grove("auto"), { prompt: "hi" }));
assert.deepEqual([said.text, said.finishReason], [" Hello from the tiny Grove test model .", "stop"]);

const is = (status, code) => (why) => {
  assert.ok(APICallError.isInstance(why), `${why}`);
  assert.deepEqual([why.statusCode, why.data?.error.code ?? null], [status, code]);
  assert.ok(why.message.length > 10);
  return true;
};
const errors = [
  [404, "model_not_found", grove("gpt-9"), {}],
  [400, "context_length_exceeded", grove("auto"), { prompt: "count ".repeat(9000) }],
  [401, "invalid_api_key", provider(baseURL, "grove-wrong")("auto"), {}],
  [401, "invalid_api_key", createOpenAICompatible({ name: "grove", baseURL })("auto"), {}],
];
for (const [status, code, model, more] of errors) {
  await assert.rejects(() => generateText(asked(model, more)), is(status, code));
  const told = [];
  const failed = streamText(asked(model, { ...more, onError: ({ error }) => told.push(error) }));
  for await (const part of failed.fullStream) assert.notEqual(part.type, "text-delta");
  assert.equal(told.length, 1);
  is(status, code)(told[0]);
}

// Given up in the middle, and asked again at once.
const control = new AbortController();
const cut = streamText(asked(grove("auto"), { maxOutputTokens: 999, abortSignal: control.signal }));
const kinds = [];
for await (const part of cut.fullStream) {
  kinds.push(part.type);
  if (kinds.length === 20) control.abort();
}
assert.ok(kinds.includes("abort") && !kinds.includes("finish"), `${new Set(kinds)}`);
assert.equal((await generateText(asked(grove("auto"), { maxOutputTokens: 3 }))).text, " 1 2 3");

// An answer that breaks off is an error, not a short answer.
const broken = provider(brokenURL, brokenKey);
const told = [];
const stream = streamText(asked(broken("auto"), { maxOutputTokens: 300, onError: ({ error }) => told.push(error) }));
let before = "";
for await (const piece of stream.textStream) before += piece;
assert.ok(before.startsWith(" 1 2 3") && wanted.startsWith(before) && before.length < 200, before);
assert.equal(told.length, 1);
assert.match(`${told[0].message ?? told[0]}`, /broke off/);
await assert.rejects(() => generateText(asked(broken("auto"), { maxOutputTokens: 300 })), is(502, "broke_off"));
console.log("ok");
