"""The ways in which engines misbehave, as data.

To add one, add an entry: a name, what it does, and what must come of it. All that is unset is done
as `FakeEngine` does it. A mode that answers a request gets the handle and the right tokens, so that
it can be right for as long as it likes.
"""

import hashlib
import itertools
from collections.abc import Iterator

import grpc
from google.protobuf.any_pb2 import Any

from protos.pagestream.engine.v1 import engine_pb2 as pb
from tests.fakes import small_tokenizer
from tests.fakes.hostile_engine import (
    EXHAUSTED,
    INTERNAL,
    STEP,
    STOP,
    UNAVAILABLE,
    End,
    Mode,
    Move,
    admission,
    details_bin,
    failure,
    finish,
    honest,
    info,
    load,
    prompt_logprobs_of,
    retry,
    tokens_of,
    with_logprobs,
)

INTERNAL_STATUS = grpc.StatusCode.INTERNAL
NO_ANY = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")
NO_STATUS = (("grpc-status-details-bin", b"\xff\xff\xff"),)
FAILED = info("ENGINE_FAILED")
FULL = info("QUEUE_FULL")
FORGED = "x\n2026-01-01 00:00:00,000 CRITICAL router.launch FORGED"


def _errors() -> Iterator[Mode]:
    """Modes of errors."""
    for name, answer, is_refusal in (
        ("error-no-any", lambda h, t: [failure(h, INTERNAL, NO_ANY)], True),
        ("error-retry-overflow", lambda h, t: [failure(h, EXHAUSTED, FULL, retry(10**18))], False),
        ("error-retry-least", lambda h, t: [failure(h, EXHAUSTED, FULL, retry(-(2**63)))], False),
        (
            "error-retry-nanos",
            lambda h, t: [failure(h, EXHAUSTED, FULL, retry(1, -(2**31)))],
            False,
        ),
        ("error-code-negative", lambda h, t: [failure(h, -1)], True),
        ("error-code-ok", lambda h, t: [failure(h, 0)], True),
        ("error-code-huge", lambda h, t: [failure(h, 2**31 - 1)], True),
        ("error-unknown-reason", lambda h, t: [failure(h, UNAVAILABLE, info("WHATEVER"))], True),
        (
            "error-forged-lines",
            lambda h, t: [failure(h, INTERNAL, info(FORGED), message=FORGED)],
            True,
        ),
        (
            "error-large",
            lambda h, t: [failure(h, INTERNAL, _large_info(), message="m" * 200_000)],
            True,
        ),
        ("error-many-details", lambda h, t: [failure(h, INTERNAL, *[FULL] * 100_000)], True),
        ("error-after-all-tokens", _fails_after_all_tokens, False),
    ):
        yield Mode(name=name, answer=answer, is_refusal=is_refusal)
    # One that a bound on messages may refuse before anything is made of it.
    yield Mode(
        name="error-huge",
        answer=lambda h, t: [failure(h, INTERNAL, message="m" * (60 << 20))],
        is_refusal=True,
        is_long=True,
    )


def _large_info() -> Any:
    return info("A" * 1000, **{f"key{i}": "v" * 3000 for i in range(20)})


def _fails_after_all_tokens(handle, tokens) -> list[Move]:
    return [admission(handle), tokens_of(handle, tokens), failure(handle, UNAVAILABLE, FAILED)]


def _ends() -> Iterator[Mode]:
    """Modes of the end of the whole stream."""
    for name, end, detail in (
        ("end-no-status", End(trailers=NO_STATUS), "UNAVAILABLE: x"),
        ("end-retry-overflow", End(trailers=details_bin(info("A"), retry(10**18))), "x"),
        ("end-another-status", End(grpc.StatusCode.ABORTED, "torn", details_bin()), "ABORTED"),
        ("end-forged-lines", End(details=FORGED), "UNAVAILABLE: x"),
        ("end-without-a-word", End(grpc.StatusCode.CANCELLED, ""), "CANCELLED"),
    ):
        yield Mode(name=name, answer=lambda h, t, end=end: [0.05, end], detail=detail)


