"""This router's requests on one connection to an engine, and the engine's messages about them.

One message is one engine step, so that a token costs a slice and a list append. Tokens for a slow
reader merge into one event. Every message is checked against the contract.
"""

from collections.abc import Callable, Sequence

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.status import ErrorStatus
from router.engines.connection_loss import violation
from router.engines.convert import to_failure, to_outcome, to_submission
from router.engines.outbox import Outbox
from router.engines.request_stream import RequestStream, max_tokens_waiting
from router.engines.stream_contract import RequestContract
from router.errors import EngineLost, QueueFull, RequestError
from router.types.engine_events import TokenRequest
from router.types.engine_state import ModelInfo

_MAX_HANDLE = 2**32 - 1

_LARGE_STEP_TOKENS = 65_536
"""From this many tokens on, the possible number is counted before any token is read."""


class OpenRequests:
    """The requests of one GenerateMany stream.

    Args:
        address: "host:port" of the engine.
        model: The engine's model information.
        max_open: Requests in progress; more are refused.
        max_buffered_tokens: Unread tokens of one request; if more are unread when further ones
            come, it fails.
        on_idle: Called when the last request in progress has ended.

    Attributes:
        outbox: What is to be sent.
    """

    def __init__(
        self,
        address: str,
        model: ModelInfo,
        *,
        max_open: int,
        max_buffered_tokens: int,
        on_idle: Callable[[], None],
    ) -> None:
        self.outbox = Outbox()
        self._address = address
        self._model = model
        self._max_open = max_open
        self._max_buffered_tokens = max_buffered_tokens
        self._on_idle = on_idle
        self._requests: dict[int, RequestContract] = {}
        self._with_logprobs: set[int] = set()
        """Handles of requests with logprobs; while there are none, steps take the shorter way."""
        self._next_handle = 1
        self._have_all_been_issued = False
        self._num_late = 0

    def __len__(self) -> int:
        return len(self._requests)

    def submit(self, request: TokenRequest) -> RequestStream:
        """Puts a request into the outbox; returns its event stream at once.

        Raises:
            InvalidRequest: The request is larger than an engine accepts.
            QueueFull: Too many requests are in progress.
        """
        if len(self._requests) >= self._max_open:
            raise QueueFull(
                f"{self._max_open} requests of this router are in progress on engine "
                f"{self._address}, the limit of max_open_requests",
                {"engine": self._address, "max_open_requests": str(self._max_open)},
                retry_after=1.0,
            )
        handle = self._free_handle()
        self.outbox.submit(to_submission(handle, request, self._model))
        num_top = request.sampling_params.logprobs
        max_waiting = self._max_buffered_tokens
        if num_top:
            max_waiting = max_tokens_waiting(max_waiting, num_top)
        stream = RequestStream(self._address, lambda: self._cancel(handle), max_waiting)
        contract = self._requests[handle] = RequestContract(stream, request, self._model)
        if contract.has_logprobs:
            self._with_logprobs.add(handle)
        return stream

    def end_all(self, error: RequestError) -> None:
        """Ends every open request with an error, and cancels it on the engine."""
        for handle, request in list(self._requests.items()):
            request.stream.end(error)
            self._cancel(handle)

    def lose_all(self, status: ErrorStatus) -> None:
        """Ends every open request with EngineLost."""
        requests, self._requests = self._requests, {}
        self._with_logprobs.clear()
        for request in requests.values():
            request.stream.end(EngineLost(status))
        self._on_idle()

    def deliver(self, message: engine_pb2.GenerateManyResponse) -> None:
        """Passes a step's events to the streams of their requests.

        Raises:
            ConnectionLost: The step breaks the contract (VIOLATION). Nothing beyond the contract
                has been passed on.
        """
        requests = self._requests
        for admission in message.admissions:
            request = requests.get(admission.handle)
            if request is None:
                self._take_late(admission.handle, 1)
            else:
                request.admit(admission.handle, admission.admission)
        if message.prompt_logprobs:
            self._deliver_prompt_logprobs(message)
        if message.handles or message.token_ids or message.token_counts or message.logprobs:
            self._deliver_tokens(message)
        for finish in message.finishes:
            request = requests.get(finish.handle)
            if request is None:
                self._take_late(finish.handle, 1)
            else:
                request.check_finish(finish.handle, finish.finish)
                self._forget(finish.handle)
                request.stream.end(to_outcome(self._address, finish.finish))
        for failure in message.failures:
            request = requests.get(failure.handle)
            if request is None:
                self._take_late(failure.handle, 1)
            else:
                self._forget(failure.handle)
                request.stream.end(to_failure(failure.error))
        if not requests:
            self._on_idle()

    def _deliver_tokens(self, message: engine_pb2.GenerateManyResponse) -> None:
        num_tokens = len(message.token_ids)
        handles = message.handles
        if num_tokens > _LARGE_STEP_TOKENS and num_tokens > self._num_possible_tokens():
            raise violation(f"{num_tokens} tokens in one step are more than its requests can get")
        if len(handles) != len(message.token_counts) or len(handles) > num_tokens:
            raise violation("a step's token counts do not match its tokens, or contain zeros")
        if not num_tokens:
            raise violation("a step has logprobs, but no tokens")
        token_counts = message.token_counts[:]
        # Slicing is faster than making a list.
        token_ids = message.token_ids[:]
        if sum(token_counts) != num_tokens or 0 in token_counts:
            raise violation("a step's token counts do not match its tokens, or contain zeros")
        if max(token_ids) >= self._model.vocab_size:
            raise violation(f"token {max(token_ids)} is outside 0 to {self._model.vocab_size - 1}")
        if self._with_logprobs or message.logprobs:
            self._deliver_with_logprobs(handles, token_counts, token_ids, message)
            return
        requests = self._requests
        start = 0
        for handle, count in zip(handles, token_counts, strict=True):
            end = start + count
            request = requests.get(handle)
            if request is None:
                self._take_late(handle, count)
            else:
                num_left = request.num_tokens_left - count
                if num_left < 0:
                    request.refuse_tokens(handle, count)
                request.num_tokens_left = num_left
                request.stream.add_tokens(token_ids[start:end])
            start = end

    def _deliver_with_logprobs(
        self,
        handles: Sequence[int],
        token_counts: Sequence[int],
        token_ids: list[int],
        message: engine_pb2.GenerateManyResponse,
    ) -> None:
        """Passes on tokens, checked as far as those of all requests go, with their logprobs."""
        logprobs = {entry.handle: entry.logprobs for entry in message.logprobs}
        if len(logprobs) != len(message.logprobs):
            raise violation("a step has logprobs of one request in several places")
        start = 0
        for handle, count in zip(handles, token_counts, strict=True):
            end = start + count
            request = self._requests.get(handle)
            own = logprobs.pop(handle, None)
            if request is None:
                self._take_late(handle, count)
            else:
                request.add_tokens(handle, token_ids[start:end], own)
            start = end
        for handle in logprobs:
            raise violation(f"a step has logprobs of request {handle}, but no tokens of it")

    def _deliver_prompt_logprobs(self, message: engine_pb2.GenerateManyResponse) -> None:
        for entry in message.prompt_logprobs:
            request = self._requests.get(entry.handle)
            if request is None:
                num_positions = len(entry.prompt_logprobs.logprobs.logprobs)
                self._take_late(entry.handle, max(1, num_positions))
            else:
                request.add_prompt_logprobs(entry.handle, entry.prompt_logprobs)

    def _num_possible_tokens(self) -> int:
        """Returns how many tokens one step can bring, including those of cancelled requests.

        Each request counts at most `max_buffered_tokens`. An engine of ours merges so many only if
        its stream is held up for as long as it takes to generate them.
        """
        bound = self._max_buffered_tokens
        open_ones = self._requests.values()
        return _LARGE_STEP_TOKENS + sum(min(one.num_tokens_left, bound) for one in open_ones)

    def _take_late(self, handle: int, count: int) -> None:
        """Accepts tokens or events that were in transit when their request was cancelled."""
        if not handle or (handle >= self._next_handle and not self._have_all_been_issued):
            raise violation(f"it names request {handle}, which was never sent")
        self._num_late -= count
        if self._num_late < 0:
            raise violation(f"it continues request {handle}, which has ended")

    def _cancel(self, handle: int) -> None:
        request = self._requests.get(handle)
        if request is not None:
            self._forget(handle)
        was_sent = self.outbox.cancel(handle)
        if was_sent and request is not None:
            self._num_late += request.num_late
        if not self._requests:
            self._on_idle()

    def _forget(self, handle: int) -> None:
        request = self._requests.pop(handle)
        if request.has_logprobs:
            self._with_logprobs.discard(handle)

    def _free_handle(self) -> int:
        while True:
            handle = self._next_handle
            self._next_handle = handle % _MAX_HANDLE + 1
            if handle == _MAX_HANDLE:
                self._have_all_been_issued = True
            if handle not in self._requests:
                return handle
