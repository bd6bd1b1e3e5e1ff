"""Tries a grammar: whether it compiles, allows anything, and how it begins."""

import random

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask

from engine_service.grammar.compiler import BadGrammar, bad_grammar, compile_grammar
from protos.wire.sampling_params import Grammar

_MAX_TOKENS = 16
"""So that most grammars whose masks take too much work show it."""


def try_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> None:
    """Compiles a grammar and generates the first tokens of some text.

    Raises:
        BadGrammar: It does not compile, allows no text, or soon exceeds a limit of the library.
    """
    matcher = compile_grammar(tokenizer, grammar)
    words = np.zeros((1, -(-tokenizer.vocab_size // 32)), np.int32)
    generator = random.Random(0)
    for num_tokens in range(_MAX_TOKENS):
        fill_next_token_bitmask(matcher, words)
        if matcher.is_error():
            _raise_error(matcher, num_tokens)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        if num_tokens == 0 and not bits.any():
            raise BadGrammar("it allows no text")
        bits[tokenizer.eos_tokens] = 0
        token_ids = np.flatnonzero(bits)
        if not len(token_ids):
            return
        matcher.consume_token(int(token_ids[generator.randrange(len(token_ids))]))


def _raise_error(matcher: LLMatcher, num_tokens: int) -> None:
    text = matcher.get_error()
    # No token continues the text. After the first one, that may be a rare text only.
    if text.startswith("NoExtension"):
        if num_tokens == 0:
            raise BadGrammar("it allows no text")
        return
    raise bad_grammar(f"after {num_tokens} tokens: {text}")