def _violations() -> Iterator[Mode]:
    """Modes that break the contract of the stream."""
    for name, detail, answer in (
        (
            "token-out-of-range",
            "token 1000 is outside",
            lambda h, t: [admission(h), tokens_of(h, [1000])],
        ),
        ("token-largest", "is outside", lambda h, t: [admission(h), tokens_of(h, [2**32 - 1])]),
        ("tokens-too-many", "over 12", lambda h, t: [admission(h), tokens_of(h, t * 50)]),
        (
            "tokens-one-too-many",
            "got 13",
            lambda h, t: [admission(h), tokens_of(h, t), tokens_of(h, [1])],
        ),
        (
            "tokens-then-failure",
            "over 12",
            lambda h, t: [admission(h), tokens_of(h, t * 9), failure(h, 14, FAILED)],
        ),
        (
            "tokens-of-one-step",
            "cannot be parsed or exceeds a bound",
            lambda h, t: [admission(h), tokens_of(h, [1] * 500_000)],
        ),
        (
            "tokens-after-the-end",
            "which has ended",
            lambda h, t: [*honest(h, t), tokens_of(h, [1])],
        ),
        (
            "tokens-of-zero",
            "contain zeros",
            lambda h, t: [admission(h), STEP(handles=[h] * 9, token_counts=[0] * 9)],
        ),
        ("tokens-of-strangers", "never sent", lambda h, t: [tokens_of(10**6 + h, [5])]),
        ("tokens-of-many-strangers", "cannot be parsed or exceeds a bound", _strangers),
        (
            "tokens-miscounted",
            "do not match",
            lambda h, t: [STEP(handles=[h, h], token_counts=[2**32 - 1, 1], token_ids=[1])],
        ),
        ("tokens-uncounted", "do not match", lambda h, t: [STEP(token_ids=[1] * 10)]),
        ("no-admission", "before its admission", lambda h, t: [tokens_of(h, t), finish(h)]),
        (
            "admission-twice",
            "admitted twice",
            lambda h, t: [admission(h), tokens_of(h, t[:1]), admission(h)],
        ),
        ("admission-of-a-stranger", "never sent", lambda h, t: [admission(0)]),
        ("admission-cached-negative", "-5 cached tokens", lambda h, t: [admission(h, -5)]),
        ("admission-cached-too-many", "1000 cached tokens", lambda h, t: [admission(h, 1000)]),
        (
            "admission-seed-negative",
            "seed of request",
            lambda h, t: [admission(h, 0, -9), tokens_of(h, t[:1]), failure(h, 14, FAILED)],
        ),
        ("finish-twice", "which has ended", lambda h, t: [*honest(h, t), finish(h), finish(h)]),
        ("finish-only", "before its admission", lambda h, t: [finish(h)]),
        ("finish-without-tokens", "12 tokens too early", lambda h, t: [admission(h), finish(h)]),
        (
            "finish-early",
            "7 tokens too early",
            lambda h, t: [admission(h), tokens_of(h, t[:5]), finish(h)],
        ),
        (
            "finish-stop-at-none",
            "without a stop token",
            lambda h, t: [admission(h), tokens_of(h, t[:1]), finish(h, STOP)],
        ),
        (
            "finish-stop-at-another",
            "which does not end it",
            lambda h, t: [
                admission(h),
                tokens_of(h, t[:1]),
                finish(h, STOP, stop_token_id=2**32 - 1),
            ],
        ),
        ("failure-of-a-stranger", "never sent", lambda h, t: [failure(10**9, INTERNAL)]),
    ):
        yield Mode(name=name, answer=answer, detail=detail, kind="violation")
    yield Mode(
        name="tokens-of-one-huge-step",
        answer=lambda h, t: [admission(h), tokens_of(h, [1] * (15 << 20))],
        log="Received message larger than max",
        is_long=True,
    )


PROMPT = [1, 2, 3, 0]
"""Nothing depends on its last token here."""


