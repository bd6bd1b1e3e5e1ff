"""Texts and tokens of each family of tokenizers are those of transformers."""

import pytest

from router.text import detokenizer
from router.text.tokenizer import Tokenizer
from tests.fakes import tokenizer_families
from tests.tokenizers.comparison import compare, load


@pytest.mark.parametrize("family", tokenizer_families.FAMILIES)
def test_texts_and_tokens_are_those_of_transformers_however_they_are_split(family):
    outcome = compare(tokenizer_families.files(family))

    assert outcome.differences == []
    assert outcome.num_splits > 1000


@pytest.mark.parametrize(
    ("family", "alone"),
    [
        ("llama-2", "Hello"),
        ("mistral-1", "Hello"),
        ("mistral-3", "Hello"),
        ("metaspace-always", "Hello"),
        ("unigram", "Hello"),
        ("metaspace-never", " Hello"),
        ("gemma", " Hello"),
        ("llama-3", " Hello"),
        ("tekken", " Hello"),
    ],
)
def test_first_space_is_dropped_at_the_beginning_of_a_text_of_its_own_only(family, alone):
    ours, reference = load(tokenizer_families.files(family))
    prompt = ours.encode_text("the").tolist()
    spaced = ours.encode_text("the Hello", add_special_tokens=False).tolist()
    answer = spaced[len(ours.encode_text("the", add_special_tokens=False)) :]

    texts = []
    for before in ([], prompt):
        stream = detokenizer.start(
            ours.backend, ours.token_bytes, pieces=ours.pieces, prompt=before
        )
        texts.append("".join(stream.push([token_id]) for token_id in answer) + stream.flush())

    assert texts == [alone, " Hello"]
    assert reference.decode(answer) == alone


@pytest.mark.parametrize("family", ["llama-2", "mistral-1", "mistral-3"])
@pytest.mark.parametrize("text", ["é ", "é", " ", "\n"])
def test_first_word_has_its_space_behind_a_prompt_of_bytes_and_single_spaces(family, text):
    tokenizer = Tokenizer.from_files(tokenizer_families.files(family))
    prompt = [tokenizer.backend.token_to_id(name) for name in _names_of(text)]
    word = tokenizer.backend.token_to_id("▁the")

    stream = detokenizer.start(tokenizer.backend, None, pieces=tokenizer.pieces, prompt=prompt)

    assert stream.push([word]) == " the"


def _names_of(text):
    for character in text:
        if character == " ":
            yield "▁"
        else:
            yield from (f"<0x{byte:02X}>" for byte in character.encode())


@pytest.mark.parametrize("family", ["llama-2", "mistral-1", "mistral-3", "gemma", "llama-3"])
def test_bad_word_is_found_behind_a_line_end_and_behind_a_space(family):
    tokenizer = Tokenizer.from_files(tokenizer_families.files(family))
    text = tokenizer.encode_text("x\nfox x fox").tolist()

    sequences = tokenizer.encode_word("fox")

    places = {
        start
        for sequence in sequences
        for start in range(len(text))
        if tuple(text[start : start + len(sequence)]) == sequence
    }
    assert len(places) == 2


def test_byte_level_decoder_may_be_one_of_a_sequence():
    tokenizer = Tokenizer.from_files(tokenizer_families.files("fused-byte-level"))

    assert tokenizer.token_bytes is not None
