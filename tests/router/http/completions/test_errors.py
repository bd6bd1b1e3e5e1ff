"""POST /v1/completions: what is refused, and how."""

import asyncio
import json

import pytest

from router.http.completions import endpoint as completions
from router.request.pipeline import Pipeline
from tests.router.fleets import until
from tests.router.http.completions.completing_fleet import CompletingFleet
from tests.router.http.serving import MAX_BODY_BYTES, client_of
from tests.router.pipelines import fleet_without_chats

TEXT = "the quick brown fox"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "prompt is None; it must be a text, a list of texts"),
        ({"prompt": []}, "prompt", "prompt is empty"),
        ({"prompt": ""}, "prompt", "prompt is empty"),
        ({"prompt": ["a", ""]}, "prompt[1]", "prompt[1] is empty"),
        ({"prompt": [[1], []]}, "prompt[1]", "prompt[1] is empty"),
        ({"prompt": ["a", 1]}, "prompt[1]", "prompt[1] is 1; it must be a text or a list of"),
        ({"prompt": [True]}, "prompt[0]", "prompt[0] is True; it must be a text"),
        ({"prompt": [1.5]}, "prompt[0]", "prompt[0] is 1.5"),
        ({"prompt": [[1, [2]]]}, "prompt[0][1]", "prompt[0][1] is [2]; it must be a token ID"),
        ({"prompt": [3, -1]}, "prompt[1]", "prompt[1] is -1; it must be a token ID, 0 to 42949"),
        ({"prompt": [3, 2**64]}, "prompt[1]", "prompt[1] is 18446744073709551616"),
        ({"prompt": [3, 600]}, "prompt[1]", "prompt[1] is 600, outside 0 to 599"),
        ({"prompt": [[3], [600]]}, "prompt[1][0]", "prompt[1][0] is 600, outside 0 to 599"),
        ({"prompt": [[3], [600]], "echo": True}, "prompt[1][0]", "prompt[1][0] is 600"),
        ({"prompt": {"a": 1}}, "prompt", "prompt is {'a': 1}; it must be"),
        ({"prompt": "z " * 6000}, "prompt", "prompt has 12000 bytes, over max_prompt_bytes 10000"),
        (
            {"prompt": [TEXT] * 9},
            "prompt",
            "prompt has 9 prompts, with n 1 that is 9 choices",
        ),
        ({"n": 129}, "n", "n is 129; it must be 1 to 128"),
        ({"n": 0}, "n", "n is 0; it must be 1 to 128"),
        ({"n": 10**30}, "n", "n is 1000000000000"),
        ({"n": 3, "best_of": 4}, "best_of", "best_of is 4; it must be n or 1"),
        ({"suffix": "end"}, "suffix", "suffix is end; it must be empty"),
        ({"use_beam_search": True}, "use_beam_search", "use_beam_search is True; it must be false"),
        ({"skip_special_tokens": False}, "skip_special_tokens", "skip_special_tokens is False"),
        ({"logprobs": -1}, "logprobs", "logprobs is -1"),
        ({"logprobs": True}, "logprobs", "logprobs is "),
        ({"logprobs": 6}, "logprobs", "logprobs is 6, outside 0 to 5"),
        ({"logprobs": 6, "echo": True}, "logprobs", "logprobs is 6, outside 0 to 5"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "unset if stream is true"),
        ({"stream_options": {}}, "stream_options", "unset unless stream is true"),
        ({"stream_options": {"a": 1}}, "stream_options.a", "stream_options.a is not a field of"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0, outside 1 and more"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens is -1"),
        ({"max_tokens": "9"}, "max_tokens", 'max_tokens is "9": input should be a valid integer'),
        ({"temperature": float("nan")}, "temperature", "temperature is NaN, outside 0 to 100"),
        ({"logit_bias": {"80": float("inf")}}, "logit_bias[0].bias", "logit_bias[0].bias is inf"),
        ({"logit_bias": {"eighty": 1}}, "logit_bias", "'eighty', which is no token ID"),
        ({"model": "large"}, "model", 'model "large" is not served'),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "is not a field of this request"),
    ],
)
async def test_wrong_field_is_named(fields, param, message):
    fleet = CompletingFleet()
    async with client_of(fleet) as client:
        content = json.dumps({"prompt": TEXT, **fields})
        answer = await client.post("/v1/completions", content=content)

    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400), error
    assert message in error["message"]
    if param != "model":
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
    assert not fleet.num_open


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"prompt"',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "model": "\\ud800"}',
        b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"prompt": ' + b"[" * 150 + b"]" * 150 + b"}",
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": [1e999, NaN, -Infinity]}',
        b'{"model": "small"}',
        b'{"prompt": "a", "stop": {"b": ["c"]}}',
        b'{"prompt": "a", "metadata": {"b": NaN}, "n": null, "stop": [1]}',
        b'{"prompt": "a", "seed": 9223372036854775808}',
        b'{"prompt": "a", "response_format": {"type": "json_schema"}}',
        b'{"prompt": "a", "structured_outputs": {"json": {"a": ' + b"[" * 90 + b"]" * 90 + b"}}}",
    ],
)
async def test_what_is_no_request_is_refused_without_a_failure(content, caplog):
    async with client_of(CompletingFleet()) as client:
        answer = await client.post("/v1/completions", content=content)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_body_that_is_too_long_is_refused():
    async with client_of(CompletingFleet()) as client:
        answer = await client.post("/v1/completions", json={"prompt": "z" * MAX_BODY_BYTES})

    assert answer.status_code == 413