def _logprobs() -> Iterator[Mode]:
    """Modes of logprobs: one for each token and each of the prompt, with a candidate, is asked for.

    Positions from 4 on are those of new tokens.
    """
    nan, inf = float("nan"), float("inf")

    def scored(h, t, **changes):
        return with_logprobs(tokens_of(h, t), 4, **changes)

    for name, detail, answer in (
        ("missing", "without their logprobs", lambda h, t: [tokens_of(h, t)]),
        ("too-few", "got 1 logprobs for 12", lambda h, t: [scored(h, t, logprobs=[-1])]),
        ("too-many", "got 13 logprobs for 12", lambda h, t: [scored(h, t, logprobs=[-1] * 13)]),
        ("without-candidates", "got 0 top_token_ids", lambda h, t: [scored(h, t, num_top=0)]),
        ("many-candidates", "got 60 top_token_ids", lambda h, t: [scored(h, t, num_top=5)]),
        (
            "too-many-candidates",
            "cannot be parsed or exceeds a bound",
            lambda h, t: [scored(h, t, top_logprobs=[-1] * 300_000)],
        ),
        (
            "candidate-out-of-range",
            "candidate 1000",
            lambda h, t: [scored(h, t, top_token_ids=[1000] * 12)],
        ),
        ("nan", "logprob nan", lambda h, t: [scored(h, t, logprobs=[nan] * 12)]),
        ("positive", "logprob 3", lambda h, t: [scored(h, t, top_logprobs=[3] * 12)]),
        ("infinite", "logprob inf", lambda h, t: [scored(h, t, logprobs=[inf] * 12)]),
        (
            "of-a-stranger",
            "but no tokens of it",
            lambda h, t: [_merged(scored(h, t), with_logprobs(tokens_of(10**6 + h, [1]), 4))],
        ),
        ("twice", "several places", lambda h, t: [_merged(scored(h, t), scored(h, t))]),
        ("alone", "but no tokens", lambda h, t: [_merged(STEP(), scored(h, t))]),
    ):
        yield Mode(
            name=f"logprobs-{name}",
            answer=lambda h, t, answer=answer: [admission(h), *answer(h, t), finish(h)],
            detail=detail,
            kind="violation",
            params={"logprobs": 1},
        )
    of_prompt = prompt_logprobs_of
    for name, detail, answer in (
        ("missing", "are missing", lambda h, t: []),
        ("in-part", "2 tokens of the prompt", lambda h, t: [of_prompt(h, 1, [2])]),
        ("from-zero", "begin at position 0, not 1", lambda h, t: [of_prompt(h, 0, PROMPT)]),
        ("gap", "begin at position 2, not 1", lambda h, t: [of_prompt(h, 2, [3])]),
        ("twice", "position 1, not 2", lambda h, t: [of_prompt(h, 1, [2]), of_prompt(h, 1, [2])]),
        ("beyond", "outside 1 to 3", lambda h, t: [of_prompt(h, 1, [2, 3, 0, 5])]),
        ("empty", "outside 1 to 3", lambda h, t: [of_prompt(h, 1, [])] * 1000),
        ("candidates", "got 6 top_token_ids", lambda h, t: [of_prompt(h, 1, [2, 3, 0], 2)]),
        ("nan", "logprob nan", lambda h, t: [of_prompt(h, 1, [2], logprobs=[nan])]),
        ("late", "outside 1 to 0", lambda h, t: [of_prompt(h, 1, [2, 3, 0]), of_prompt(h, 4, [])]),
    ):
        yield Mode(
            name=f"prompt-logprobs-{name}",
            answer=lambda h, t, answer=answer: [
                admission(h), *answer(h, t), tokens_of(h, t), finish(h)
            ],
            detail=detail,
            kind="violation",
            params={"prompt_logprobs": 1},
        )  # fmt: skip
    for name, answer in (
        ("logprobs", lambda h, t: [scored(h, t)]),
        ("prompt-logprobs", lambda h, t: [of_prompt(h, 1, [2]), tokens_of(h, t)]),
    ):
        yield Mode(
            name=f"{name}-not-asked-for",
            answer=lambda h, t, answer=answer: [admission(h), *answer(h, t), finish(h)],
            detail="were not asked for",
            kind="violation",
        )


def _merged(step, other):
    """Adds the logprobs of another step."""
    step.logprobs.extend(other.logprobs)
    return step


def _strangers(handle, tokens) -> list[Move]:
    handles = range(10**6, 10**6 + 20_000)
    return [STEP(handles=handles, token_counts=[1] * 20_000, token_ids=[5] * 20_000)] * 20


