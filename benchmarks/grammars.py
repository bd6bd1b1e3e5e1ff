"""Measures grammars: compile time, and masks and advances of a batch per token.

python -m benchmarks.grammars --tokenizer FOLDER/tokenizer.json
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from engine_service.grammar.matchers import SlotMatchers
from engine_service.grammar.tokenizer import read_tokenizer
from protos.wire.sampling_params import Grammar

_FIELDS = {
    "any object": {},
    "three fields": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer"},
    },
    "nested": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "email": {"type": "string", "format": "email"},
        "address": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
        },
    },
    "100 fields": {
        f"field_{index}": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "integer"}]}
        for index in range(100)
    },
}


def main() -> None:
    """Prints one line per schema."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--eos-token-id", type=int, default=151_645)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    eos_token_ids = [options.eos_token_id]
    tokenizer = read_tokenizer(options.tokenizer.read_bytes(), options.vocab_size, eos_token_ids)
    for name, fields in _FIELDS.items():
        schema = {"type": "object", "properties": fields, "required": list(fields)[:3]}
        matchers = SlotMatchers(tokenizer, options.threads)
        grammar = Grammar(form="json_schema", text=json.dumps(schema))
        print(name, _measure(matchers, grammar, options.rows, options.tokens))
        matchers.close()


def _measure(matchers: SlotMatchers, grammar: Grammar, num_rows: int, num_tokens: int) -> str:
    masks = np.zeros((num_rows, matchers.num_words), np.int32)
    slots = list(range(num_rows))
    begun_at = time.perf_counter()
    matchers.start(0, grammar, [])
    matchers.fill([0], masks)
    compiled = time.perf_counter() - begun_at
    for slot in slots:
        matchers.start(slot, grammar, [])
    generator = np.random.default_rng(0)
    filling, advancing = [], []
    for _ in range(num_tokens):
        begun_at = time.perf_counter()
        filled = matchers.fill(slots, masks)
        filling.append(1e3 * (time.perf_counter() - begun_at))
        assert not filled.failures, filled.failures
        bits = (np.unpackbits(row.view(np.uint8), bitorder="little") for row in masks)
        token_ids = [int(generator.choice(np.flatnonzero(row))) for row in bits]
        begun_at = time.perf_counter()
        matchers.advance(slots, token_ids)
        advancing.append(1e3 * (time.perf_counter() - begun_at))
        for row in filled.ended:
            matchers.start(row, grammar, [])
    return (
        f"compile_ms={1e3 * compiled:.1f} fill_ms={np.median(filling):.2f} "
        f"fill_p99_ms={np.percentile(filling, 99):.2f} advance_ms={np.median(advancing):.2f}"
    )


if __name__ == "__main__":
    main()
