"""POST /v1/completions: the forms of its answers."""

import asyncio
import json
from itertools import chain

import pytest

from router.errors import NoEngine
from router.types.engine_events import Admitted, Tokens
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ENGINE
from tests.router.fleets import until
from tests.router.http.completions.completing_fleet import CompletingFleet, prompt_logprobs
from tests.router.http.serving import client_of
from tests.router.pipelines import END, TOKENIZER, fleet_without_chats

TEXT = "the quick brown fox"
TOKENS = TOKENIZER.encode_text(TEXT).tolist()
TEXTS = [TOKENIZER.token_texts[token_id][0] for token_id in TOKENS]
OFFSETS = [sum(map(len, TEXTS[:index])) for index in range(len(TEXTS))]


async def complete(client, **fields):
    answer = await client.post("/v1/completions", json={"model": "small", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(client, **fields):
    """Returns the events of a stream, without the last, which ends it."""
    body = {"model": "small", "stream": True, **fields}
    answer = await client.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    *events, last, nothing = answer.text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def joined(events, index=0):
    """Returns the parts of one choice as one."""
    parts = [part for event in events for part in event["choices"] if part["index"] == index]
    lists = [part["logprobs"] for part in parts if part["logprobs"]]
    return {
        "text": "".join(part["text"] for part in parts),
        "logprobs": {name: [*chain(*(one[name] for one in lists))] for name in lists[0]}
        if lists
        else None,
        "finish_reason": parts[-1]["finish_reason"],
    }


async def test_answer_has_the_form_of_openai():
    fleet = fleet_without_chats()
    fleet.answer(TOKENS[:2], [*TOKENS[2:], END], stop_token_id=END)
    async with client_of(fleet) as client:
        answer = await complete(client, prompt=TEXT, request_id="mine")

    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "id": "cmpl-mine",
        "object": "text_completion",
        "model": "small",
        "system_fingerprint": f"fp_{'f' * 16}",
        "choices": [
            {
                "index": 0,
                "text": TEXT,
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(TOKENS),
            "completion_tokens": len(TOKENS) + 1,
            "total_tokens": 2 * len(TOKENS) + 1,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
    }
    [sent] = fleet.requests
    assert (sent.request_id, sent.sampling_params.max_tokens) == ("mine", 16)
    assert sent.prompt_token_ids.tolist() == TOKENS


async def test_stream_has_a_part_for_each_text_and_the_usage_if_asked_for():
    async with client_of(CompletingFleet()) as client:
        *parts, last, usage = await stream(
            client, prompt=TEXT, stream_options={"include_usage": True}
        )
        plain = await stream(client, prompt=TEXT)

    head = {name: parts[0][name] for name in ("id", "created", "model", "system_fingerprint")}
    head["object"] = "text_completion"
    assert parts == [
        {
            **head,
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}],
            "usage": None,
        }
        for text in TEXTS
    ]
    end = {"text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert last == {**head, "choices": [{"index": 0, **end}], "usage": None}
    num = len(TOKENS)
    counts = {"prompt_tokens": num, "completion_tokens": num, "total_tokens": 2 * num}
    cached = {"prompt_tokens_details": {"cached_tokens": 3}}
    assert usage == {**head, "choices": [], "usage": {**counts, **cached}}
    assert not any("usage" in event for event in plain)


async def test_usage_so_far_is_in_each_part_if_asked_for():
    async with client_of(CompletingFleet()) as client:
        events = await stream(
            client,
            prompt=TEXT,
            max_tokens=2,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )

    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 2, 2]
    assert all(event["usage"]["prompt_tokens"] == len(TOKENS) for event in events)


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_choices_of_several_prompts_are_numbered_in_order(as_tokens, streamed):
    prompts = ["the", "quick brown", "é😀"]
    if as_tokens:
        prompts = [TOKENIZER.encode_text(prompt).tolist() for prompt in prompts]
    async with client_of(CompletingFleet()) as client:
        if streamed:
            *events, usage = await stream(
                client, prompt=prompts, n=2, stream_options={"include_usage": True}
            )
            texts = [joined(events, index)["text"] for index in range(6)]
            usage = usage["usage"]
        else:
            answer = await complete(client, prompt=prompts, n=2)
            assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
            texts = [choice["text"] for choice in answer["choices"]]
            usage = answer["usage"]

    assert texts == ["the", "the", "quick brown", "quick brown", "é😀", "é😀"]
    num = sum(len(TOKENIZER.encode_text(text)) for text in texts[::2])
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (num, 2 * num)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 9}


async def test_list_of_token_ids_is_one_prompt():
    async with client_of(CompletingFleet()) as client:
        [choice] = (await complete(client, prompt=TOKENS))["choices"]

    assert choice["text"] == TEXT


