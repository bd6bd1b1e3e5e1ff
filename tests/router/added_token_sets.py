"""Tokenizers with added tokens of all kinds, and texts that bring them to overlap."""

from contextlib import contextmanager

import tokenizers
from hypothesis import reject
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from router.text.tokenizer import Tokenizer
from tests.fakes import small_tokenizer

NORMALIZERS = {
    "none": None,
    "nfc": tokenizers.normalizers.NFC(),
    "lowercase": tokenizers.normalizers.Lowercase(),
    "prepend": tokenizers.normalizers.Prepend("x"),
}
_PARTS = ("<", "|", ">", "a", "b", "A", "é", "e\u0301", " ", "<s>", "<|a|>")
CONTENTS = st.lists(st.sampled_from(_PARTS), min_size=1, max_size=5).map("".join)


@st.composite
def tokens(draw, conditions=True):
    """Draws an added token; without conditions it is special, and found in the text as it is."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    values = {flag: conditions and draw(st.booleans()) for flag in flags}
    content = draw(CONTENTS)
    # A letter of the model that is special has no other token, and none at all when it is said.
    values["special"] = len(content) > 1 and (values["special"] or not conditions)
    return tokenizers.AddedToken(content, **values)


def token_sets(**options):
    return st.lists(
        tokens(**options), min_size=1, max_size=6, unique_by=lambda token: token.content
    )


@st.composite
def texts(draw, added):
    """Draws a text of added tokens, of parts of them and of what may stand between them."""
    contents = [token.content for token in added]
    cuttings = [content[:end] for content in contents for end in range(1, len(content))]
    pool = st.sampled_from([*contents, *cuttings, *_PARTS, "  ", "\n", "word", "1", "_", "é"])
    return "".join(draw(st.lists(pool, max_size=12)))


def tokenizer_of(added, normalizer="none", chat_template="{{ messages[0].content }}") -> Tokenizer:
    """Returns the small tokenizer with more added tokens."""
    backend = tokenizers.Tokenizer.from_str(small_tokenizer.files()["tokenizer.json"].decode())
    backend.normalizer = NORMALIZERS[normalizer]
    backend.add_tokens(list(added))
    return tokenizer_with(backend, chat_template)


def tokenizer_with(backend, chat_template) -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template))


@contextmanager
def rejecting_panics():
    """Rejects an example with which the library panics, as it does with some sets of tokens."""
    try:
        yield
    except BaseException as error:
        # It is no Exception.
        if type(error).__name__ == "PanicException":
            reject()
        raise


def own_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns what the tokenizer itself makes of a text."""
    with rejecting_panics():
        return tokenizer.backend.encode(text, add_special_tokens=False).ids


def special_ids(tokenizer: Tokenizer) -> set[int]:
    decoder = tokenizer.backend.get_added_tokens_decoder()
    return {token_id for token_id, token in decoder.items() if token.special}
