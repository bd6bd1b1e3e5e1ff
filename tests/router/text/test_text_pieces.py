"""A text tokenized in pieces has the tokens of the whole, and takes the memory of a piece."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.text import text_pieces
from router.text.text_pieces import TextPieces
from router.text.token_budget import Abandoned, TokenBudget

CHECKPOINT = Path(__file__).parents[3] / "demo_model" / "checkpoint"
MODEL = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
DEEPSEEK = next(pattern for pattern in text_pieces.PATTERNS if pattern.startswith("[!"))
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNLIMITED = TokenBudget()


def bytes_(use_regex=False, add_prefix_space=False):
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split(pattern, behavior="Isolated"):
    pattern = {"Regex": pattern}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


DIGITS = {"type": "Digits", "individual_digits": True}
KNOWN = [
    bytes_(use_regex=True),
    sequence(DIGITS, bytes_(use_regex=True)),
    sequence(*map(split, sorted(text_pieces.PARTIAL_PATTERNS)), split(DEEPSEEK), bytes_()),
    # DeepSeek's own file has line ends themselves.
    sequence(split(DEEPSEEK.replace(r"\r\n", "\r\n")), bytes_()),
    *(sequence(split(pattern), bytes_()) for pattern in sorted(text_pieces.PATTERNS)),
]
UNKNOWN = [
    None,
    bytes_(add_prefix_space=True),
    bytes_(),
    sequence(DIGITS, bytes_()),
    sequence(bytes_(), split(QWEN)),
    sequence(split(r"\p{N}{1,3}"), bytes_()),
    sequence(split(r"(?<=a)b|."), bytes_()),
    sequence(split(QWEN, "MergedWithPrevious"), bytes_()),
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True},
]
ADDED = [
    AddedToken("zz<|"),
    AddedToken("é<"),
    AddedToken("  \n", normalized=False),
    AddedToken(" 你", normalized=False, special=True),
    AddedToken("a 1", normalized=False),
    AddedToken("é a"),
]
# Letters of all kinds, marks, digits, signs, contractions, white space, tokens and their ends.
ATOMS = (
    "a", "B", "é", "e\u0301", "\u0301", "\u0327", "ʰ", "Ǆ", "\u0e33", "1", "4567", "'s", "'ll", "'",
    "!", "/", "<", "|", "😀", "\u200d", "你", "ア", "한", "\u1112\u1161\u11ab", "\u1161", "\ue000",
    " ", "  ", "\n", "\r\n", "\t", " \n ", "\xa0", "\u2028", "\x00", "\x1c", "the quick", " brown",
    "<|im_end|>", "<|im_", "end|>", "<tool_call>", "zz<", "  x",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(ATOMS), min_size=1, max_size=4).flatmap(
    lambda pool: st.lists(st.sampled_from(pool), min_size=20, max_size=400).map("".join)
)


def backend_of(pre_tokenizer, normalizer=None, added=()):
    settings_ = {**MODEL, "pre_tokenizer": pre_tokenizer, "normalizer": normalizer}
    backend = tokenizers.Tokenizer.from_str(json.dumps(settings_))
    backend.add_tokens(list(added))
    return backend


BACKENDS = [
    backend_of(pre_tokenizer, normalizer, added)
    for pre_tokenizer in KNOWN
    for normalizer in (None, {"type": "NFC"})
    for added in ((), ADDED[:4], ADDED)
]
SPLITTING = backend_of(sequence(split(QWEN), bytes_()))


def check_equal_to_the_whole(data):
    backend = data.draw(st.sampled_from(BACKENDS))
    pieces = TextPieces(backend, data.draw(st.sampled_from((320, 400))))
    text = data.draw(TEXTS) + data.draw(TEXTS)

    assert pieces.is_cut
    expected = backend.encode(text, add_special_tokens=False).ids
    assert pieces.encode(text, UNLIMITED).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_have_the_tokens_of_the_whole(data):
    check_equal_to_the_whole(data)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_pieces_have_the_tokens_of_the_whole_in_depth(data):
    check_equal_to_the_whole(data)


@pytest.mark.parametrize("pre_tokenizer", UNKNOWN)
def test_text_is_left_whole_where_nobody_knows_what_splits_it(pre_tokenizer):
    backend = backend_of(pre_tokenizer)
    pieces = TextPieces(backend, 128)
    text = "ab, cd 12  " * 100

    assert not pieces.is_cut
    expected = backend.encode(text, add_special_tokens=False).ids
    assert pieces.encode(text, UNLIMITED).tolist() == expected


@pytest.mark.parametrize(
    ("normalizer", "token"),
    [
        ({"type": "NFKC"}, AddedToken("x")),
        ({"type": "Strip", "strip_left": True, "strip_right": True}, AddedToken("x")),
        (None, AddedToken("x", lstrip=True)),
        (None, AddedToken("x", rstrip=True)),
        (None, AddedToken("x", single_word=True)),
        (None, AddedToken("x" * 10_000)),
    ],
)
def test_text_is_left_whole_where_a_joint_could_matter(normalizer, token):
    assert not TextPieces(backend_of(KNOWN[0], normalizer, [token])).is_cut


@pytest.mark.parametrize("text", ["1" * 10_000, "word, " * 3000, "<|im_end|>" * 1000])
def test_work_ends_with_the_budget(text):
    asked = []

    def is_cancelled():
        asked.append(1)
        return False

    with pytest.raises(InvalidRequest, match="prompt has more than 100 tokens") as caught:
        TextPieces(SPLITTING, 1000).encode(text, TokenBudget(100, is_cancelled))

    assert caught.value.status.reason == Reason.PROMPT_TOO_LONG
    assert caught.value.status.metadata["max_model_len"] == "100"
    assert len(asked) <= 3


def test_short_text_is_counted_to_the_end():
    assert len(TextPieces(SPLITTING, 1000).encode("1" * 1000, TokenBudget(100))) == 1000


def test_work_ends_when_nobody_waits():
    answers = iter([False, False, True])

    with pytest.raises(Abandoned):
        TextPieces(SPLITTING, 1000).encode("1" * 10_000, TokenBudget(None, lambda: next(answers)))

    assert next(answers, None) is None


@pytest.mark.parametrize("unit", ["a", " ", "=", "\n", "你"])
def test_word_longer_than_a_window_is_whole_up_to_a_bound(unit, monkeypatch):
    monkeypatch.setattr(text_pieces, "_MAX_WORD", 4096)
    pieces = TextPieces(SPLITTING, 512)
    text = f"x {unit * 3000} y {unit * 3000}"

    expected = SPLITTING.encode(text, add_special_tokens=False).ids
    assert pieces.encode(text, UNLIMITED).tolist() == expected
    with pytest.raises(InvalidRequest, match=r"4096 characters.* cannot split") as caught:
        pieces.encode(f"x {unit * 5000} y", UNLIMITED)
    assert caught.value.status.reason == Reason.PROMPT_TOO_LONG
    assert caught.value.status.metadata["bounds"] == "0 to 4096"
