"""Which tokens a piece of text is made of."""

import math

import pytest

from router.http.responses.logprobs import TextLogprobs
from router.types.engine_events import TokenLogprobs
from router.types.generation import ScoredTokens


def scored(*tokens: bytes, logprob=-1.0) -> ScoredTokens:
    texts = {i: (raw.decode(errors="replace"), raw) for i, raw in enumerate(tokens)}
    logprobs = TokenLogprobs(logprobs=[logprob] * len(tokens))
    return ScoredTokens(token_ids=list(texts), logprobs=logprobs, texts=texts)


def taken(logprobs, text):
    return [bytes(entry["bytes"]) for entry in logprobs.take(text)]


def test_token_behind_a_text_is_not_of_it():
    logprobs = TextLogprobs()
    logprobs.push(scored(b"Hello", b"<|im_end|>"))
    assert taken(logprobs, "Hello") == [b"Hello"]


def test_tokens_of_a_character_come_with_it():
    logprobs = TextLogprobs()
    logprobs.push(scored(b"a", b"\xc3"))
    assert taken(logprobs, "a") == [b"a"]
    logprobs.push(scored(b"\xa9", b"b"))
    assert taken(logprobs, "éb") == [b"\xc3", b"\xa9", b"b"]


def test_tag_and_layout_before_a_text_are_not_of_it():
    logprobs = TextLogprobs()
    logprobs.push(scored(b"<think>", b"it", b" is"))
    logprobs.skip()
    logprobs.push(scored(b"</think>", b"\n\n", b" it"))
    assert taken(logprobs, "it") == [b" it"]


def test_tokens_that_are_forgotten_are_in_no_text():
    logprobs = TextLogprobs()
    logprobs.push(scored(b"a", b"b"))
    logprobs.skip()
    logprobs.clear()
    logprobs.push(scored(b"c", b"a"))
    assert taken(logprobs, "ca") == [b"c", b"a"]


def test_text_goes_on_where_it_was():
    logprobs = TextLogprobs()
    logprobs.push(scored(b"a<", b"a", b"<a"))
    assert taken(logprobs, "a") == [b"<a"], "the last one, as nothing tells the first from a tag"
    logprobs = TextLogprobs()
    logprobs.push(scored(b"x<"))
    assert taken(logprobs, "x") == [b"x<"]
    logprobs.push(scored(b"a", b"a<"))
    assert taken(logprobs, "<a") == [b"a"], "the token before it is in the text before it"
    assert taken(logprobs, "a<") == [b"a<"]


def test_bytes_that_are_no_characters_have_all_tokens_until_then():
    logprobs = TextLogprobs()
    logprobs.push(scored(b"\xff", b"\xfe"))
    assert taken(logprobs, "��") == [b"\xff", b"\xfe"]
    logprobs.push(scored(b"a"))
    assert taken(logprobs, "a") == [b"a"]


@pytest.mark.parametrize("logprob", [-math.inf, math.nan])
def test_logprob_that_is_no_number_of_json_is_the_least(logprob):
    logprobs = TextLogprobs()
    logprobs.push(scored(b"a", logprob=logprob))
    [entry] = logprobs.take("a")
    assert entry == {"token": "a", "bytes": [97], "logprob": -9999.0, "top_logprobs": []}
