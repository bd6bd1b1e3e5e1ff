import itertools
import re

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from router.text import detokenizer
from router.text.pieces import Pieces
from router.text.tokenizer import Tokenizer
from tests.fakes import byte_fallback, small_tokenizer
from tests.fakes.byte_fallback import (
    ADDED,
    AGAIN,
    DECODERS,
    EMPTY,
    LETTER,
    SPECIAL,
    UNKNOWN,
    WORD,
)

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


def test_byte_fallback_streams_a_character_whole_once_its_bytes_have_ended():
    backend = byte_fallback_tokenizer()
    stream = detokenizer.start(backend, None)

    parts = [stream.push([token_id]) for token_id in [256, *"你".encode(), 257]]

    # One more byte would have made broken what is whole: "ä" below is, when all is decoded at once.
    assert parts == [" one", "", "", "", "你two"]
    assert backend.decode([*"ä".encode(), 0xBD]) == "\N{REPLACEMENT CHARACTER}" * 3


BYTES = st.one_of(
    st.sampled_from([0x20, 0x41, 0xBD, 0xE4, 0xF0, 0xFF]),
    st.integers(0, 255),
)
TOKEN_LISTS = st.lists(
    st.one_of(
        st.integers(256, byte_fallback.UNKNOWN).map(lambda token_id: [token_id]),
        st.lists(BYTES, min_size=1, max_size=6),
        st.text(min_size=1, max_size=3).map(lambda text: list(text.encode("utf-8", "ignore"))),
        # As many as the sample that showed the fault, and more.
        st.integers(14, 40).map(lambda count: [0xE2] * count),
    ),
    max_size=12,
).map(lambda parts: list(itertools.chain.from_iterable(parts)))


FALLBACKS = {name: byte_fallback.make(name) for name in DECODERS}
PIECES = {name: Pieces(backend) for name, backend in FALLBACKS.items()}


def longest_run(token_ids: list[int]) -> int:
    # Special and unknown tokens do not end a run: the decoder never sees them.
    seen = [token_id for token_id in token_ids if token_id not in (SPECIAL, UNKNOWN)]
    runs = itertools.groupby(seen, lambda token_id: token_id < 256)
    return max((len(list(run)) for is_byte, run in runs if is_byte), default=0)


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=100)
@given(token_ids=TOKEN_LISTS, cuts=st.lists(st.integers(0, 1000), max_size=8), each=st.booleans())
def test_byte_fallback_pieces_join_to_the_full_decode(name, token_ids, cuts, each):
    assume(longest_run(token_ids) <= detokenizer._MAX_RUN)
    stream = detokenizer.start(FALLBACKS[name], None, pieces=PIECES[name])

    parts = pieces(stream, token_ids, range(len(token_ids)) if each else cuts)

    whole = FALLBACKS[name].decode(token_ids)
    assert "".join(parts) == whole
    # Nothing that was given out is ever taken back.
    assert all(whole.startswith(text) for text in itertools.accumulate(parts))


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=100)
@given(prompt=TOKEN_LISTS, token_ids=TOKEN_LISTS, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_text_behind_a_prompt_is_what_decoding_both_adds(name, prompt, token_ids, cuts):
    backend = FALLBACKS[name]
    # A prompt ends in a word: in a run of bytes, the answer's first byte could change its text.
    prompt = [*prompt, WORD]
    assume(longest_run(token_ids) <= detokenizer._MAX_RUN)
    stream = detokenizer.start(backend, None, pieces=PIECES[name], prompt=prompt)

    text = "".join(pieces(stream, token_ids, cuts))

    assert backend.decode(prompt) + text == backend.decode(prompt + token_ids)


def test_first_word_has_its_space_behind_a_prompt_and_not_in_a_text_of_its_own():
    backend = FALLBACKS["llama"]

    for prompt in ([LETTER], [LETTER, SPECIAL], [LETTER, *"😀".encode()]):
        assert detokenizer.start(backend, None, prompt=prompt).push([WORD]) == " world"
    for prompt in ([], [SPECIAL]):
        assert detokenizer.start(backend, None, prompt=prompt).push([WORD]) == "world"


@pytest.mark.parametrize("before", [[WORD], [LETTER, *"😀".encode()], [0xE2], [256, 256]])
def test_word_behind_a_tag_that_ends_a_text_has_its_space(before):
    stream = detokenizer.start(FALLBACKS["llama"], None, pieces=PIECES["llama"])

    # The tag is a special token, and its text comes from elsewhere.
    told = stream.push(before) + stream.flush() + "</think>" + stream.push([AGAIN])

    assert told == FALLBACKS["llama"].decode(before) + "</think> again"


@pytest.mark.parametrize("name", DECODERS)
def test_long_run_of_bytes_is_given_out_as_it_comes_and_little_is_held_back(name):
    stream = detokenizer.start(FALLBACKS[name], None, pieces=PIECES[name])
    told = stream.push([WORD])
    most = 0
    for character in "你" * 1000:
        for byte in character.encode():
            told += stream.push([byte])
            most = max(most, len(stream._held_back) + len(stream._context))
    assert told == FALLBACKS[name].decode([WORD]) + "你" * 1000
    assert most <= detokenizer._MAX_RUN + 2

    # It breaks after all; words go on as ever.
    told = stream.push([0xE2, 0xE2]) + stream.push([WORD, AGAIN]) + stream.flush()
    assert told == "\N{REPLACEMENT CHARACTER}" * 2 + " world again"


def test_word_behind_a_long_run_of_bytes_has_its_space():
    stream = detokenizer.start(FALLBACKS["llama"], None, pieces=PIECES["llama"])
    text = "".join(stream.push([byte]) for byte in ("你" * 100).encode()) + stream.push([WORD])
    assert text == "你" * 100 + " world"


@pytest.mark.parametrize("token_id", [0xE2, 256, LETTER, EMPTY, ADDED, SPECIAL, UNKNOWN])
def test_what_is_kept_does_not_grow_with_the_answer(token_id):
    stream = detokenizer.start(FALLBACKS["llama"], None, pieces=PIECES["llama"])
    for _ in range(500):
        stream.push([token_id])
    assert len(stream._held_back) + len(stream._context) <= 8
    assert stream.push([AGAIN]).endswith("again")


def test_byte_fallback_gives_up_on_bytes_that_never_become_text():
    stream = detokenizer.start(byte_fallback_tokenizer(), None)

    text = stream.push([0xBD] * 16)

    assert text == "\N{REPLACEMENT CHARACTER}" * 16