def _descriptions() -> Iterator[Mode]:
    """Modes that lie about the model; all are refused before a request."""

    def setting(**fields):
        def change(response):
            for name, value in fields.items():
                if isinstance(value, list):
                    del getattr(response, name)[:]
                    getattr(response, name).extend(value)
                else:
                    setattr(response, name, value)

        return change

    for name, fields, detail in (
        ("model-name-forged", {"model_name": FORGED}, "model_name is"),
        ("model-name-long", {"model_name": "n" * 300}, "model_name has 300 characters"),
        ("model-name-empty", {"model_name": ""}, "model_name has 0 characters"),
        ("model-architecture", {"architecture": "\x1b[31m"}, "architecture is"),
        ("model-length-negative", {"max_model_length_tokens": -5}, "max_model_length_tokens is -5"),
        ("model-blocks-negative", {"total_block_count": -7}, "total_block_count is -7"),
        ("model-requests-negative", {"max_running_request_count": -3}, "max_running_request_count"),
        ("model-step-negative", {"max_batched_token_count": -9}, "max_batched_token_count is -9"),
        ("model-block-size", {"block_size_tokens": 2**31 - 1}, "block_size_tokens is"),
        ("model-vocabulary", {"vocabulary_size": 0}, "vocabulary_size is 0"),
        ("model-fingerprint", {"model_fingerprint": "f" * 31 + "\n"}, "model_fingerprint is"),
        ("model-tokenizer", {"tokenizer_sha256": "../../etc"}, "tokenizer_sha256 is"),
        ("model-epoch", {"epoch": 0}, "epoch is 0"),
        ("model-eos-beyond", {"eos_token_ids": [2**31]}, "eos_token_ids contains 2147483648"),
        ("model-logprobs", {"max_logprob_count": 101}, "max_logprob_count is 101, outside 0"),
        ("model-hashes", {"block_hash_scheme": "m" * 900}, "its block hash scheme is"),
    ):
        yield Mode(name=name, describe=setting(**fields), detail=f"refused: {detail}")
    for name, value in (
        ("temperature", float("nan")),
        ("top_k", -2),
        ("top_p", 1e30),
        ("repetition_penalty", 0),
    ):
        yield Mode(
            name=f"model-default-{name}",
            describe=lambda response, name=name, value=value: setattr(
                response.default_sampling_params, name, value
            ),
            detail=f"refused: default_sampling_params.{name} is",
        )
    for name, fields in (
        ("model-many-params", {"supported_sampling_params": ["p"] * 65}),
        ("model-name-huge", {"model_name": "n" * 300_000}),
        ("model-eos-many", {"eos_token_ids": [1] * 2000}),
        ("model-hashes-huge", {"block_hash_scheme": "m" * 9000}),
    ):
        # Refused before it is parsed; the log says which bound was passed.
        detail = "a message cannot be parsed or exceeds a bound"
        yield Mode(name=name, describe=setting(**fields), detail=detail)


def _beginnings() -> Iterator[Mode]:
    """Modes of the first message: who it is, and what it says of its load."""

    def loaded(**fields):
        return lambda message: message.load.CopyFrom(load(**fields))

    for name, change in (
        ("another-epoch", lambda message: setattr(message, "epoch", message.epoch + 1)),
        ("no-epoch", lambda message: message.ClearField("epoch")),
        ("another-model", lambda message: setattr(message, "model_fingerprint", "0" * 32)),
        ("no-model", lambda message: message.ClearField("model_fingerprint")),
    ):
        yield Mode(name=name, begin=change, detail="it is another engine", kind="mismatch")
    for rate in (float("nan"), float("inf"), 1e-300, 5e-324, -5.0, 1.7e308):
        yield Mode(
            name=f"rate-{rate}",
            begin=loaded(
                prefill_tokens_per_second=rate,
                decode_tokens_per_second=rate,
                running_count=5,
                waiting_prefill_token_count=77,
            ),
        )
    least, most = {"state": 1}, {"state": 1, "total_block_count": 1}
    for field, bits in (
        ("running_count", 31),
        ("waiting_count", 31),
        ("free_block_count", 31),
        ("waiting_prefill_token_count", 63),
    ):
        least[field], most[field] = -(2**bits), 2**bits - 1
    slow = {"prefill_tokens_per_second": 0.01, "decode_tokens_per_second": 0.01}
    yield Mode(name="counts-least", begin=loaded(**least))
    yield Mode(name="counts-most", begin=loaded(**most))
    yield Mode(name="counts-most-and-slow", begin=loaded(**most, **slow))


