import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from router.errors import InvalidRequest
from router.text.text_pieces import TextPieces
from router.text.token_budget import TokenBudget
from router.text.token_length import max_characters
from tests.fakes import small_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def backend_of(words=(), normalizer=SPACES, pre_tokenizer=None, **options):
    """A tokenizer as of Llama 2."""
    letters = ["<unk>", *words, "a", "b", "▁", "ab", "▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁"]
    vocabulary = {token: index for index, token in enumerate(letters)}
    merges = [("a", "b"), ("▁", "▁"), ("▁▁", "▁▁"), ("▁▁▁▁", "▁▁▁▁")]
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", **options))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    return backend


def small(**parts):
    backend = tokenizers.Tokenizer.from_str(small_tokenizer.files()["tokenizer.json"].decode())
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


CONVERTED = normalizers.Sequence(
    [normalizers.Replace(" ", "▁"), normalizers.Replace(tokenizers.Regex(r"\A▁"), "▁▁")]
)
BOUNDED = [
    (backend_of(BYTES, CONVERTED, byte_fallback=True), 8),
    (backend_of(BYTES, byte_fallback=True, fuse_unk=True), 8),
    (backend_of(normalizer=None), 8),
    (backend_of(pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")), 8),
    (small(), 4 * 31),
    (small(normalizer=None, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), 31),
]


@pytest.mark.parametrize(("backend", "expected"), BOUNDED)
def test_longest_token_bounds_the_characters_of_each(backend, expected):
    assert max_characters(backend) == expected


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(["a", "ab", "▁" * 8, " " * 9, "e\u0301", "\u1112\u1161\u11ab", "你", "."])
        | st.text(max_size=4),
        max_size=40,
    ).map("".join),
    backend=st.sampled_from([backend for backend, _ in BOUNDED]),
)
def test_text_has_at_least_the_tokens_of_the_bound(text, backend):
    token_ids = backend.encode(text, add_special_tokens=False).ids

    assert len(token_ids) >= len(text) // max_characters(backend)


@pytest.mark.parametrize(
    "backend",
    [
        backend_of(fuse_unk=True),
        backend_of(BYTES[1:], byte_fallback=True, fuse_unk=True),
        backend_of(normalizer=normalizers.Strip()),
        backend_of(normalizer=normalizers.Replace("aa", "a")),
        backend_of(pre_tokenizer=pre_tokenizers.Whitespace()),
        backend_of(pre_tokenizer=pre_tokenizers.Split(" ", "removed")),
        small(pre_tokenizer=None),
        small(model=models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
        small(model=models.WordPiece({"<unk>": 0}, unk_token="<unk>")),
    ],
)
def test_token_that_may_stand_for_any_text_has_no_bound(backend):
    assert max_characters(backend) is None


def test_token_that_takes_the_spaces_beside_it_has_no_bound():
    backend = small()
    backend.add_tokens([AddedToken("<mask>", lstrip=True)])

    assert max_characters(backend) is None


def test_text_that_must_be_too_long_is_not_begun():
    pieces = TextPieces(backend_of(BYTES, byte_fallback=True))

    assert not pieces.is_cut
    with pytest.raises(InvalidRequest, match="more than 100 tokens"):
        pieces.encode("\x00" * (8 * 101), TokenBudget(100))
    # Eight tokens a character: only counting shows it.
    assert len(pieces.encode("你" * 100, TokenBudget(100))) > 100
