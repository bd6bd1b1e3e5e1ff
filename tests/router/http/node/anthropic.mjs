// Anthropic's client for Node against a router whose engines follow a script.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";

const baseURL = process.argv[2];
const client = new Anthropic({ baseURL, apiKey: "any", maxRetries: 0, timeout: 20_000 });
const input_schema = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ name: "weather", description: "Tells the weather.", input_schema }];
const asking = (content) => ({
  model: "small",
  max_tokens: 100,
  messages: [{ role: "user", content }],
});

test("a message", async () => {
  const message = await client.messages.create(asking("greet me"));
  assert.deepEqual(message.content.map((block) => block.thinking ?? block.text), [
    "hm",
    "Grüße 😀",
  ]);
  assert.equal(message.stop_reason, "end_turn");
  assert.equal(message.usage.cache_read_input_tokens, 16);
});

test("a stream of a message with a call, and its result", async () => {
  const request = { ...asking("weather?"), tools };
  const called = await client.messages.stream(request).finalMessage();
  const call = called.content.at(-1);
  assert.equal(called.stop_reason, "tool_use");
  assert.deepEqual(call.input, { city: "Köln" });
  const result = { type: "tool_result", tool_use_id: call.id, content: "rain" };
  request.messages.push({ role: "assistant", content: called.content });
  request.messages.push({ role: "user", content: [result] });
  const told = await client.messages.create(request);
  assert.equal(told.content[0].text, "It rains.");
});

test("an object of a schema", async () => {
  const schema = {
    type: "object",
    properties: { city: { type: "string" }, sky: { enum: ["clear", "grey"] } },
    required: ["city", "sky"],
    additionalProperties: false,
  };
  const format = { type: "json_schema", schema };
  const message = await client.messages.create({
    ...asking("an object"),
    output_config: { format },
  });
  assert.deepEqual(JSON.parse(message.content.at(-1).text), { city: "Köln", sky: "grey" });
});

test("the count of tokens", async () => {
  const { max_tokens: _, ...counted } = asking("greet me");
  assert.ok((await client.messages.countTokens(counted)).input_tokens > 0);
});

test("errors are classes of the client", async () => {
  const bad = client.messages.create({ ...asking("greet me"), max_tokens: -1 });
  await assert.rejects(bad, Anthropic.BadRequestError);
  const unknown = client.messages.create({ ...asking("greet me"), model: "large" });
  await assert.rejects(unknown, Anthropic.NotFoundError);
  await assert.rejects(client.messages.create(asking("gone")), (error) => error.status === 503);
});

test("streams that the client leaves", async () => {
  // The router takes three requests at a time, so the fourth waits for ever if the others go on.
  for (let number = 0; number < 3; number++) {
    const stream = await client.messages.create({ ...asking("on and on"), stream: true });
    for await (const event of stream) {
      if (event.type === "content_block_delta") break;
    }
  }
  await client.messages.create(asking("greet me"), { maxRetries: 5 });
});
