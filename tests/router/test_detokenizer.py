import itertools
import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from router import detokenizer
from router.tokenizer import Tokenizer
from tests.fakes import small_tokenizer

TOKENIZER = Tokenizer.from_files(small_tokenizer.files())
VOCAB_SIZE = TOKENIZER.backend.get_vocab_size()


def byte_fallback_tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {"▁one": 256, "two": 257, "<unk>": 258}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<s>"])
    return backend


def start() -> detokenizer.Detokenizer:
    return detokenizer.start(TOKENIZER.backend, TOKENIZER.token_bytes)


def pieces(stream: detokenizer.Detokenizer, token_ids: list[int], cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(token_ids) + 1) for cut in cuts), len(token_ids)]
    chunks = [token_ids[a:b] for a, b in itertools.pairwise(bounds)]
    return [*(stream.push(chunk) for chunk in chunks), stream.flush()]


def byte_tokens(data: bytes) -> list[int]:
    """One token per byte, as a model without merges would generate."""
    token_of_byte = {
        TOKENIZER.token_bytes[token_id]: token_id
        for token_id in range(VOCAB_SIZE)
        if len(TOKENIZER.token_bytes[token_id]) == 1
    }
    return [token_of_byte[bytes([byte])] for byte in data]


@settings(deadline=None, max_examples=100)
@given(
    token_ids=st.lists(st.integers(0, VOCAB_SIZE + 3), max_size=40),
    cuts=st.lists(st.integers(0, 1000), max_size=6),
)
def test_pieces_of_any_tokens_join_to_the_full_decode(token_ids, cuts):
    # Random tokens are mostly broken UTF-8; some lie beyond the vocabulary.
    assert "".join(pieces(start(), token_ids, cuts)) == TOKENIZER.decode(
        token_ids, skip_special_tokens=True
    )


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=24), cuts=st.lists(st.integers(0, 100), max_size=6))
def test_pieces_of_any_bytes_join_to_the_full_decode(data, cuts):
    token_ids = byte_tokens(data)

    assert "".join(pieces(start(), token_ids, cuts)) == TOKENIZER.decode(
        token_ids, skip_special_tokens=True
    )


@given(text=st.text(max_size=20))
def test_no_piece_splits_a_character(text):
    stream = start()

    parts = [stream.push([token_id]) for token_id in byte_tokens(text.encode())]

    assert "".join(parts) == text
    assert all(character in text for part in parts for character in part)


@pytest.mark.parametrize("text", ["😀", "é", "你好", "👩‍👩‍👧"])
def test_character_comes_with_its_last_byte(text):
    *head, last = byte_tokens(text.encode())
    stream = start()

    before = stream.push(head)

    assert before + stream.push([last]) == text
    assert before == text[: len(before)]
    assert len(before) == len(text) - 1


def test_incomplete_character_at_the_end_becomes_a_replacement():
    stream = start()

    assert stream.push(byte_tokens("a😀".encode()[:-1])) == "a"
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_special_tokens_yield_no_text_and_added_ones_do():
    backend = TOKENIZER.backend
    names = (small_tokenizer.START, small_tokenizer.THINK, small_tokenizer.END, "<ü 字>")

    text = start().push([backend.token_to_id(name) for name in names])

    assert text == "<think><ü 字>"


def test_broken_bytes_are_not_held_back_for_more_than_a_character():
    # A decoder that holds back whatever ends in a replacement takes quadratic time here.
    tokenizer = Tokenizer.from_files(small_tokenizer.files())
    stream = detokenizer.start(tokenizer.backend, tokenizer.token_bytes)

    text = stream.push(byte_tokens(b"\xbd" * 100))

    assert text == "\N{REPLACEMENT CHARACTER}" * 100


@settings(deadline=None)
@given(token_ids=st.lists(st.sampled_from([256, 257, 0x41, 0xE4, 0xBD, 0xA0]), max_size=30))
def test_byte_fallback_loses_no_whole_token_among_broken_bytes(token_ids):
    backend = byte_fallback_tokenizer()
    stream = detokenizer.start(backend, None)

    text = "".join(pieces(stream, token_ids, [7]))

    assert re.findall("one|two", text) == re.findall("one|two", backend.decode(token_ids))


def test_byte_fallback_streams_a_character_whole():
    backend = byte_fallback_tokenizer()
    stream = detokenizer.start(backend, None)

    parts = [stream.push([token_id]) for token_id in [256, *"你".encode(), 257]]

    assert parts == [" one", "", "", "你", "two"]


def test_byte_fallback_gives_up_on_bytes_that_never_become_text():
    stream = detokenizer.start(byte_fallback_tokenizer(), None)

    text = stream.push([0xBD] * 16)

    assert text == "\N{REPLACEMENT CHARACTER}" * 16