def _watches() -> Iterator[Mode]:
    """Modes of the cache watch, which must cost no request."""

    def part(epoch, number=0, **fields):
        hashes = pb.CacheSnapshot(first=True, last=True, part_number=1, **fields)
        return pb.WatchCacheResponse(epoch=epoch, sequence_number=number, snapshot=hashes)

    def other_epochs(epoch):
        yield part(epoch + 1, block_hashes=[1, 2, 3])

    def gaps(epoch):
        yield part(epoch)
        change = pb.CacheDelta(stored_block_hashes=[1, 2, 3])
        yield pb.WatchCacheResponse(epoch=epoch, sequence_number=5, delta=change)

    def neither(epoch):
        yield pb.WatchCacheResponse(epoch=epoch, sequence_number=1)

    def endless(epoch):
        for number in itertools.count(1):
            hashes = range(number << 14, (number + 1) << 14)
            snapshot = pb.CacheSnapshot(block_hashes=hashes, first=number == 1, part_number=number)
            yield pb.WatchCacheResponse(epoch=epoch, sequence_number=1, snapshot=snapshot)

    def flood(epoch):
        yield part(epoch)
        for number in range(1, 2000):
            stored = range(number << 10, (number + 1) << 10)
            removed = range((number - 1) << 10, number << 10) if number > 1 else ()
            change = pb.CacheDelta(stored_block_hashes=stored, removed_block_hashes=removed)
            yield pb.WatchCacheResponse(epoch=epoch, sequence_number=number, delta=change)

    yield Mode(name="watch-of-another-epoch", watch=other_epochs, kind="mismatch")
    yield Mode(name="watch-of-an-endless-snapshot", watch=endless, kind="violation", is_long=True)
    yield Mode(name="watch-with-a-flood-of-changes", watch=flood)
    yield Mode(name="watch-with-gaps", watch=gaps)
    yield Mode(name="watch-of-nothing", watch=neither)


def _others() -> Iterator[Mode]:
    yield Mode(
        name="silence",
        answer=lambda h, t: [],
        detail="stalled: no step for",
        kind="stalled",
    )
    yield Mode(
        name="flood-of-loads",
        answer=lambda h, t: [
            *[STEP(load=load(running_count=n % 7)) for n in range(5000)],
            *honest(h, t),
        ],
    )


def _header(name, content=b"", size=None):
    size = len(content) if size is None else size
    file = pb.TokenizerFile(name=name, size_bytes=size, sha256=hashlib.sha256(content).hexdigest())
    return pb.GetTokenizerResponse(file=file)


def _files(files):
    for name, content in files:
        yield _header(name, content)
        yield pb.GetTokenizerResponse(chunk=content)


def _file_of(size, chunk):
    yield _header("tokenizer.json", size=size)
    yield from itertools.repeat(pb.GetTokenizerResponse(chunk=chunk))


def _transfers() -> Iterator[Mode]:
    """Modes of the transfer of the tokenizer, which the good engine of the model then answers."""
    forged = small_tokenizer.files(chat_template="{{ 'forged' }}").items()
    for name, transfer in (
        ("no-status", lambda: [End(INTERNAL_STATUS, "x", NO_STATUS)]),
        ("headers-without-end", lambda: (_header(f"{'x' * 200}{n}") for n in itertools.count())),
        ("without-end", lambda: _file_of(1 << 40, bytes(1 << 20))),
        ("chunks-of-nothing", lambda: _file_of(2, b"")),
        ("of-another", lambda: _files(forged)),
        ("twice", lambda: _files([("tokenizer.json", b"{}")] * 2)),
        ("of-nothing", list),
        ("elsewhere", lambda: _files([("../../etc/passwd", b"x")])),
    ):
        yield Mode(name=f"tokenizer-{name}", transfer=transfer)


MODES: list[Mode] = [
    *_errors(),
    *_ends(),
    *_violations(),
    *_logprobs(),
    *_descriptions(),
    *_beginnings(),
    *_watches(),
    *_others(),
    *_transfers(),
]
