"""A model of random logits, and the demo model's tokens."""

import json
from pathlib import Path

import numpy as np

from engine_service.grammar.matchers import SlotMatchers
from engine_service.grammar.tokenizer import read_tokenizer

CHECKPOINT = Path(__file__).parents[3] / "demo_model" / "checkpoint"
TOKENIZER_JSON = (CHECKPOINT / "tokenizer.json").read_bytes()
VOCAB_SIZE = json.loads((CHECKPOINT / "config.json").read_text())["vocab_size"] + 13
"""More than the tokenizer has, as in models whose logits are padded."""
EOS_TOKEN_IDS = (0, 1)
TOKENIZER = read_tokenizer(TOKENIZER_JSON, VOCAB_SIZE, EOS_TOKEN_IDS)
_ENDS = [
    token_id
    for token_id in range(VOCAB_SIZE)
    if any(mark in TOKENIZER.decode_str([token_id]) for mark in '"}]')
]


def token_ids(text):
    return TOKENIZER.tokenize_str(text)


def text_of(ids):
    return TOKENIZER.decode_bytes([token_id for token_id in ids if token_id not in EOS_TOKEN_IDS])


def allowed(matchers, slot):
    """Returns the tokens that a slot allows, and what `fill` says of it."""
    masks = np.zeros((1, matchers.num_words), np.int32)
    filled = matchers.fill([slot], masks)
    bits = np.unpackbits(masks.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist(), filled


def generate(grammars, *, temperature, max_tokens, seed=0):
    """Lets a random model that likes to end its texts generate one text for each grammar.

    Returns:
        By grammar, the tokens, with the end-of-sequence token of those that ended.
    """
    generator = np.random.default_rng(seed)
    matchers = SlotMatchers(TOKENIZER, 2)
    for slot, grammar in enumerate(grammars):
        matchers.start(slot, grammar, [])
    outputs = [[] for _ in grammars]
    slots = list(range(len(grammars)))
    for _ in range(max_tokens):
        masks = np.zeros((len(slots), matchers.num_words), np.int32)
        filled = matchers.fill(slots, masks)
        assert not filled.failures, {slots[row]: text for row, text in filled.failures.items()}
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :VOCAB_SIZE]
        logits = 2 * generator.standard_normal(bits.shape)
        logits[:, _ENDS] += 4
        logits[:, EOS_TOKEN_IDS] += 6
        if temperature:
            logits = logits / temperature + generator.gumbel(size=bits.shape)
        logits[bits == 0] = -np.inf
        assert np.isfinite(logits.max(axis=1)).all()
        chosen = logits.argmax(axis=1).tolist()
        matchers.advance(slots, chosen)
        for slot, token_id in zip(slots, chosen, strict=True):
            outputs[slot].append(token_id)
        slots = [slot for slot in slots if outputs[slot][-1] not in EOS_TOKEN_IDS]
        if not slots:
            break
    matchers.close()
    return outputs
