"""A conversation's tokens are the tokenizer's own, whatever tokens were added to it."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from router.text.added_tokens import added_tokens, cutting_tokens, found_alone, twin
from tests.router import added_token_sets
from tests.router.added_token_sets import NORMALIZERS, own_tokens, tokenizer_of


def added(content, **flags):
    return tokenizers.AddedToken(content, **{"normalized": False, "special": True, **flags})


def check_equal_to_the_tokenizers_own(data):
    tokens = data.draw(added_token_sets.token_sets())
    normalizer = data.draw(st.sampled_from(sorted(NORMALIZERS)))
    tokenizer = tokenizer_of(tokens, normalizer)
    text = ""
    # Each text begins with the one before, whose tokens are kept.
    for _ in range(3):
        text += data.draw(added_token_sets.texts(tokens))
        expected = own_tokens(tokenizer, text)
        assert tokenizer.encode_rendered(text, "").tolist() == expected


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rendered_text_has_the_tokenizers_own_tokens(data):
    check_equal_to_the_tokenizers_own(data)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(data=st.data())
def test_rendered_text_has_the_tokenizers_own_tokens_in_depth(data):
    check_equal_to_the_tokenizers_own(data)


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ([added("<|tool|>s")], "a<|tool|>s b"),
        ([added("<|tool|>s", special=False)], "a<|tool|>s b"),
        ([added("x<|tool|>", special=False)], "ax<|tool|>s b"),
        ([added("a<|t", special=False)], "a<|tool|>s b"),
        ([added("s", single_word=True)], "a<|tool|>s s<|tool|>"),
        ([added("a", single_word=True), added("_b")], "a_b a <|tool|>a_ba"),
        ([added("é", special=False, lstrip=True, rstrip=True)], "<|tool|> é <|tool|>  é"),
    ],
)
def test_the_longest_token_wins_and_words_stay_single(others, text):
    tokenizer = tokenizer_of([added("<|tool|>"), *others])

    expected = tokenizer.backend.encode(text, add_special_tokens=False).ids

    assert tokenizer.encode_rendered(text, "").tolist() == expected


@pytest.mark.parametrize(
    ("tokens", "cutting"),
    [
        ([added("<a>"), added("<b>")], ["<a>", "<b>"]),
        ([added("<a>"), added("<a>s")], ["<a>", "<a>s"]),
        ([added("<a>"), added("<a>s", special=False)], []),
        ([added("<a>"), added("x<", special=False)], []),
        ([added("<a>"), added(">x", special=False)], ["<a>"]),
        ([added("<a>"), added("<a", special=False)], ["<a>"]),
        ([added("<a>"), added("<a>s", lstrip=True), added("<b>")], ["<b>"]),
        ([added("<a>"), added("x<", normalized=True, special=False)], ["<a>"]),
        ([added("<a>"), added("b>"), added("w", single_word=True)], ["<a>"]),
        # What one rival takes away may have been longer than a third.
        ([added("<a>"), added("b<a>"), added("cb<a>", special=False)], []),
        ([added("<a>"), added("x" * 257)], []),
    ],
)
def test_tokens_cut_only_where_no_other_can_stand(tokens, cutting):
    assert found_alone(tokens) == cutting


def test_token_over_which_the_tokenizer_looks_back_does_not_cut():
    backend = tokenizer_of([]).backend
    assert cutting_tokens(backend) == ["<|im_end|>", "<|im_start|>"]

    # A space before the first word of a text only.
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("Ġ", prepend_scheme="first")
    assert cutting_tokens(backend) == []


def test_twin_has_the_same_tokens_and_may_be_changed():
    backend = tokenizer_of([added("<a>"), added("b", lstrip=True, special=False)]).backend
    other = twin(backend)
    other.encode_special_tokens = True

    assert added_tokens(other) == added_tokens(backend)
    assert other.encode("x<a> b").tokens == ["x", "<", "a", ">", " b"]
    assert backend.encode("x<a> b").tokens == ["x", "<a>", " b"]
