"""Tokenize and Detokenize, which need no engine."""

import pytest

from protos.wire.reason import Reason
from router.errors import (
    InvalidRequest,
    RequestError,
)
from router.types import (
    TextPrompt,
)
from tests.fakes import small_tokenizer
from tests.router.pipelines import END, TEXT, TOKENIZER, chat, collect, request


async def test_tokenize_gives_what_generate_starts_from(pipeline, fleet):
    fleet.answer([80])
    await collect(pipeline, request())

    assert await pipeline.tokenize("small", TEXT) == fleet.requests[0].prompt_token_ids
    messages = chat(("user", "hi"))
    expected = TOKENIZER.encode_chat(messages.messages)
    assert await pipeline.tokenize("", messages) == expected


async def test_detokenize_keeps_special_tokens_unless_told_not_to(pipeline):
    token_ids = [END, *TOKENIZER.encode_text("é😀")]

    kept = await pipeline.detokenize("", token_ids, skip_special_tokens=False)
    skipped = await pipeline.detokenize("", token_ids, skip_special_tokens=True)

    assert (kept, skipped) == (f"{small_tokenizer.END}é😀", "é😀")


@pytest.mark.parametrize(
    ("token_ids", "reason", "message"),
    [
        ([0, 600], Reason.TOKEN_OUT_OF_RANGE, r"token_ids\[1\] is 600, outside 0 to 599"),
        ([0] * 129, Reason.BAD_REQUEST, "number of token_ids is 129, outside 0 to 128"),
    ],
)
async def test_detokenize_refuses_what_no_model_said(pipeline, token_ids, reason, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        await pipeline.detokenize("", token_ids, skip_special_tokens=True)

    assert caught.value.status.reason == reason
    assert caught.value.status.metadata["value"] in message


async def test_tokenize_refuses_what_generate_would(pipeline):
    with pytest.raises(RequestError, match="text is empty"):
        await pipeline.tokenize("", TextPrompt(text=""))


async def test_text_beyond_the_model_s_length_is_refused_since_the_answer_has_a_bound(pipeline):
    with pytest.raises(InvalidRequest) as caught:
        await pipeline.tokenize("", TextPrompt(text="0 " * 200))

    assert caught.value.status.reason == Reason.PROMPT_TOO_LONG
    assert caught.value.status.metadata["bounds"] == "0 to 128"
