"""Limits on a single request to this engine."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Self

from engine_service.core.types import EngineInfo, Request
from engine_service.errors import InvalidRequest
from protos.wire.limits import MAX_LABEL_CHARACTERS
from protos.wire.reason import Reason
from protos.wire.sampling_params import (
    SUPPORTED_PARAMS,
    ParamFault,
    SamplingParams,
    end_token_ids,
    out_of_bounds,
    unsupported,
)

MIN_PRIORITY = -(2**31)
MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds on a request, checked before any work is done for it."""

    vocab_size: int
    max_model_len: int
    num_cache_tokens: int
    """Tokens that the whole pool can hold."""
    max_logprobs: int
    """Logprobs at each position."""
    eos_token_ids: frozenset[int]
    supported_params: tuple[str, ...] = SUPPORTED_PARAMS
    """The sampling parameters that the engine supports."""

    @classmethod
    def from_info(cls, info: EngineInfo) -> Self:
        """Derives the bounds from what start-up found."""
        return cls(
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            num_cache_tokens=info.num_blocks * info.block_size,
            max_logprobs=min(info.max_logprobs, info.vocab_size),
            eos_token_ids=info.eos_token_ids,
            supported_params=info.supported_params,
        )

    @property
    def max_sequence_len(self) -> int:
        """The maximum number of tokens in a sequence, prompt and output together.

        May exceed the pool by one token, since nothing reads the last token's keys and values.
        """
        return min(self.max_model_len, self.num_cache_tokens + 1)

    def max_num_tokens(self, request: Request) -> int:
        """Returns the length, prompt included, at which a checked request ends."""
        max_tokens = request.sampling_params.max_tokens
        if max_tokens is None:
            return self.max_sequence_len
        return len(request.prompt_token_ids) + max_tokens

    def check(self, request: Request) -> None:
        """Refuses a request that this engine can never serve.

        Called only where a request enters. `LLM` calls it; the server's `convert` has its own
        version of the same checks that does not block the event loop.

        Takes time linear in the prompt, about 50 ms for a million tokens.

        Raises:
            InvalidRequest: Its reason says which part is wrong, its message names the field,
                value and bound, and its metadata holds the numbers.
        """
        self.check_all_but_token_ids(request)
        self.check_token_ids("prompt_token_ids", request.prompt_token_ids)
        self.check_token_ids("resume_token_ids", request.resume_token_ids)
        params = request.sampling_params
        self.check_token_ids(
            "allowed_token_ids", _array("allowed_token_ids", params.allowed_token_ids)
        )
        self.check_short_lists(params)

    def check_all_but_token_ids(self, request: Request) -> None:
        """Does the checks of `check` whose time does not depend on the lengths of long lists.

        Raises:
            InvalidRequest: As `check`.
        """
        if not request.prompt_token_ids:
            raise InvalidRequest("prompt_token_ids is empty", reason=Reason.EMPTY_PROMPT)
        self._check_sampling_params(request.sampling_params)
        _check_labels(request)
        self._check_length(request)
        self._check_min_tokens(request)
        self._check_allowed(request)

    def _check_sampling_params(self, params: SamplingParams) -> None:
        if fault := unsupported(params, self.supported_params):
            raise InvalidRequest(
                f"sampling_params.{fault.field} is {fault.value}, but this engine does not support "
                f"the parameter; it supports {', '.join(self.supported_params)}",
                {
                    "field": fault.field,
                    "value": fault.value,
                    "supported": ",".join(self.supported_params),
                },
                reason=Reason.UNSUPPORTED_PARAMETER,
            )
        if fault := out_of_bounds(params):
            raise _bad_param(fault)
        for field in ("logprobs", "prompt_logprobs"):
            if (count := getattr(params, field) or 0) > self.max_logprobs:
                bounds = f"0 to {self.max_logprobs} of this engine"
                raise _bad_param(ParamFault(field, str(count), bounds))
        seen: dict[int, int] = {}
        for index, (token_id, _) in enumerate(params.logit_bias):
            if (other := seen.setdefault(token_id, index)) != index:
                field, bounds = f"logit_bias[{index}].token_id", "tokens that are named once"
                raise InvalidRequest(
                    f"{field} is {token_id}, which logit_bias[{other}] names already",
                    {"field": field, "value": str(token_id), "bounds": bounds},
                    reason=Reason.BAD_SAMPLING_PARAMS,
                )

    def _check_min_tokens(self, request: Request) -> None:
        params = request.sampling_params
        if not params.min_tokens:
            return
        longest = self.max_num_tokens(request) - len(request.prompt_token_ids)
        if params.min_tokens > longest:
            bounds = f"0 to {longest}, the length left"
            if params.max_tokens is not None:
                bounds = f"0 to max_tokens {longest}"
            raise _bad_param(ParamFault("min_tokens", str(params.min_tokens), bounds))

    def _check_allowed(self, request: Request) -> None:
        """Refuses a request whose next token is certain to be none."""
        params = request.sampling_params
        allowed = params.allowed_token_ids
        if not allowed:
            return
        bad = {sequence[0] for sequence in params.bad_words_token_ids if len(sequence) == 1}
        ends = frozenset[int]()
        if (params.min_tokens or 0) > len(request.resume_token_ids):
            ends = end_token_ids(params, self.eos_token_ids)
        banned = bad | ends
        if banned and banned.issuperset(allowed):
            by = {"bad_words_token_ids": bad, "min_tokens": ends}
            names = " and ".join(name for name, some in by.items() if not some.isdisjoint(allowed))
            raise InvalidRequest(
                f"allowed_token_ids has {len(allowed)} entries, all forbidden by {names}",
                {
                    "field": "allowed_token_ids",
                    "value": str(len(allowed)),
                    "bounds": f"a token not forbidden by {names}",
                },
                reason=Reason.BAD_SAMPLING_PARAMS,
            )

    def _check_length(self, request: Request) -> None:
        num_prompt_tokens = len(request.prompt_token_ids)
        num_resumed_tokens = len(request.resume_token_ids)
        max_tokens = request.sampling_params.max_tokens
        if max_tokens is not None and num_resumed_tokens > max_tokens:
            raise InvalidRequest(
                f"resume_token_ids has {num_resumed_tokens} tokens, over max_tokens {max_tokens}, "
                "which includes them",
                {"num_resumed_tokens": str(num_resumed_tokens), "max_tokens": str(max_tokens)},
            )
        num_new_tokens = max(1, num_resumed_tokens) if max_tokens is None else max_tokens
        num_tokens = num_prompt_tokens + num_new_tokens
        longest = self.max_sequence_len
        if not num_new_tokens:
            # The prompt is all there is, and it needs its blocks.
            longest = min(longest, self.num_cache_tokens)
        if num_tokens <= longest:
            return
        if max_tokens is not None:
            asked = f"prompt_token_ids of {num_prompt_tokens} and max_tokens of {max_tokens}"
        elif num_resumed_tokens:
            asked = f"prompt_token_ids of {num_prompt_tokens} and {num_resumed_tokens} resumed"
        else:
            asked = f"prompt_token_ids of {num_prompt_tokens} and one to generate"
        if num_tokens > self.max_model_len:
            bound = f"max_model_len {self.max_model_len}"
        else:
            bound = f"{longest}, the maximum that fits in the KV cache"
        raise InvalidRequest(
            f"{asked} are {num_tokens} tokens, over {bound}",
            {
                "num_prompt_tokens": str(num_prompt_tokens),
                "num_resumed_tokens": str(num_resumed_tokens),
                "max_tokens": "" if max_tokens is None else str(max_tokens),
                "max_model_len": str(self.max_model_len),
                "max_sequence_len": str(longest),
            },
            reason=Reason.PROMPT_TOO_LONG,
        )

    def check_short_lists(self, params: SamplingParams) -> None:
        """Refuses tokens outside the vocabulary in the lists of at most a few thousand entries.

        Raises:
            InvalidRequest: Names the first such ID.
        """
        self.check_token_ids("stop_token_ids", _array("stop_token_ids", params.stop_token_ids))
        biased = _array("logit_bias", (bias.token_id for bias in params.logit_bias))
        self.check_token_ids("logit_bias", biased, ".token_id")
        if params.grammar is not None and params.grammar.start_after_token_id is not None:
            self._check_start(params.grammar.start_after_token_id)
        sequences = params.bad_words_token_ids
        if self._are_tokens(_array("bad_words_token_ids", chain.from_iterable(sequences))):
            return
        index, place, value = next(
            (index, place, value)
            for index, sequence in enumerate(sequences)
            for place, value in enumerate(sequence)
            if not 0 <= value < self.vocab_size
        )
        raise self.token_out_of_range(f"bad_words_token_ids[{index}]", place, value)

    def _check_start(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            field, bounds = "grammar.start_after_token_id", f"0 to {self.vocab_size - 1}"
            raise InvalidRequest(
                f"{field} is {token_id}, outside {bounds}",
                {"field": field, "value": str(token_id), "bounds": bounds},
                reason=Reason.TOKEN_OUT_OF_RANGE,
            )

    def check_token_ids(self, field: str, token_ids: "array[int]", part: str = "") -> None:
        """Refuses token IDs outside the vocabulary.

        Args:
            field: The list's name.
            token_ids: Its IDs.
            part: Name of the ID within an entry of the list, after a dot.

        Raises:
            InvalidRequest: Names the first such ID.
        """
        if self._are_tokens(token_ids):
            return
        index, value = next(
            (index, value)
            for index, value in enumerate(token_ids)
            if not 0 <= value < self.vocab_size
        )
        raise self.token_out_of_range(field, index, value, part)

    def _are_tokens(self, token_ids: "array[int]") -> bool:
        return not token_ids or (min(token_ids) >= 0 and max(token_ids) < self.vocab_size)

    def token_out_of_range(
        self, field: str, index: int, value: int, part: str = ""
    ) -> InvalidRequest:
        """Returns the error for a token ID outside the vocabulary."""
        return InvalidRequest(
            f"{field}[{index}]{part} is {value}, outside 0 to {self.vocab_size - 1}",
            {
                "field": field,
                "index": str(index),
                "value": str(value),
                "bounds": f"0 to {self.vocab_size - 1}",
                "vocab_size": str(self.vocab_size),
            },
            reason=Reason.TOKEN_OUT_OF_RANGE,
        )


def _array(field: str, token_ids: Iterable[int]) -> "array[int]":
    try:
        return array("q", token_ids)
    except (TypeError, OverflowError) as error:
        raise InvalidRequest(
            f"{field} holds something that is not a token ID: {error}",
            {"field": field},
            reason=Reason.TOKEN_OUT_OF_RANGE,
        ) from error


def _bad_param(fault: ParamFault) -> InvalidRequest:
    return InvalidRequest(
        fault.message,
        {"field": fault.field, "value": fault.value, "bounds": fault.bounds},
        reason=Reason.BAD_SAMPLING_PARAMS,
    )


def _check_labels(request: Request) -> None:
    if len(request.cache_salt) > MAX_LABEL_CHARACTERS:
        raise InvalidRequest(
            f"cache_salt has {len(request.cache_salt)} characters, over {MAX_LABEL_CHARACTERS}",
            {
                "field": "cache_salt",
                "value": str(len(request.cache_salt)),
                "bounds": f"0 to {MAX_LABEL_CHARACTERS}",
            },
        )
    if not MIN_PRIORITY <= request.priority <= MAX_PRIORITY:
        bounds = f"{MIN_PRIORITY} to {MAX_PRIORITY}"
        raise InvalidRequest(
            f"priority is {request.priority}, outside {bounds}",
            {"field": "priority", "value": str(request.priority), "bounds": bounds},
        )
