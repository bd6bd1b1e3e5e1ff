"""The state of one request across engines: its tokens, and the engines that it may not go to."""

from array import array
from collections.abc import Callable
from dataclasses import replace

from protos.wire.status import Reason
from router.errors import EngineError, EngineLost, QueueFull, RequestError
from router.request.retry_budget import RetryBudget
from router.types.engine_events import Admitted, PromptLogprobs, TokenRequest

_MAX_FAILURES = 8
"""The most engine failures of one request."""
_MAX_FAILURES_IN_A_ROW = 2
"""Failures without a new token in between: the request itself may be breaking the engines."""
_FIRST_PAUSE_SECONDS = 0.25
"""Pause before the attempt after the second loss in a row; doubles with each further loss."""

# Refusals for these reasons mean no fault, neither of the request nor of the engine.
_REFUSALS = frozenset({Reason.QUEUE_FULL, Reason.DRAINING, Reason.STARTING})


class Failover:
    """Keeps the tokens of a request, so that another engine can continue where one stopped.

    If the connection breaks before the engine admitted the request, the engine may never have
    received it. That is a loss, not a failure: it costs one attempt within the request's waiting
    time. But a request without tokens may have caused two such losses itself. Then it waits until
    one of those engines is back and its epoch shows that it has not restarted.

    Attributes:
        request: The request for the next engine: with the tokens so far, and the seed of the first
            engine's draws.
        refused: Engines that may not be tried, and why.
        loss: Why the last engine that sent tokens, or logprobs of the prompt, was left, or None.
        is_placed: Whether an engine was ever chosen.
        waited: Seconds spent waiting for an engine since the last failure, or since leaving an
            engine that had sent output. They are counted, not measured: while this process is
            stopped, no engine can come back.
    """

    def __init__(self, request: TokenRequest, budget: RetryBudget) -> None:
        self.request = request
        self.refused: dict[str, RequestError] = {}
        self.loss: RequestError | None = None
        self.is_placed = False
        self.waited = 0.0
        self._budget = budget
        self._token_ids = array("i")
        self._seed = request.sampling_params.seed
        self._num_new_tokens = 0
        self._next_prompt_position = 1
        """Of the prompt; the logprobs of the tokens before it were delivered."""
        self._has_new_prompt_logprobs = False
        self._num_failures = 0
        self._num_failures_in_a_row = 0
        self._num_losses_in_a_row = 0
        self._pause = 0.0
        self._lost: dict[str, int] = {}
        """Epochs of the engines whose connection broke before they admitted the request."""
        budget.add_request()

    @property
    def must_wait(self) -> bool:
        """Whether no engine may get the request now."""
        return self._pause > 0 or self._num_suspected >= _MAX_FAILURES_IN_A_ROW

    @property
    def may_wait(self) -> bool:
        """Whether the request may wait for an engine: it has tokens, or all engines were lost."""
        are_all_lost = self._num_losses_in_a_row > 0 and self.refused.keys() <= self._lost.keys()
        return self.loss is not None or are_all_lost

    def wait(self, seconds: float, epoch_of: Callable[[str], int | None]) -> None:
        """Adds to the time waited, and allows engines again where that is safe.

        Args:
            seconds: The time waited.
            epoch_of: Returns the epoch of an engine, or None if it takes no requests.
        """
        self.waited += seconds
        self._pause = max(0.0, self._pause - seconds)
        if self.loss is not None:
            self.refused.clear()
            self._lost.clear()
            self._num_failures_in_a_row = 0
            return
        for engine, epoch in list(self._lost.items()):
            if epoch_of(engine) == epoch:
                del self._lost[engine]
                self.refused.pop(engine, None)

    def admit(self, admitted: Admitted) -> None:
        """Keeps the seed, which the engine draws if the client gives none."""
        self._seed = admitted.seed

    def add_tokens(self, token_ids: list[int]) -> None:
        """Keeps new tokens."""
        self._token_ids.extend(token_ids)
        self._num_new_tokens += len(token_ids)

    def unseen(self, event: PromptLogprobs) -> PromptLogprobs | None:
        """Returns what the reader has not got yet of a prompt's logprobs; None if it has all.

        Each engine computes them from the start.
        """
        end = event.first_position + len(event.logprobs.logprobs)
        if end <= self._next_prompt_position:
            return None
        num_seen = self._next_prompt_position - event.first_position
        self._next_prompt_position = end
        self._has_new_prompt_logprobs = True
        if num_seen <= 0:
            return event
        rest = event.logprobs.part(num_seen, len(event.logprobs.logprobs))
        return PromptLogprobs(first_position=event.first_position + num_seen, logprobs=rest)

    def leave(
        self,
        engine: str,
        error: EngineError | QueueFull,
        *,
        epoch: int = 0,
        is_admitted: bool = True,
    ) -> None:
        """Prepares to continue on another engine.

        Args:
            engine: Address of the engine that ended the request.
            error: How it ended the request.
            epoch: The engine's epoch when the request was sent.
            is_admitted: Whether the engine had admitted the request.

        Raises:
            EngineError, QueueFull: The given error, if no other engine should be tried: the request
                is at fault, or engines failed too often.
        """
        is_new = self._num_new_tokens > 0 or self._has_new_prompt_logprobs
        if is_new:
            self._num_failures_in_a_row = self._num_losses_in_a_row = 0
            self._lost.clear()
        reason = error.status.reason
        if reason not in _REFUSALS:
            if reason != Reason.ENGINE_FAILED:
                raise error
            if isinstance(error, EngineLost) and not is_admitted and not is_new:
                self._note_loss(engine, epoch)
            elif not self._may_fail_again():
                raise error
        if is_new:
            # It made progress, so engines that refused it before may take it now.
            self.refused.clear()
            self.loss = error
            self.waited = 0.0
            params = replace(self.request.sampling_params, seed=self._seed)
            if self._token_ids:
                # The logprobs of the prompt came before the first token.
                params = replace(params, prompt_logprobs=None)
            self.request = replace(
                self.request, sampling_params=params, resume_token_ids=self._token_ids[:]
            )
            self._num_new_tokens = 0
            self._has_new_prompt_logprobs = False
        self.refused[engine] = error

    @property
    def _num_suspected(self) -> int:
        """Engines in a row that the request may have broken."""
        # Its output proves that it can be computed, so it did not break engines that never got it.
        num_lost = 0 if self.loss is not None else len(self._lost)
        return self._num_failures_in_a_row + num_lost

    def _note_loss(self, engine: str, epoch: int) -> None:
        self._lost[engine] = epoch
        self._num_losses_in_a_row += 1
        if self._num_losses_in_a_row > 1:
            self._pause = _FIRST_PAUSE_SECONDS * 2.0 ** (self._num_losses_in_a_row - 2)

    def _may_fail_again(self) -> bool:
        self._num_failures += 1
        self._num_failures_in_a_row += 1
        self.waited = 0.0
        return (
            self._num_suspected < _MAX_FAILURES_IN_A_ROW
            and self._num_failures <= _MAX_FAILURES
            and self._budget.take()
        )
