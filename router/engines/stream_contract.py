"""What an engine may still send for a request; anything more breaks the contract."""

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.limits import MAX_SEED
from protos.wire.sampling_params import end_token_ids
from router.engines.connection_loss import violation
from router.engines.logprob_contract import PromptContract, read_logprobs
from router.engines.request_stream import RequestStream
from router.types.engine_events import TokenRequest
from router.types.engine_state import ModelInfo

_NUM_EVENTS = 2
"""Events of a request besides its tokens: its admission and its end."""


class RequestContract:
    """One open request, and which answers the engine may still give.

    Each method that checks raises `ConnectionLost` (VIOLATION); the text says what was wrong.

    Attributes:
        stream: The stream that receives the request's events.
        has_logprobs: Whether the request asks for logprobs, of its prompt or of new tokens.
        num_tokens_left: Tokens that may still come; 0 before the admission.
    """

    __slots__ = (
        "_end_token_ids",
        "_is_admitted",
        "_last_resumed",
        "_max_num_tokens",
        "_num_known_tokens",
        "_num_top",
        "_prompt",
        "_seed",
        "_vocab_size",
        "has_logprobs",
        "num_tokens_left",
        "stream",
    )

    def __init__(self, stream: RequestStream, request: TokenRequest, model: ModelInfo) -> None:
        params = request.sampling_params
        resumed = request.resume_token_ids
        self.stream = stream
        self.num_tokens_left = 0
        self._is_admitted = False
        self._num_known_tokens = request.num_known_tokens
        self._last_resumed = resumed[-1] if resumed else None
        self._seed = params.seed
        self._end_token_ids = end_token_ids(params, model.eos_token_ids)
        most = model.max_sequence_len - self._num_known_tokens
        if params.max_tokens is not None:
            most = min(most, params.max_tokens - len(resumed))
        self._max_num_tokens = max(0, most)
        self._vocab_size = vocab_size = model.vocab_size
        num_top, num_prompt_top = params.logprobs, params.prompt_logprobs
        self._num_top = None if num_top is None else min(num_top, vocab_size)
        self._prompt: PromptContract | None = None
        if num_prompt_top is not None:
            num_prompt_top = min(num_prompt_top, vocab_size)
            num_prompt_tokens = len(request.prompt_token_ids)
            self._prompt = PromptContract(num_prompt_tokens, num_prompt_top, vocab_size)
        self.has_logprobs = num_top is not None or num_prompt_top is not None

    @property
    def num_late(self) -> int:
        """Tokens, logprobs of the prompt and events that may be in transit at a cancellation."""
        num_tokens = self.num_tokens_left if self._is_admitted else self._max_num_tokens
        num_positions = 0 if self._prompt is None else self._prompt.num_left
        return num_tokens + num_positions + _NUM_EVENTS

    def admit(self, handle: int, admission: engine_pb2.Admission) -> None:
        """Checks an admission and passes it on."""
        num_cached, seed = admission.cached_token_count, admission.seed
        if self._is_admitted:
            raise violation(f"request {handle} was admitted twice")
        if not 0 <= num_cached <= self._num_known_tokens:
            raise violation(
                f"request {handle} has {num_cached} cached tokens, "
                f"outside 0 to {self._num_known_tokens}"
            )
        if not 0 <= seed <= MAX_SEED:
            raise violation(f"the seed of request {handle} is {seed}, outside 0 to {MAX_SEED}")
        if self._seed is not None and seed != self._seed:
            raise violation(f"the seed of request {handle} is {seed}; {self._seed} was requested")
        self._is_admitted = True
        self.num_tokens_left = self._max_num_tokens
        self.stream.admit(num_cached, seed)

    def add_prompt_logprobs(self, handle: int, message: engine_pb2.PromptLogprobs) -> None:
        """Checks logprobs of the prompt and passes them on."""
        if self._prompt is None:
            raise violation(f"the logprobs of the prompt of request {handle} were not asked for")
        if not self._is_admitted:
            raise violation(f"logprobs of request {handle} came before its admission")
        if self.num_tokens_left < self._max_num_tokens:
            raise violation(f"logprobs of the prompt of request {handle} came after a token")
        self.stream.add_prompt_logprobs(self._prompt.take(handle, message))

    def add_tokens(
        self, handle: int, token_ids: list[int], logprobs: engine_pb2.Logprobs | None
    ) -> None:
        """Checks tokens and their logprobs, and passes them on."""
        num_left = self.num_tokens_left - len(token_ids)
        if num_left < 0:
            self.refuse_tokens(handle, len(token_ids))
        self._check_prompt(handle)
        self.num_tokens_left = num_left
        if self._num_top is None:
            if logprobs is not None:
                raise violation(f"logprobs of request {handle} were not asked for")
            self.stream.add_tokens(token_ids)
            return
        if logprobs is None:
            raise violation(f"tokens of request {handle} came without their logprobs")
        read = read_logprobs(handle, logprobs, len(token_ids), self._num_top, self._vocab_size)
        self.stream.add_tokens_with_logprobs(token_ids, read)

    def _check_prompt(self, handle: int) -> None:
        if self._prompt is not None and self._prompt.num_left:
            raise violation(
                f"the logprobs of {self._prompt.num_left} tokens of the prompt of request {handle} "
                "are missing"
            )

    def refuse_tokens(self, handle: int, count: int) -> None:
        """Raises the error for more tokens than `num_tokens_left`."""
        if not self._is_admitted:
            raise violation(f"tokens of request {handle} came before its admission")
        num_tokens = self._max_num_tokens - self.num_tokens_left + count
        raise violation(
            f"request {handle} got {num_tokens} tokens, over {self._max_num_tokens}, "
            "the limit of the request or of the model's length"
        )

    def check_finish(self, handle: int, finish: engine_pb2.Finish) -> None:
        """Checks a finish for a known reason."""
        # Resumed tokens may end a request before it is admitted.
        if not self._is_admitted and self._last_resumed is None:
            raise violation(f"request {handle} finished before its admission")
        if self._is_admitted:
            self._check_prompt(handle)
        if finish.reason == engine_pb2.FINISH_REASON_LENGTH:
            num_left = self.num_tokens_left if self._is_admitted else self._max_num_tokens
            if num_left:
                raise violation(f"request {handle} finished by length, {num_left} tokens too early")
        elif finish.reason == engine_pb2.FINISH_REASON_STOP:
            self._check_stop(handle, finish)

    def _check_stop(self, handle: int, finish: engine_pb2.Finish) -> None:
        if not finish.HasField("stop_token_id"):
            raise violation(f"request {handle} stopped without a stop token")
        token_id = finish.stop_token_id
        if token_id not in self._end_token_ids:
            raise violation(f"request {handle} stopped at token {token_id}, which does not end it")
        has_new = self._is_admitted and self.num_tokens_left < self._max_num_tokens
        if not has_new and token_id != self._last_resumed:
            raise violation(f"request {handle} stopped at token {token_id}, which was never sent")
