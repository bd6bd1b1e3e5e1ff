"""What `litellm.py` runs: calls of litellm, whose results are the last line of the output."""

import json
import sys

import litellm

url, model = sys.argv[1:]
messages = [{"role": "user", "content": "What is the capital of France?"}]
openai = {"api_base": f"{url}/v1", "api_key": "any", "temperature": 0}
results = []


def text_of(answer):
    return answer.choices[0].message.content


answer = litellm.completion(f"openai/{model}", messages, max_tokens=50, **openai)
assert "Paris" in text_of(answer), answer
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
results.append(("completion, openai/", repr(text_of(answer))))

options = {"include_usage": True}
stream = litellm.completion(
    f"hosted_vllm/{model}", messages, stream=True, stream_options=options, top_k=1, **openai
)
chunks = list(stream)
streamed = "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices)
assert streamed == text_of(answer), streamed
assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens, chunks[-1]
results.append(
    ("completion, hosted_vllm/, streamed, with top_k", f"{len(chunks)} chunks, the same")
)

schema = {
    "type": "object",
    "properties": {"capital": {"type": "string"}},
    "required": ["capital"],
    "additionalProperties": False,
}
form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
answer = litellm.completion(
    f"openai/{model}", messages, response_format=form, max_tokens=100, **openai
)
assert json.loads(text_of(answer)).keys() == {"capital"}, answer
results.append(("completion with a JSON schema", text_of(answer)))

answer = litellm.text_completion(
    model=f"text-completion-openai/{model}", prompt="1 2 3", logprobs=1, max_tokens=4, **openai
)
assert len(answer.choices[0].logprobs.tokens) == 4, answer
results.append(("text_completion with logprobs", repr(answer.choices[0].text)))

answer = litellm.responses(
    model=f"openai/{model}", input=messages[0]["content"], max_output_tokens=50, **openai
)
assert "Paris" in answer.output[-1].content[0].text, answer
results.append(("responses", repr(answer.output[-1].content[0].text)))

answer = litellm.completion(
    f"anthropic/{model}", messages, api_base=url, api_key="any", max_tokens=50, temperature=0
)
assert "Paris" in text_of(answer), answer
results.append(("completion, anthropic/", repr(text_of(answer))))

errors = []
for changes in ({"temperature": 200}, {"model": "openai/other"}):
    try:
        litellm.completion(**{"model": f"openai/{model}", "messages": messages} | openai | changes)
    except Exception as error:
        errors.append(type(error).__name__)
assert errors == ["BadRequestError", "NotFoundError"], errors
results.append(("a wrong temperature, an unknown model", ", ".join(errors)))
sys.stdout.write(json.dumps(results) + "\n")
