"""POST /v1/completions for the tools that use it: the official client, and lm-eval's reading."""

from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai.types import completion_create_params
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam

from router.errors import NoEngine
from router.http.completions.endpoint import CompletionFields
from router.http.sampling import StreamOptions
from router.types.engine_events import Admitted, Tokens
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.completions.completing_fleet import CompletingFleet, prompt_logprobs
from tests.router.http.serving import client_of, serving
from tests.router.pipelines import TOKENIZER, fleet_without_chats

TEXT = "the quick brown fox"
TOKENS = TOKENIZER.encode_text(TEXT).tolist()
DOCS = Path(__file__).parents[4] / "docs/http/completions.md"
PARAMS = completion_create_params.CompletionCreateParamsBase.__annotations__


@asynccontextmanager
async def openai_client(fleet, **options):
    async with (
        serving(fleet, **options) as port,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=20, max_retries=0
        ) as client,
    ):
        yield client


async def test_official_client_gets_text_logprobs_and_echo():
    async with openai_client(CompletingFleet()) as client:
        completion = await client.completions.create(
            model="small", prompt=["the", "quick brown"], n=2, logprobs=2, echo=True, max_tokens=1
        )

    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert all(choice.text.startswith("quick brown") for choice in completion.choices[2:])
    for choice in completion.choices:
        lists = choice.logprobs
        num = {len(one) for one in (lists.tokens, lists.token_logprobs, lists.top_logprobs)}
        assert num == {len(lists.text_offset)}
        assert "".join(lists.tokens) == choice.text
        assert (lists.token_logprobs[0], lists.top_logprobs[0]) == (None, None)
    assert completion.object == "text_completion"
    assert completion.usage.prompt_tokens_details.cached_tokens == 6


async def test_official_client_gets_a_stream():
    async with openai_client(CompletingFleet()) as client:
        stream = await client.completions.create(
            model="small", prompt=TEXT, stream=True, stream_options={"include_usage": True}
        )
        events = [event async for event in stream]

    assert "".join(part.text for event in events for part in event.choices) == TEXT
    assert events[-2].choices[0].finish_reason == "length"
    assert events[-1].usage.total_tokens == 2 * len(TOKENS)


async def test_official_client_raises_the_errors_of_its_api():
    fleet = fleet_without_chats()
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=7), Tokens(token_ids=TOKENS))
    fleet.put(NoEngine("all engines are gone"))
    async with openai_client(fleet) as client:
        with pytest.raises(openai.BadRequestError, match=r"prompt\[0\] is -1") as caught:
            await client.completions.create(model="small", prompt=[-1])
        assert caught.value.param == "prompt[0]"
        with pytest.raises(openai.NotFoundError, match="is not served"):
            await client.completions.create(model="large", prompt=TEXT)
        stream = await client.completions.create(model="small", prompt=TEXT, stream=True)
        assert (await anext(stream)).choices[0].text == TEXT
        with pytest.raises(openai.APIError, match="all engines are gone"):
            await anext(stream)


async def test_lm_eval_finds_the_likelihood_of_continuations():
    contexts, tokens = [2, 3], [TOKENS, [*TOKENS, *TOKENS]]
    async with client_of(CompletingFleet()) as client:
        answer = await client.post(
            "/v1/completions",
            json={
                "model": "small",
                "prompt": tokens,
                "temperature": 0,
                "max_tokens": 1,
                "logprobs": 1,
                "seed": 1234,
                "echo": True,
            },
        )

    # As lm-eval reads it: without the tokens of the context and without the last.
    for choice, context, prompt in zip(answer.json()["choices"], contexts, tokens, strict=True):
        lists = choice["logprobs"]
        made_up = prompt_logprobs(prompt, 1)
        own = lists["token_logprobs"][context:-1]
        assert own == made_up.logprobs[context - 1 :]
        best = [max(top.values()) for top in lists["top_logprobs"][context:-1]]
        assert best == [
            max(pair) for pair in zip(own, made_up.top_logprobs[context - 1 :], strict=True)
        ]


def test_all_fields_of_the_official_client_are_known():
    assert PARAMS.keys() | {"stream"} <= CompletionFields.model_fields.keys()
    options = ChatCompletionStreamOptionsParam.__annotations__
    assert options.keys() <= StreamOptions.model_fields.keys()


def test_all_fields_are_in_the_docs():
    text = DOCS.read_text()
    fields = [*CompletionFields.model_fields, *StreamOptions.model_fields]
    assert [name for name in fields if f"`{name}`" not in text] == []
