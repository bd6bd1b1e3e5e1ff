"""Tokenize and Detokenize, which need no engine."""

import asyncio
import threading
from dataclasses import replace

import pytest

from protos.wire.reason import Reason
from router.errors import (
    InvalidRequest,
    RequestError,
    TokenizerFailed,
)
from router.request.pipeline import Bounds, Pipeline
from router.text.threads import Threads
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types.prompts import TextPrompt
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import model_info
from tests.router.pipelines import BOUNDS, END, TEXT, TOKENIZER, chat, collect, request, tokens

LARGE = Bounds(
    max_concurrent_requests=2,
    max_prompt_bytes=1 << 20,
    max_request_bytes=1 << 20,
    max_queued_prompt_tokens=200,
)


async def test_tokenize_gives_what_generate_starts_from(pipeline, fleet):
    fleet.answer([80])
    await collect(pipeline, request())

    assert await pipeline.tokenize("small", TEXT) == fleet.requests[0].prompt_token_ids
    messages = chat(("user", "hi"))
    expected = TOKENIZER.encode_rendered(small_tokenizer.lay_out(messages.messages), "")
    assert await pipeline.tokenize("", messages) == expected


async def test_detokenize_keeps_special_tokens_unless_told_not_to(pipeline):
    token_ids = [END, *TOKENIZER.encode_text("é😀")]

    kept = await pipeline.detokenize("", tokens(*token_ids), skip_special_tokens=False)
    skipped = await pipeline.detokenize("", tokens(*token_ids), skip_special_tokens=True)

    assert (kept, skipped) == (f"{small_tokenizer.END}é😀", "é😀")


@pytest.mark.parametrize(
    ("token_ids", "reason", "message"),
    [
        ([0, 600], Reason.TOKEN_OUT_OF_RANGE, r"token_ids\[1\] is 600, outside 0 to 599"),
        ([0] * 129, Reason.BAD_REQUEST, "token_ids has 129 entries, outside 0 to 128"),
    ],
)
async def test_detokenize_refuses_what_no_model_said(pipeline, token_ids, reason, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        await pipeline.detokenize("", tokens(*token_ids), skip_special_tokens=True)

    assert caught.value.status.reason == reason
    assert caught.value.status.metadata["value"] in message


async def test_tokenize_refuses_what_generate_would(pipeline):
    with pytest.raises(RequestError, match="text is empty"):
        await pipeline.tokenize("", TextPrompt(text=""))


async def test_errors_name_a_prompt_as_its_client_does(pipeline):
    with pytest.raises(RequestError, match=r"^prompt\[2\] is empty"):
        await pipeline.tokenize("", TextPrompt(text="", field="prompt[2]"))
    prompt = replace(tokens(600), field="tokens")
    with pytest.raises(RequestError, match=r"^tokens\[0\] is 600"):
        await pipeline.detokenize("", prompt, skip_special_tokens=True)


async def test_names_are_those_of_the_vocabulary(pipeline):
    token_ids = TOKENIZER.encode_text("é the")

    names = await pipeline.token_names("", [*token_ids, END, 599])

    expected = [TOKENIZER.backend.id_to_token(token_id) for token_id in token_ids]
    assert names == [*expected, small_tokenizer.END, ""]


async def test_tokenize_refuses_more_tokens_than_the_model_holds(pipeline):
    with pytest.raises(InvalidRequest, match="the text has 200 tokens") as caught:
        await pipeline.tokenize("", TextPrompt(text="z " * 100))

    assert caught.value.status.reason == Reason.PROMPT_TOO_LONG
    assert caught.value.status.metadata["bounds"] == "0 to 128"


@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_long_prompt_is_given_up_before_its_tokens_are_counted(fleet, observer, kind):
    text = "word, " * 50_000
    prompt = TextPrompt(text=text) if kind == "text" else chat(("user", text))

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, LARGE)
        with pytest.raises(InvalidRequest, match="more than 128 tokens, over max_model_") as caught:
            await collect(pipeline, request(prompt))

    assert caught.value.status.reason == Reason.PROMPT_TOO_LONG
    assert observer.calls[-1] == ("ended", "prompt_too_long")


async def test_special_tokens_may_be_said_where_the_router_allows_it(fleet, observer, pipeline):
    messages = chat(("user", f"a{small_tokenizer.END}b"))

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        allowing = Pipeline(
            fleet, tokenizers, observer, BOUNDS, allow_special_tokens_in_content=True
        )
        allowed = await allowing.tokenize("", messages)

    assert allowed.count(END) == 2
    assert (await pipeline.tokenize("", messages)).count(END) == 1


