"""One request on its way from engine to engine: what it has, and where it may not go."""

import time
from array import array
from dataclasses import replace

from protos.wire.status import Reason
from router.errors import EngineRefused, QueueFull, RequestError
from router.retry_budget import RetryBudget
from router.types import Admitted, TokenRequest

_MAX_FAILURES = 8
"""Engines that may fail under one request."""

# An engine that refuses for these reasons has done no harm to the request and none to itself.
_REFUSALS = frozenset({Reason.QUEUE_FULL, Reason.DRAINING, Reason.STARTING})


class Journey:
    """Keeps the tokens of a request, so that another engine can go on where one stopped.

    Attributes:
        request: What an engine is to be asked now: with the tokens so far and the seed that the
            first engine drew them with.
        refused: Engines out of question, and why.
        loss: Why the last engine was left after it had sent tokens, or None.
        lost_at: When an engine last failed it, or was left after it had sent tokens, by
            `time.monotonic`. Engines that refuse it do not move this.
    """

    def __init__(self, request: TokenRequest, budget: RetryBudget) -> None:
        self.request = request
        self.refused: dict[str, RequestError] = {}
        self.loss: RequestError | None = None
        self.lost_at = 0.0
        self._budget = budget
        self._token_ids = array("i")
        self._seed = request.sampling_params.seed
        self._num_failures = 0
        self._num_new_tokens = 0
        budget.add_request()

    def admit(self, admitted: Admitted) -> None:
        """Keeps the seed, which an engine draws when the client gives none."""
        self._seed = admitted.seed

    def add_tokens(self, token_ids: list[int]) -> None:
        """Keeps new tokens."""
        self._token_ids.extend(token_ids)
        self._num_new_tokens += len(token_ids)

    def leave(self, engine: str, error: EngineRefused | QueueFull) -> None:
        """Prepares to go on at another engine than this one, which ended the request so.

        Raises:
            EngineRefused, QueueFull: The error, if no other engine should be tried: it lies in the
                request, or engines failed too often.
        """
        reason = error.status.reason
        if reason not in _REFUSALS:
            if reason != Reason.ENGINE_FAILED or not self._may_fail_again():
                raise error
            self._num_failures += 1
            self.lost_at = time.monotonic()
        if self._num_new_tokens:
            # It got on, so those that could not take it before may now.
            self.refused.clear()
            self.loss = error
            self.lost_at = time.monotonic()
            params = replace(self.request.sampling_params, seed=self._seed)
            self.request = replace(
                self.request, sampling_params=params, resume_token_ids=self._token_ids[:]
            )
            self._num_new_tokens = 0
        self.refused[engine] = error

    def _may_fail_again(self) -> bool:
        if not self._num_new_tokens and any(
            error.status.reason == Reason.ENGINE_FAILED for error in self.refused.values()
        ):
            # Two engines in a row failed without a token of it: it may be what breaks them.
            return False
        return self._num_failures < _MAX_FAILURES and self._budget.take()
