import pytest

from router.text.token_texts import TokenTexts
from router.text.tokenizer import Tokenizer
from tests.fakes import byte_fallback, small_tokenizer

SMALL = Tokenizer.from_files(small_tokenizer.files())
LLAMA = Tokenizer.from_files(byte_fallback.files("llama"))


def test_texts_of_tokens_join_to_the_text():
    token_ids = SMALL.encode_text("Grüße 😀 the quick fox")

    raw = b"".join(SMALL.token_texts[token_id][1] for token_id in token_ids)

    assert raw.decode() == "Grüße 😀 the quick fox"


def test_part_of_a_character_has_its_byte():
    token_id = SMALL.backend.token_to_id("ð")

    assert SMALL.token_texts[token_id] == ("\N{REPLACEMENT CHARACTER}", b"\xf0")


@pytest.mark.parametrize("name", [small_tokenizer.START, small_tokenizer.THINK, "<ü 字>"])
def test_added_token_has_its_name(name):
    token_id = SMALL.backend.token_to_id(name)

    assert SMALL.token_texts[token_id] == (name, name.encode())


def test_token_of_another_vocabulary_has_the_text_that_it_adds_after_a_word():
    byte = LLAMA.backend.token_to_id("<0xC3>")

    assert LLAMA.token_texts[byte_fallback.WORD] == (" world", b" world")
    assert LLAMA.token_texts[byte] == ("\N{REPLACEMENT CHARACTER}", b"\xc3")


def test_unknown_tokens_are_empty_and_not_kept():
    texts = TokenTexts(SMALL.backend, SMALL.token_bytes, None)

    assert texts[599] == ("", b"")
    assert texts[5] == texts[5] == ("$", b"$")
    assert list(texts) == [5]
