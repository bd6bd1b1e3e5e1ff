// OpenAI's client for Node against a router whose engines follow a script.
import assert from "node:assert/strict";
import { mock, test } from "node:test";
import OpenAI from "openai";

const baseURL = `${process.argv[2]}/v1`;
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 20_000 });
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
};
const weather = { type: "function", function: { name: "weather", parameters } };
const schema = {
  type: "object",
  properties: { city: { type: "string" }, sky: { enum: ["clear", "grey"] } },
  required: ["city", "sky"],
  additionalProperties: false,
};

const chat = (content, fields = {}, options = {}) =>
  client.chat.completions.create(
    { model: "small", messages: [{ role: "user", content }], ...fields },
    options,
  );

test("a chat", async () => {
  const answer = await chat("greet me", { max_completion_tokens: 100, seed: 1, user: "me" });
  const [choice] = answer.choices;
  assert.equal(choice.message.content, "Grüße 😀");
  assert.equal(choice.message.reasoning, "hm");
  assert.equal(choice.finish_reason, "stop");
  assert.equal(answer.usage.prompt_tokens_details.cached_tokens, 16);
});

test("a stream with its usage", async () => {
  const chunks = [];
  const stream = await chat("greet me", { stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) chunks.push(chunk);
  const usage = chunks.pop().usage;
  const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
  assert.equal(text, "Grüße 😀");
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
});

test("tools that the client runs", async () => {
  const asked = [];
  const tool = {
    type: "function",
    function: {
      ...weather.function,
      parse: JSON.parse,
      function: ({ city }) => asked.push(city) && "rain",
    },
  };
  const messages = [{ role: "user", content: "weather?" }];
  const runner = client.chat.completions.runTools({ model: "small", messages, tools: [tool] });
  assert.equal(await runner.finalContent(), "It rains.");
  assert.deepEqual(asked, ["Köln"]);
});

test("tools in a stream", async () => {
  const messages = [{ role: "user", content: "weather?" }];
  const stream = client.chat.completions.stream({ model: "small", messages, tools: [weather] });
  const { choices } = await stream.finalChatCompletion();
  assert.equal(choices[0].finish_reason, "tool_calls");
  assert.equal(choices[0].message.content, "I call.");
  const [call] = choices[0].message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Köln" });
});

test("an object of a schema", async () => {
  const answer = await client.chat.completions.parse({
    model: "small",
    messages: [{ role: "user", content: "an object" }],
    response_format: { type: "json_schema", json_schema: { name: "sky", strict: true, schema } },
  });
  assert.deepEqual(answer.choices[0].message.parsed, { city: "Köln", sky: "grey" });
});

test("logprobs", async () => {
  const answer = await chat("count", { logprobs: true, top_logprobs: 2 });
  const entries = answer.choices[0].logprobs.content;
  assert.equal(entries.map((entry) => entry.token).join(""), "one, two, three<|im_end|>");
  for (const entry of entries) {
    assert.ok(entry.logprob < 0);
    assert.equal(entry.top_logprobs.length, 2);
  }
});

test("several choices", async () => {
  const { choices } = await chat("three", { n: 3 });
  assert.deepEqual(choices.map((choice) => choice.message.content), ["a", "b", "c"]);
});

test("a stop text", async () => {
  const { choices } = await chat("count", { stop: [", "] });
  assert.equal(choices[0].message.content, "one");
  assert.equal(choices[0].finish_reason, "stop");
});

test("a completion", async () => {
  const fields = { model: "small", prompt: "count", echo: true };
  const answer = await client.completions.create({ ...fields, stop: "," });
  assert.equal(answer.choices[0].text, "countone");
});

test("the models", async () => {
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  assert.deepEqual(models, ["small"]);
  assert.equal((await client.models.retrieve("small")).id, "small");
});

test("a response without a memory, and its continuation with a tool", async () => {
  const tools = [{ type: "function", ...weather.function }];
  const input = [{ role: "user", content: "weather?" }];
  const asked = await client.responses.create({ model: "small", store: false, input, tools });
  const call = asked.output.at(-1);
  assert.deepEqual(JSON.parse(call.arguments), { city: "Köln" });
  const result = { type: "function_call_output", call_id: call.call_id, output: "rain" };
  input.push(...asked.output, result);
  const told = await client.responses.create({ model: "small", store: false, input, tools });
  assert.equal(told.output_text, "It rains.");
});

test("a response as a stream", async () => {
  const stream = client.responses.stream({ model: "small", store: false, input: "greet me" });
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const response = await stream.finalResponse();
  assert.equal(response.output_text, "Grüße 😀");
  assert.equal(text, "Grüße 😀");
});

test("a response that is an object of a schema", async () => {
  const response = await client.responses.parse({
    model: "small",
    store: false,
    input: "an object",
    text: { format: { type: "json_schema", name: "sky", strict: true, schema } },
  });
  assert.deepEqual(response.output_parsed, { city: "Köln", sky: "grey" });
});

test("errors of a request are classes of the client", async () => {
  const isBad = (param) => (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, param);
    assert.match(error.message, new RegExp(param));
    return true;
  };
  await assert.rejects(chat("greet me", { temperature: 200 }), isBad("temperature"));
  await assert.rejects(chat("greet me", { beams: 2 }), isBad("beams"));
  await assert.rejects(chat("greet me", { model: "large" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(chat("gone"), (error) => error.status === 503);
});

test("a request that finds no room is sent again after the time that it is told", async () => {
  const start = globalThis.setTimeout;
  const waits = [];
  mock.method(globalThis, "setTimeout", (run, milliseconds, ...rest) => {
    waits.push(milliseconds);
    return start(run, milliseconds === 3000 ? 0 : milliseconds, ...rest);
  });
  const answer = await chat("busy", {}, { maxRetries: 1 }).finally(() => mock.restoreAll());
  assert.equal(answer.choices[0].message.content, "There is room.");
  assert.ok(waits.includes(3000), `waited ${waits}`);
});

// The router takes three requests at a time, so the fourth waits for ever if the others go on.
const isThereRoom = () => chat("greet me", {}, { maxRetries: 5 });

test("streams that the client leaves", async () => {
  for (let number = 0; number < 3; number++) {
    const stream = await chat("on and on", { stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0].delta.content) break;
    }
  }
  await isThereRoom();
});

test("answers that the client aborts", async () => {
  for (let number = 0; number < 3; number++) {
    const controller = new AbortController();
    const asked = chat("on and on", {}, { signal: controller.signal, maxRetries: 5 });
    setTimeout(() => controller.abort(), 100);
    await assert.rejects(asked, OpenAI.APIUserAbortError);
  }
  await isThereRoom();
});
