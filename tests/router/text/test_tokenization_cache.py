import random
from array import array

import pytest

from router.errors import InvalidRequest
from router.text.token_budget import TokenBudget
from router.text.tokenization_cache import TokenizationCache
from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatMessage
from tests.fakes import small_tokenizer

TURN_END = "<|im_end|>"
UNLIMITED = TokenBudget()


class Encoder:
    """Encodes each character as one token and writes down what it was asked."""

    def __init__(self):
        self.texts = []

    def __call__(self, text, marker, budget):
        self.texts.append(text)
        return array("i", map(ord, text))


class Cache(TokenizationCache):
    def encode(self, text, marker="", budget=UNLIMITED):
        return super().encode(text, marker, budget)


def cache_of(encoder, **options):
    return Cache(encoder, [TURN_END], **options)


def test_only_what_is_new_is_encoded():
    encoder = Encoder()
    cache = cache_of(encoder)
    first = f"a question{TURN_END}\nassistant"
    second = f"a question{TURN_END}\nassistant says{TURN_END}\nuser asks{TURN_END}\nassistant"

    assert list(cache.encode(first)) == list(map(ord, first))
    encoder.texts.clear()
    assert list(cache.encode(second)) == list(map(ord, second))

    tail = f"\nassistant says{TURN_END}\nuser asks{TURN_END}"
    assert encoder.texts == [tail, "\nassistant"]


def test_text_without_a_special_token_is_encoded_as_it_is():
    encoder = Encoder()
    cache = cache_of(encoder)
    assert list(cache.encode("plain")) == list(map(ord, "plain"))
    assert cache.num_bytes == 0


def test_text_that_ends_with_a_special_token_is_whole_and_a_copy():
    cache = cache_of(Encoder())
    for _ in range(2):
        ids = cache.encode(f"a{TURN_END}")
        assert list(ids) == list(map(ord, f"a{TURN_END}"))
        ids[0] = 0


def test_bytes_are_bounded_and_the_latest_stay():
    encoder = Encoder()
    cache = cache_of(encoder, max_bytes=10_000)
    texts = [f"{n:0900}{TURN_END}" for n in range(20)]
    for text in texts:
        cache.encode(text)
        assert cache.num_bytes <= 10_000
    encoder.texts.clear()
    cache.encode(texts[-1])
    assert encoder.texts == []
    cache.encode(texts[0])
    assert encoder.texts == [texts[0]]


def test_text_larger_than_the_cache_drops_nothing():
    encoder = Encoder()
    cache = cache_of(encoder, max_bytes=1000)
    cache.encode(f"a{TURN_END}")
    cache.encode("b" * 1000 + TURN_END)
    encoder.texts.clear()
    cache.encode(f"a{TURN_END}")
    assert encoder.texts == []


def test_marked_tokens_do_not_cut_and_make_another_text():
    encoder = Encoder()
    cache = cache_of(encoder)
    cache.encode(f"a{TURN_END}b{TURN_END}c")
    encoder.texts.clear()

    assert list(cache.encode(f"a!{TURN_END}b{TURN_END}c", "!"))
    assert encoder.texts == [f"a!{TURN_END}b{TURN_END}", "c"]

    encoder.texts.clear()
    cache.encode(f"a!{TURN_END}b{TURN_END}")
    assert encoder.texts == [f"a!{TURN_END}b{TURN_END}"]


def test_text_with_more_special_tokens_than_the_budget_is_not_encoded():
    encoder = Encoder()
    cache = cache_of(encoder)

    with pytest.raises(InvalidRequest, match="more than 9 tokens"):
        cache.encode(TURN_END * 10, budget=TokenBudget(9))

    assert encoder.texts == []
    assert cache.num_bytes == 0


@pytest.mark.parametrize("seed", range(5))
def test_chats_that_grow_have_the_tokens_of_a_fresh_tokenizer(seed):
    rng = random.Random(seed)
    files = small_tokenizer.files()
    warm, messages = Tokenizer.from_files(files), []
    contents = [
        "",
        " ",
        "hello",
        "  two  spaces ",
        "\n\n",
        "é🙂",
        "1234",
        f"x{TURN_END}y",
        "a" * 50,
    ]
    for _ in range(12):
        messages.append(ChatMessage(role="user", content=rng.choice(contents)))
        text = small_tokenizer.lay_out(messages)
        assert warm.encode_rendered(text, "") == Tokenizer.from_files(files).encode_rendered(
            text, ""
        )
        messages.append(ChatMessage(role="assistant", content=rng.choice(contents)))
