"""One request on its way from engine to engine: what it has, and where it may not go."""

from array import array
from collections.abc import Callable
from dataclasses import replace

from protos.wire.status import Reason
from router.errors import EngineError, EngineLost, QueueFull, RequestError
from router.request.retry_budget import RetryBudget
from router.types import Admitted, TokenRequest

_MAX_FAILURES = 8
"""Engines that may fail under one request."""
_MAX_FAILURES_IN_A_ROW = 2
"""Without a token of it in between: it may be what breaks them."""
_FIRST_PAUSE_SECONDS = 0.25
"""Before the attempt that follows the second loss in a row; doubles with each more."""

# An engine that refuses for these reasons has done no harm to the request and none to itself.
_REFUSALS = frozenset({Reason.QUEUE_FULL, Reason.DRAINING, Reason.STARTING})


class Failover:
    """Keeps the tokens of a request, so that another engine can go on where one stopped.

    An engine whose connection breaks before it admitted the request may never have received it:
    that is no failure, but one attempt less in the time that the request waits. Where the request
    has no token yet, two such engines could also be its victims. Then it waits until one of them is
    back and shows by its epoch that it has not restarted.

    Attributes:
        request: What an engine is to be asked now: with the tokens so far and the seed that the
            first engine drew them with.
        refused: Engines out of question, and why.
        loss: Why the last engine was left after it had sent tokens, or None.
        waited: Seconds that it has waited for an engine since one last failed it, or was left after
            it had sent tokens. They are counted, not measured: while this process stands still, no
            engine can come back.
    """

    def __init__(self, request: TokenRequest, budget: RetryBudget) -> None:
        self.request = request
        self.refused: dict[str, RequestError] = {}
        self.loss: RequestError | None = None
        self.waited = 0.0
        self._budget = budget
        self._token_ids = array("i")
        self._seed = request.sampling_params.seed
        self._num_new_tokens = 0
        self._num_failures = 0
        self._num_failures_in_a_row = 0
        self._num_losses_in_a_row = 0
        self._pause = 0.0
        self._lost: dict[str, int] = {}
        """Epochs of the engines whose connections broke before they admitted the request."""
        budget.add_request()

    @property
    def must_wait(self) -> bool:
        """Whether no engine should get the request now."""
        return self._pause > 0 or self._num_suspected >= _MAX_FAILURES_IN_A_ROW

    @property
    def may_wait(self) -> bool:
        """Whether it waits if there is no engine for it: it has tokens, or all were lost."""
        are_all_lost = self._num_losses_in_a_row > 0 and self.refused.keys() <= self._lost.keys()
        return self.loss is not None or are_all_lost

    def wait(self, seconds: float, epoch_of: Callable[[str], int | None]) -> None:
        """Notes that it has waited, and lets it go where it could not.

        Args:
            seconds: How long.
            epoch_of: Returns the epoch of an engine, None unless it takes requests.
        """
        self.waited += seconds
        self._pause = max(0.0, self._pause - seconds)
        if self.request.resume_token_ids:
            self.refused.clear()
            self._lost.clear()
            self._num_failures_in_a_row = 0
            return
        for engine, epoch in list(self._lost.items()):
            if epoch_of(engine) == epoch:
                del self._lost[engine]
                self.refused.pop(engine, None)

    def admit(self, admitted: Admitted) -> None:
        """Keeps the seed, which an engine draws when the client gives none."""
        self._seed = admitted.seed

    def add_tokens(self, token_ids: list[int]) -> None:
        """Keeps new tokens."""
        self._token_ids.extend(token_ids)
        self._num_new_tokens += len(token_ids)

    def leave(
        self,
        engine: str,
        error: EngineError | QueueFull,
        *,
        epoch: int = 0,
        is_admitted: bool = True,
    ) -> None:
        """Prepares to go on at another engine than this one, which ended the request so.

        Args:
            engine: Its address.
            error: How.
            epoch: The engine's, when it was sent the request.
            is_admitted: Whether the engine had admitted the request.

        Raises:
            EngineError, QueueFull: The error, if no other engine should be tried: it lies in the
                request, or engines failed too often.
        """
        is_new = self._num_new_tokens > 0
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
            # It got on, so those that could not take it before may now.
            self.refused.clear()
            self.loss = error
            self.waited = 0.0
            params = replace(self.request.sampling_params, seed=self._seed)
            self.request = replace(
                self.request, sampling_params=params, resume_token_ids=self._token_ids[:]
            )
            self._num_new_tokens = 0
        self.refused[engine] = error

    @property
    def _num_suspected(self) -> int:
        """Engines in a row that the request may have broken."""
        # One whose tokens are computed already has broken none of those that never had it.
        num_lost = 0 if self.request.resume_token_ids else len(self._lost)
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
