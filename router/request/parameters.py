"""What a request asks of sampling: its bounds, the model's defaults, and what each sample gets."""

import secrets
from array import array
from collections.abc import Sequence
from dataclasses import replace

from protos.wire.limits import (
    MAX_BAD_SEQUENCE_TOKENS,
    MAX_BAD_TOKENS,
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_SAMPLES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TEXT_BYTES,
    MAX_STOP_TEXTS,
)
from protos.wire.reason import Reason
from protos.wire.sampling_params import (
    ParamFault,
    SamplingParams,
    out_of_bounds,
    unsupported,
)
from router.errors import InvalidRequest
from router.request.limits import check_token_ids, outside
from router.text.tokenizer import Tokenizer
from router.types.engine_events import TokenRequest
from router.types.engine_state import ModelInfo
from router.types.generation import GenerationRequest

_SEED_BITS = 63


def num_samples(request: GenerationRequest) -> int:
    """Returns how many requests to engines a request stands for; 1 if `n` is out of bounds."""
    n = request.n
    return n if n is not None and 1 <= n <= MAX_SAMPLES else 1


def check_parameters(request: GenerationRequest, model: ModelInfo) -> None:
    """Refuses parameters that are out of bounds, or that no engine of the model supports.

    Raises:
        InvalidRequest: Message and metadata give field, value and bound.
    """
    params = request.sampling_params
    if fault := out_of_bounds(params) or _length_fault(params):
        raise _bad_param(fault)
    if request.stop:
        _check_stop(request.stop)
    if request.bad_words:
        _check_bad_words(request.bad_words)
    if request.n is not None:
        _check_n(request.n, params)
    if fault := _unsupported(request, model):
        known = sorted(model.supported_params)
        raise InvalidRequest(
            f'{fault.field} is {fault.value}, but no engine of model "{model.name}" supports this '
            f"parameter; supported are {', '.join(known)}",
            {"field": fault.field, "value": fault.value, "supported": ",".join(known)},
            reason=Reason.UNSUPPORTED_PARAMETER,
        )
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(params, name)
        if value is not None and value > model.max_logprobs:
            raise _bad(name, value, f"0 to {model.max_logprobs}, the most that the engines report")
    _check_tokens(params, model)


def _length_fault(params: SamplingParams) -> ParamFault | None:
    max_tokens, min_tokens = params.max_tokens, params.min_tokens
    if max_tokens is not None and min_tokens is not None and min_tokens > max_tokens:
        return ParamFault("min_tokens", str(min_tokens), f"0 to max_tokens {max_tokens}")
    return None


def _unsupported(request: GenerationRequest, model: ModelInfo) -> ParamFault | None:
    supported = model.supported_params
    if request.n not in (None, 1) and "sample_index" not in supported:
        return ParamFault("n", str(request.n), "1")
    if request.bad_words and "bad_words_token_ids" not in supported:
        return ParamFault("bad_words", f"{len(request.bad_words)} entries", "unset")
    return unsupported(request.sampling_params, supported)


def _check_tokens(params: SamplingParams, model: ModelInfo) -> None:
    check_token_ids("stop_token_ids", tuple(params.stop_token_ids), model)
    allowed = params.allowed_token_ids
    # Making a tuple of many takes a millisecond.
    token_ids = allowed if isinstance(allowed, array) else tuple(allowed)
    check_token_ids("allowed_token_ids", token_ids, model)
    for index, bias in enumerate(params.logit_bias):
        if bias.token_id >= model.vocab_size:
            bounds = f"0 to {model.vocab_size - 1}"
            field = f"logit_bias[{index}].token_id"
            raise outside(field, bias.token_id, bounds, Reason.TOKEN_OUT_OF_RANGE)


def _check_stop(texts: Sequence[str]) -> None:
    if len(texts) > MAX_STOP_TEXTS:
        raise _bad("stop", len(texts), f"0 to {MAX_STOP_TEXTS}", "texts")
    for index, text in enumerate(texts):
        if not text:
            raise _bad(f"stop[{index}]", "empty", f"1 to {MAX_STOP_TEXT_BYTES} bytes")
        num_bytes = len(text.encode())
        if num_bytes > MAX_STOP_TEXT_BYTES:
            raise _bad(f"stop[{index}]", num_bytes, f"1 to {MAX_STOP_TEXT_BYTES}", "bytes")
    num_characters = sum(map(len, set(texts)))
    if num_characters > MAX_STOP_CHARACTERS:
        bounds = f"0 to {MAX_STOP_CHARACTERS}"
        raise _bad("stop", num_characters, bounds, "characters in its different texts")


def _check_bad_words(words: Sequence[str]) -> None:
    if len(words) > MAX_BAD_WORDS:
        raise _bad("bad_words", len(words), f"0 to {MAX_BAD_WORDS}", "words")
    for index, word in enumerate(words):
        field, bounds = f"bad_words[{index}]", f"1 to {MAX_BAD_WORD_CHARACTERS}"
        if not word.strip():
            value = "only white space" if word else "empty"
            raise _bad(field, value, f"{bounds} characters, not only white space")
        if len(word) > MAX_BAD_WORD_CHARACTERS:
            raise _bad(field, len(word), bounds, "characters")


def _check_n(n: int, params: SamplingParams) -> None:
    if not 1 <= n <= MAX_SAMPLES:
        raise _bad("n", n, f"1 to {MAX_SAMPLES}")
    if n > 1 and params.max_tokens == 0:
        raise _bad("n", n, "1 to 1, as max_tokens is 0")


def _bad(field: str, value: int | str, bounds: str, unit: str = "") -> InvalidRequest:
    return _bad_param(ParamFault(field, str(value), bounds, unit))


def _bad_param(fault: ParamFault) -> InvalidRequest:
    return InvalidRequest(
        fault.message,
        {"field": fault.field, "value": fault.value, "bounds": fault.bounds},
        reason=Reason.BAD_SAMPLING_PARAMS,
    )


def bad_sequences(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Returns the sequences of tokens that stand for words that must not be generated.

    vLLM forbids a word after a space only where it has as many tokens as inside a word; here it is
    forbidden in any case.

    Raises:
        InvalidRequest: A word has no or too many tokens, or all together have too many.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        for sequence in tokenizer.encode_word(word):
            if not 1 <= len(sequence) <= MAX_BAD_SEQUENCE_TOKENS:
                bounds = f"1 to {MAX_BAD_SEQUENCE_TOKENS}"
                raise _bad(f"bad_words[{index}]", len(sequence), bounds, "tokens")
            sequences[sequence] = None
    num_tokens = sum(map(len, sequences))
    if num_tokens > MAX_BAD_TOKENS:
        raise _bad("bad_words", num_tokens, f"0 to {MAX_BAD_TOKENS}", "tokens in all")
    return tuple(sequences)


def of_samples(request: TokenRequest, n: int) -> list[TokenRequest]:
    """Returns the requests for each of n samples of one prompt.

    All have the same seed, drawn here if the client gave none, and draws of their own. The prompt
    is the same for all, so only the first reports its logprobs.
    """
    if n == 1:
        return [request]
    params = request.sampling_params
    seed = secrets.randbits(_SEED_BITS) if params.seed is None else params.seed
    scored = params.prompt_logprobs
    return [
        replace(
            request,
            sampling_params=replace(
                params,
                seed=seed,
                sample_index=index,
                prompt_logprobs=None if index else scored,
            ),
        )
        for index in range(n)
    ]