LONG = TextPrompt(text="fox " * 300)
"""One that a thread tokenizes."""


@pytest.mark.parametrize("prompt", [LONG, chat(("user", "hi"))], ids=["text", "chat"])
async def test_client_that_leaves_stops_the_work_for_its_prompt(fleet, observer, prompt):
    started, stopped = threading.Event(), threading.Event()

    class Tokenizer:
        chat_thread = Threads(1, "chat")
        has_known_split = True

        def encode_text(self, text, max_tokens, is_cancelled, **options):
            started.set()
            while not is_cancelled():
                stopped.wait(0.001)
            stopped.set()

        def encode_rendered(self, text, marker, max_tokens, is_cancelled):
            return self.encode_text(text, max_tokens, is_cancelled)

        def protect(self, chat):
            return chat, ""

        @property
        def chat_template(self):
            return self

        def render(self, chat):
            return chat.messages[0].content

    class Pool(TokenizerPool):
        async def get(self, model):
            return Tokenizer()

    with Pool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, replace(BOUNDS, max_prompt_bytes=1200))
        running = asyncio.ensure_future(pipeline.tokenize("", prompt))
        assert await asyncio.to_thread(started.wait, 10)
        running.cancel()
        await asyncio.wait([running])
        assert await asyncio.to_thread(stopped.wait, 10)


@pytest.mark.parametrize(
    ("num_characters", "is_known", "is_at_once"),
    [(1024, True, True), (1025, True, False), (5, False, False)],
)
async def test_short_text_takes_no_thread_if_its_tokenizer_is_known(
    fleet, observer, num_characters, is_known, is_at_once
):
    threads = []

    class Noting(Tokenizer):
        @property
        def has_known_split(self):
            return super().has_known_split and is_known

        def encode_text(self, *arguments, **options):
            threads.append(threading.current_thread())
            return super().encode_text(*arguments, **options)

    tokenizer = Noting.from_files(small_tokenizer.files(chat_template=None))
    text = ("fox " * 300)[:num_characters]
    fleet.model = model_info(max_model_len=1000)

    class Pool(TokenizerPool):
        async def get(self, model):
            return tokenizer

    with Pool(fleet.fetch_tokenizer, 1) as tokenizers:
        bounds = replace(BOUNDS, max_prompt_bytes=1200)
        pipeline = Pipeline(fleet, tokenizers, observer, bounds)
        token_ids = await pipeline.tokenize("", TextPrompt(text=text))

    assert token_ids == TOKENIZER.encode_text(text)
    assert [thread is threading.main_thread() for thread in threads] == [is_at_once]


async def test_failure_of_the_tokenizer_on_a_short_text_ends_the_request_alone(
    pipeline, monkeypatch
):
    class Panic(BaseException):
        pass

    def panic(*arguments, **options):
        raise Panic("of Rust")

    before = await pipeline.tokenize("", TEXT)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_text", panic)
        with pytest.raises(TokenizerFailed, match="of Rust"):
            await pipeline.tokenize("", TEXT)

    assert await pipeline.tokenize("", TEXT) == before


async def test_client_that_leaves_before_its_chat_is_laid_out_costs_no_template(fleet, observer):
    started, goes_on, rendered = threading.Event(), threading.Event(), []

    class Slow(Tokenizer):
        def protect(self, chat):
            started.set()
            assert goes_on.wait(10)
            return super().protect(chat)

    tokenizer = Slow.from_files(small_tokenizer.files())
    tokenizer.chat_template.render = rendered.append

    class Pool(TokenizerPool):
        async def get(self, model):
            return tokenizer

    with Pool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, BOUNDS)
        running = asyncio.ensure_future(pipeline.tokenize("", chat(("user", "hi"))))
        assert await asyncio.to_thread(started.wait, 10)
        running.cancel()
        await asyncio.wait([running])
        goes_on.set()
        await tokenizer.chat_thread.run(int)

    assert rendered == []


async def test_long_chat_of_special_tokens_leaves_the_event_loop_free(fleet, observer):
    content = small_tokenizer.END * 20_000
    threads = []

    class Noting(Tokenizer):
        def protect(self, chat):
            threads.append(threading.current_thread())
            return super().protect(chat)

    tokenizer = Noting.from_files(small_tokenizer.files())

    class Pool(TokenizerPool):
        async def get(self, model):
            return tokenizer

    with Pool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, LARGE)
        with pytest.raises(InvalidRequest):
            await pipeline.tokenize("", chat(("user", content)))
    tokenizer.close()

    assert threads
    assert threading.main_thread() not in threads