@pytest.mark.parametrize("streamed", [False, True])
async def test_wrong_prompt_among_others_ends_all(streamed):
    fleet = fleet_without_chats()
    async with client_of(fleet) as client:
        body = {"prompt": [TEXT, TEXT, "z " * 200], "stream": streamed}
        answer = await client.post("/v1/completions", json=body)
        await until(lambda: fleet.num_open == 0)

    assert answer.status_code == 400
    assert "tokens" in answer.json()["error"]["message"]


async def test_each_prompt_counts_in_the_bound_of_requests():
    fleet = fleet_without_chats()
    async with client_of(fleet, max_concurrent_requests=3) as client:
        body = {"prompt": [TEXT, TEXT]}
        asking = asyncio.ensure_future(client.post("/v1/completions", json=body))
        await until(lambda: fleet.num_open == 2)
        refused = await client.post("/v1/completions", json=body)
        asking.cancel()
        await until(lambda: fleet.num_open == 0)

    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "over max_concurrent_requests 3" in refused.json()["error"]["message"]


async def test_bytes_of_a_body_count_once_for_all_its_prompts(monkeypatch):
    counted = []
    generate = Pipeline.generate

    def recorded(pipeline, request):
        counted.append(request.num_bytes)
        return generate(pipeline, request)

    monkeypatch.setattr(Pipeline, "generate", recorded)
    content = json.dumps({"prompt": [TEXT] * 4}).encode()
    async with client_of(CompletingFleet()) as client:
        await client.post("/v1/completions", content=content)

    assert len(counted) == 4
    assert len(content) - 4 < sum(counted) <= len(content)


async def test_many_choices_do_not_send_a_long_prompt_again_and_again(monkeypatch):
    monkeypatch.setattr(completions, "_MAX_REPEATED", 100)
    async with client_of(CompletingFleet()) as client:
        body = {"prompt": "z" * 40, "echo": True, "max_tokens": 1}
        refused = await client.post("/v1/completions", json={**body, "n": 3})
        served = await client.post("/v1/completions", json={**body, "n": 2})

    assert (refused.status_code, served.status_code) == (400, 200)
    assert "n is 3, with which 120 characters or tokens" in refused.json()["error"]["message"]