def scored(num_top=1, text=TEXT, tokens=TOKENS):
    """Returns the logprobs of an echoed prompt."""
    made_up = prompt_logprobs(tokens, num_top)
    texts = [TOKENIZER.token_texts[token_id][0] for token_id in tokens]
    tops = [None]
    for index, (token, logprob) in enumerate(zip(texts[1:], made_up.logprobs, strict=True)):
        top = {}
        for rank in range(num_top):
            place = index * num_top + rank
            name = TOKENIZER.token_texts[made_up.top_token_ids[place]][0]
            top.setdefault(name, made_up.top_logprobs[place])
        tops.append({token: logprob, **top})
    assert "".join(texts) == text
    return {
        "tokens": texts,
        "token_logprobs": [None, *made_up.logprobs],
        "top_logprobs": tops,
        "text_offset": [sum(map(len, texts[:index])) for index in range(len(texts))],
    }


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("prompt", [TEXT, TOKENS])
async def test_prompt_is_scored_without_a_token(prompt, streamed):
    asked = {"prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 1}
    fleet = CompletingFleet()
    async with client_of(fleet) as client:
        if streamed:
            choice = joined(await stream(client, **asked))
        else:
            [choice] = (await complete(client, **asked))["choices"]

    assert choice["text"] == TEXT
    assert choice["logprobs"] == scored()
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("streamed", [False, True])
async def test_echo_stands_before_what_is_generated_in_text_and_logprobs(streamed):
    asked = {"prompt": [TEXT, "fox"], "echo": True, "max_tokens": 1, "logprobs": 2, "n": 2}
    async with client_of(CompletingFleet()) as client:
        if streamed:
            events = await stream(client, **asked)
            choices = [joined(events, index) for index in range(4)]
        else:
            choices = (await complete(client, **asked))["choices"]

    for choice in choices[:2]:
        assert choice["text"] == TEXT + TEXTS[0]
        lists = choice["logprobs"]
        assert {name: values[:-1] for name, values in lists.items()} == scored(2)
        assert (lists["tokens"][-1], lists["text_offset"][-1]) == (TEXTS[0], len(TEXT))
        assert lists["token_logprobs"][-1] == lists["top_logprobs"][-1][TEXTS[0]]
    fox = TOKENIZER.encode_text("fox").tolist()
    for choice in choices[2:]:
        assert choice["text"].startswith("fox")
        assert len(choice["logprobs"]["tokens"]) == len(fox) + 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_echo_without_logprobs_asks_for_none(streamed):
    fleet = CompletingFleet()
    async with client_of(fleet) as client:
        if streamed:
            choice = joined(await stream(client, prompt=[END, *TOKENS], echo=True, max_tokens=2))
        else:
            answer = await complete(client, prompt=[END, *TOKENS], echo=True, max_tokens=2)
            [choice] = answer["choices"]

    assert choice["text"] == f"{small_tokenizer.END}{TEXT}{TEXTS[0]}"
    assert fleet.requests[0].sampling_params.prompt_logprobs is None


@pytest.mark.parametrize("tokens", [TOKENS[:1], TOKENS[:2]])
async def test_prompts_of_a_token_or_two_are_echoed_with_logprobs(tokens):
    async with client_of(CompletingFleet()) as client:
        asked = {"prompt": tokens, "echo": True, "max_tokens": 0, "logprobs": 1}
        [choice] = (await complete(client, **asked))["choices"]
        events = await stream(client, **asked)

    assert choice["logprobs"] == scored(1, "".join(TEXTS[: len(tokens)]), tokens)
    assert joined(events)["logprobs"] == choice["logprobs"]


async def test_logprobs_are_those_of_the_token_and_of_the_likeliest():
    async with client_of(CompletingFleet()) as client:
        [choice] = (await complete(client, prompt=TEXT, logprobs=0))["choices"]
        streamed = joined(await stream(client, prompt=TEXT, logprobs=0))

    lists = choice["logprobs"]
    assert lists["tokens"] == TEXTS
    assert lists["text_offset"] == OFFSETS
    assert lists["top_logprobs"] == [
        {text: logprob} for text, logprob in zip(TEXTS, lists["token_logprobs"], strict=True)
    ]
    assert streamed["logprobs"] == lists


@pytest.mark.parametrize("text", ["é😀字x", "🦊é x", "x🦊"])
async def test_offsets_count_characters_however_many_tokens_they_have(text):
    tokens = TOKENIZER.encode_text(text).tolist()
    async with client_of(CompletingFleet()) as client:
        asked = {"prompt": text, "echo": True, "max_tokens": 0, "logprobs": 0}
        [choice] = (await complete(client, **asked))["choices"]

    raw = [TOKENIZER.token_texts[token_id][1] for token_id in tokens]
    assert len(tokens) > len(text)
    starts = [len(b"".join(raw[:index]).decode(errors="ignore")) for index in range(len(raw))]
    assert max(starts) > 0
    assert choice["logprobs"]["text_offset"] == starts


async def test_tokens_can_be_shown_by_their_ids():
    async with client_of(CompletingFleet()) as client:
        asked = {"prompt": TEXT, "max_tokens": 2, "return_token_ids": True}
        [choice] = (await complete(client, **asked))["choices"]
        parts = [event["choices"][0] for event in await stream(client, **asked)]
        [named] = (
            await complete(client, prompt=TEXT, logprobs=0, return_tokens_as_token_ids=True)
        )["choices"]

    assert (choice["prompt_token_ids"], choice["token_ids"]) == (TOKENS, TOKENS[:2])
    assert [part.get("prompt_token_ids") for part in parts] == [TOKENS, None, None, None]
    assert [part["token_ids"] for part in parts] == [[], *([token] for token in TOKENS[:2]), []]
    assert named["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in TOKENS]


async def test_prompt_logprobs_have_the_form_of_vllm():
    async with client_of(CompletingFleet()) as client:
        answer = await complete(client, prompt=TEXT, prompt_logprobs=1)

    first, second, *rest = answer["choices"][0]["prompt_logprobs"]
    made_up = prompt_logprobs(TOKENS, 1)
    assert first is None
    assert len(rest) == len(TOKENS) - 2
    top_id, own_id = made_up.top_token_ids[0], TOKENS[1]
    assert second == {
        str(top_id): {
            "logprob": made_up.top_logprobs[0],
            "rank": 1,
            "decoded_token": TOKENIZER.token_texts[top_id][0],
        },
        str(own_id): {"logprob": made_up.logprobs[0], "rank": None, "decoded_token": TEXTS[1]},
    }


async def test_what_has_stopped_the_text_is_told():
    fleet = fleet_without_chats()
    async with client_of(fleet) as client:
        fleet.answer(TOKENS)
        [by_text] = (await complete(client, prompt=TEXT, stop=[" brown"]))["choices"]
        fleet = fleet_without_chats()
    async with client_of(fleet) as client:
        fleet.answer([*TOKENS, 80], stop_token_id=80)
        [by_token] = (await complete(client, prompt=TEXT, stop_token_ids=[80]))["choices"]

    assert (by_text["text"], by_text["finish_reason"]) == ("the quick", "stop")
    assert by_text["stop_reason"] == " brown"
    assert (by_token["finish_reason"], by_token["stop_reason"]) == ("stop", 80)


async def test_all_fields_of_sampling_reach_the_engine():
    fleet = CompletingFleet()
    async with client_of(fleet) as client:
        await complete(
            client,
            prompt=TEXT,
            temperature=0.5,
            top_p=0.9,
            seed=3,
            logit_bias={"80": -100},
            max_tokens=2,
            top_k=4,
            ignore_eos=True,
            best_of=1,
            user="me",
            spaces_between_special_tokens=False,
        )

    params = fleet.requests[0].sampling_params
    assert (params.temperature, params.top_p, params.seed, params.top_k) == (0.5, 0.9, 3, 4)
    assert (params.logit_bias, params.max_tokens, params.ignore_eos) == (((80, -100),), 2, True)


async def test_error_in_mid_stream_is_the_last_event():
    fleet = fleet_without_chats()
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=7), Tokens(token_ids=TOKENS))
    fleet.put(NoEngine("all engines are gone"))
    async with client_of(fleet) as client:
        answer = await client.post("/v1/completions", json={"prompt": TEXT, "stream": True})

    assert answer.status_code == 200
    *_, last, nothing = answer.text.split("\n\n")
    assert nothing == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["message"], error["type"]) == ("all engines are gone", "server_error")


async def test_error_before_the_first_event_has_its_status():
    fleet = fleet_without_chats()
    fleet.put(NoEngine("all engines are gone"))
    async with client_of(fleet) as client:
        answer = await client.post("/v1/completions", json={"prompt": TEXT, "stream": True})

    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "all engines are gone"


@pytest.mark.parametrize("streamed", [False, True])
async def test_client_that_leaves_cancels_all_prompts(streamed):
    fleet = fleet_without_chats()
    async with client_of(fleet) as client:
        body = {"prompt": [TEXT, TEXT], "stream": streamed}
        asking = asyncio.ensure_future(client.post("/v1/completions", json=body))
        await until(lambda: fleet.num_open == 2)
        asking.cancel()
        await until(lambda: fleet.num_open == 0)
