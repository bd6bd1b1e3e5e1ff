"""What the sampling parameters cost a decode step on a GPU: `python -m benchmarks.sampling`.

A model of random weights, so with flat distributions, decodes a batch in which every row asks for
the same. The variants take turns, and each is compared with the plain one of its turn.
"""

import argparse
import json
import statistics
import string
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.engine import Engine
from benchmarks.provenance import commit
from benchmarks.shapes import SHAPES
from benchmarks.workloads import TEMPERATURE, uniform
from protos.wire.sampling_params import Grammar, LogitBias, SamplingParams

PLAIN = "plain"
SCHEMA = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer"},
            "kind": {"enum": ["first", "second", "third"]},
            "parts": {"type": "array", "items": {"type": "number"}, "maxItems": 5},
        },
        "required": ["name", "count", "kind", "parts"],
        "additionalProperties": False,
    },
}
"""A text of it does not end within a run."""
SHORT_NAMES = json.loads(json.dumps(SCHEMA).replace('"string"', '"string", "maxLength": 40'))
"""The same with a bound on strings, whose masks take more time: each length is another state."""
_MAX_TOKEN_BYTES = 10

VARIANTS: Mapping[str, SamplingParams] = {
    PLAIN: SamplingParams(temperature=TEMPERATURE),
    "top_k 50, top_p 0.9": SamplingParams(temperature=TEMPERATURE, top_k=50, top_p=0.9),
    "top_p 0.9": SamplingParams(temperature=TEMPERATURE, top_p=0.9),
    "penalties": SamplingParams(
        temperature=TEMPERATURE,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.5,
    ),
    "penalties, top_k 50, top_p 0.9": SamplingParams(
        temperature=TEMPERATURE,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        top_k=50,
        top_p=0.9,
    ),
    "300 biases": SamplingParams(
        temperature=TEMPERATURE, logit_bias=tuple(LogitBias(7 * i, 1.0) for i in range(300))
    ),
    "logprobs 5": SamplingParams(temperature=TEMPERATURE, logprobs=5),
    "logprobs 20": SamplingParams(temperature=TEMPERATURE, logprobs=20),
    "JSON schema": SamplingParams(
        temperature=TEMPERATURE, grammar=Grammar(form="json_schema", text=json.dumps(SCHEMA))
    ),
    "JSON schema, bounded strings": SamplingParams(
        temperature=TEMPERATURE,
        grammar=Grammar(form="json_schema", text=json.dumps(SHORT_NAMES)),
    ),
}


def write_tokenizer(folder: Path, vocab_size: int, eos_token_id: int) -> None:
    """Writes a byte-level tokenizer of random words, which grammars need."""
    rng = Random(0)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, merges = set(tokens), []
    # Nearly all words of real vocabularies are of letters; the first letter of some is a space.
    letters = string.ascii_letters
    begun = [*letters, "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"]
    while len(tokens) < vocab_size - 1:
        pair = begun[rng.randrange(min(len(begun), 20_000))], rng.choice(letters)
        token = "".join(pair)
        if token not in known and len(token) <= _MAX_TOKEN_BYTES:
            known.add(token)
            tokens.append(token)
            begun.append(token)
            merges.append(pair)
    end = "<|end|>"
    tokens.insert(eos_token_id, end)
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([end])
    tokenizer.save(str(folder / "tokenizer.json"))


def measure(engine: Engine, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures all variants at one batch size."""
    workload = uniform(batch, options.prompt_len, options.output_len)
    names = [PLAIN, *(name for name in options.variants if name != PLAIN)]
    step_ms: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        # Captures the graphs.
        engine.run(uniform(batch, 16, 4), VARIANTS[name])
    for _ in range(options.repeats):
        for name in names:
            run = engine.run(workload, VARIANTS[name])
            step_ms[name].append(run.decode_phases()["step"])
    results = {}
    for name, times in step_ms.items():
        changes = [
            100 * (mine / plain - 1) for mine, plain in zip(times, step_ms[PLAIN], strict=True)
        ]
        results[name] = {
            "decode_step_ms": round(statistics.median(times), 4),
            "tokens_per_second": round(1e3 * batch / statistics.median(times)),
            "slower_percent": round(statistics.median(changes), 2),
        }
        print(f"batch {batch}, {name}: {results[name]}", flush=True)
    return results


def measure_first_token(engine: Engine, prompt_len: int) -> dict[str, float]:
    """Returns the milliseconds until the first token of one request, medians of ten.

    A cold schema is one that the engine has not seen; trying it beforehand, in a process of its
    own, is the server's work and not in it.
    """

    def schema(number: int) -> SamplingParams:
        names = json.dumps(SCHEMA).replace("third", f"third {number}")
        return SamplingParams(
            temperature=TEMPERATURE, grammar=Grammar(form="json_schema", text=names)
        )

    def median_ms(params: Iterable[SamplingParams]) -> float:
        runs = [engine.run(uniform(1, prompt_len, 2), each) for each in params]
        return round(1e3 * statistics.median(run.first_token_seconds for run in runs), 2)

    # Captures the graphs.
    median_ms([VARIANTS[PLAIN], schema(0)])
    return {
        "plain": median_ms([VARIANTS[PLAIN]] * 10),
        "cold schema": median_ms(map(schema, range(1, 11))),
        "warm schema": median_ms([schema(0)] * 10),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.enforce_eager, options.tensor_parallel_size = False, 1
    options.max_steps_in_flight = None
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[options.model]
        write_tokenizer(Path(folder), int(shape["vocab_size"]), int(shape["eos_token_id"]))
        engine = Engine(options.model, Path(folder), options)
        report = {
            "command": "python -m benchmarks.sampling " + " ".join(arguments or sys.argv[1:]),
            "commit": options.commit or commit(),
            "machine": f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
            "model": options.model,
            "seconds_to_ready": round(engine.seconds_to_ready, 2),
            "first_token_ms": measure_first_token(engine, options.prompt_len),
            "batches": {batch: measure(engine, batch, options) for batch in options.batches},
        }
        engine.core.close()
        print(f"first token, ms: {report['first_token_ms']}")
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
