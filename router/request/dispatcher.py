"""Sends each request to an engine, and on to another one if that engine fails."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol

from protos.wire import block_hash
from protos.wire.status import Reason
from router.engines.catalogue import RETRY_SECONDS
from router.engines.fleet import Fleet
from router.errors import EngineError, NoEngine, QueueFull, RequestError
from router.placement.policy import POLICIES, Placement, Query, costs, place
from router.request.blame import judged
from router.request.failover import Failover
from router.request.retry_budget import RetryBudget
from router.request.support import refusal
from router.types.engine_events import Admitted, EngineEvent, PromptLogprobs, TokenRequest, Tokens
from router.types.engine_state import Demands, EngineState, ModelInfo

_logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10.0
"""How long a request with tokens waits for an engine that can continue it."""
_PATIENCE_STEP_SECONDS = 0.1


class DispatchObserver(Protocol):
    """Receives what the metrics, which are above this layer, need to know of each request."""

    def request_placed(self, placement: Placement, seconds: float, added: float | None) -> None:
        """An engine was chosen, which took this long; again for each retry.

        Args:
            placement: The choice.
            seconds: What it took.
            added: All that the router has added to the request's time by then, in seconds; None
                for a retry.
        """

    def request_admitted(self, placement: Placement, num_cached_tokens: int) -> None:
        """An engine started a request and found this many of its tokens in its cache."""

    def request_retried(self, engine: str, error: RequestError) -> None:
        """A request leaves an engine that refused or lost it before its first token."""

    def request_resumed(self, error: RequestError, num_tokens: int) -> None:
        """A request with tokens leaves an engine that failed or handed it back.

        Another engine continues it from all of its tokens, `num_tokens` of them.
        """


class DispatchObservers(Protocol):
    """The observers of all models."""

    def of_model(self, name: str) -> DispatchObserver:
        """Returns that of a model which an engine serves."""


class Dispatcher:
    """Sends each request to the engine where it costs least, and on to another if that one fails.

    Belongs to the fleet's event loop and needs no lock.

    Args:
        fleet: The engines.
        placement: Name of the policy, one of `policy.POLICIES`.
        observers: Called for each request.
        rng: Breaks ties; tests set it.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        placement: str = "prefix",
        observers: DispatchObservers | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._fleet = fleet
        self._policy = POLICIES[placement]
        self._observers = observers
        self._rng = rng or random.Random()
        self._budget = RetryBudget()
        self._num_placements = 0
        self._ending: RequestError | None = None
        """The error with which every request ends from now on."""

    def model_info(self, name: str) -> ModelInfo:
        """Describes a model; an empty name means the only one. Raises as `Fleet.model_info`."""
        return self._fleet.model_info(name)

    def end_requests(self, error: RequestError) -> None:
        """Ends all requests with an error: those on engines, those waiting, and new ones."""
        self._ending = error
        self._fleet.end_requests(error)

    async def generate(self, request: TokenRequest) -> AsyncGenerator[EngineEvent, None]:
        """Streams the events of one request from the engine where it costs least.

        Yields `Admitted` once, then `PromptLogprobs`, `Tokens` and `Finished`. If an engine
        refuses, loses or hands back the request, another engine continues from the tokens so far,
        so that a reader sees each token, and the logprobs of each token of the prompt, once. This
        repeats for every engine that is full or shutting down, and after failures as often as
        `Failover` allows. Closing the generator cancels the request on its engine at once.

        Raises:
            UnknownModel, NoEngine: As `model_info`; NoEngine also if no engine takes requests.
            InvalidRequest: No engine of the model supports the request's parameters.
            QueueFull: Every engine of the model is full.
            EngineError: An engine refused the request for its content, or failed.
        """
        loop = asyncio.get_running_loop()
        deadline = None if request.timeout is None else loop.time() + request.timeout
        info = self._fleet.model_of(request)
        failover = Failover(request, self._budget)
        is_announced = False
        while True:
            hashes = block_hashes(failover.request, info)
            placement = await self._find_place(info, failover, hashes)
            timeout = None if deadline is None else deadline - loop.time()
            admitted: Admitted | None = None
            member = self._fleet.member(placement.engine)
            assert member is not None, "just placed there"
            model = member.life.model
            try:
                # Without a deadline it stays as it is, and a copy takes time.
                request = failover.request
                if timeout is not None:
                    request = replace(request, timeout=timeout)
                sent = member.submit(request, hashes, placement)
                with closing(sent):
                    async for event in sent:
                        if isinstance(event, Admitted):
                            self._admit(failover, placement, event)
                            admitted = event
                            continue
                        if isinstance(event, Tokens):
                            failover.add_tokens(event.token_ids)
                        elif isinstance(event, PromptLogprobs):
                            unseen = failover.unseen(event)
                            if unseen is None:
                                continue
                            event = unseen
                        # Until an engine sends more than that, another may still replace it.
                        if admitted is not None and not is_announced:
                            is_announced = True
                            yield admitted.followed()
                        yield event
                return
            except (EngineError, QueueFull) as error:
                self._leave(
                    failover, placement.engine, model, error, is_admitted=admitted is not None
                )

    def place(self, info: ModelInfo, failover: Failover, hashes: Sequence[int]) -> Placement | None:
        """Chooses the engine where a request costs least now; None if there is none.

        Args:
            info: The model that the prompt was tokenized for.
            failover: The request, and the engines that it may not go to.
            hashes: Hashes of the full blocks of its tokens, from `block_hashes`.
        """
        start = time.perf_counter()
        request = failover.request
        num_tokens = request.num_known_tokens
        demands = Demands.of(request.sampling_params)
        # An engine always computes the last token, so its block is never a cache hit. For logprobs
        # of the prompt, it computes all of them.
        is_cached = request.sampling_params.prompt_logprobs is None
        usable = hashes[: max(0, num_tokens - 1) // info.block_size if is_cached else 0]
        query = Query(
            model=info.name,
            fingerprint=info.fingerprint,
            num_prompt_tokens=num_tokens,
            num_sequence_tokens=self._num_sequence_tokens(info.name, request, demands),
            max_tokens=_num_tokens_left(request),
            num_cached_tokens={
                engine: count * info.block_size
                for engine, count in self._fleet.match(usable).items()
            },
            demands=demands,
            excluded=frozenset(failover.refused),
            turn=self._num_placements,
        )
        engines = self._fleet.engines()
        placement = place(self._policy, engines, query, self._rng)
        member = None if placement is None else self._fleet.member(placement.engine)
        if placement is None or member is None or not member.is_of(info):
            return None
        seconds = time.perf_counter() - start
        self._num_placements += 1
        if self._observers is not None:
            added = None if failover.is_placed else request.pipeline_seconds + seconds
            self._observers.of_model(info.name).request_placed(placement, seconds, added)
        failover.is_placed = True
        if _logger.isEnabledFor(logging.DEBUG):
            _logger.debug(
                "request placed request_id=%s engine=%s predicted=%d best=%d costs_ms=%s",
                request.request_id,
                placement.engine,
                placement.num_predicted_cached_tokens,
                placement.num_best_cached_tokens,
                ",".join(f"{engine}:{cost}" for engine, cost in costs(engines, query).items()),
            )
        return placement

    async def _find_place(
        self, info: ModelInfo, failover: Failover, hashes: Sequence[int]
    ) -> Placement:
        """Chooses an engine; a request that already has tokens waits for one if it must.

        During a rolling restart, all engines can be away for a moment.
        """
        while True:
            if self._ending is not None:
                raise self._ending
            placement = None if failover.must_wait else self.place(info, failover, hashes)
            if placement is not None:
                return placement
            if not failover.may_wait or failover.waited >= _PATIENCE_SECONDS:
                # A client that already has tokens needs the reason why they stopped.
                raise (
                    failover.loss
                    or self._unsupported(info.name, failover.request)
                    or _no_place(info.name, failover.refused)
                )
            await asyncio.sleep(_PATIENCE_STEP_SECONDS)
            failover.wait(_PATIENCE_STEP_SECONDS, self._fleet.epoch_of)

    def _num_sequence_tokens(
        self, model: str, request: TokenRequest, demands: Demands | None
    ) -> int:
        """Returns the sequence length that the request's engine must be able to hold.

        A request too long for all engines goes to one with the longest limit, which refuses it.
        """
        lengths = [
            info.max_sequence_len
            for info in self._fleet.served()
            if info.name == model and (demands is None or info.supports(demands))
        ]
        longest = max(lengths, default=0)
        max_tokens = request.sampling_params.max_tokens
        asked = len(request.prompt_token_ids) + (1 if max_tokens is None else max_tokens)
        return min(max(asked, request.num_known_tokens), longest)

    def _unsupported(self, model: str, request: TokenRequest) -> RequestError | None:
        """Returns the error for parameters that no engine of the model supports, or None.

        Engines that are full or away count as well: one of them may take the request later.
        """
        engines = [e for e in self._fleet.engines() if e.model and e.model.name == model]
        if not any(engine.state is EngineState.SERVING for engine in engines):
            return None
        return refusal(request.sampling_params, [e.model for e in engines if e.model])

    def _admit(self, failover: Failover, placement: Placement, admitted: Admitted) -> None:
        failover.admit(admitted)
        if self._observers is not None:
            observer = self._observers.of_model(failover.request.model)
            observer.request_admitted(placement, admitted.num_cached_tokens)

    def _leave(
        self,
        failover: Failover,
        engine: str,
        model: ModelInfo | None,
        error: EngineError | QueueFull,
        *,
        is_admitted: bool,
    ) -> None:
        """Notes that a request leaves an engine; raises the error if the request ends with it."""
        if isinstance(error, EngineError):
            error = judged(error, failover.request, engine, model)
        num_resumed_before = len(failover.request.resume_token_ids)
        epoch = model.epoch if model is not None else 0
        failover.leave(engine, error, epoch=epoch, is_admitted=is_admitted)
        num_resumed = len(failover.request.resume_token_ids)
        if self._observers is not None:
            observer = self._observers.of_model(failover.request.model)
            if num_resumed > num_resumed_before:
                observer.request_resumed(error, num_resumed)
            else:
                observer.request_retried(engine, error)
        _logger.info(
            "request moved request_id=%s engine=%s reason=%s resumed_tokens=%d",
            failover.request.request_id,
            engine,
            error.status.reason,
            num_resumed,
        )


def _num_tokens_left(request: TokenRequest) -> int | None:
    limit = request.sampling_params.max_tokens
    return None if limit is None else max(0, limit - len(request.resume_token_ids))


def block_hashes(request: TokenRequest, info: ModelInfo) -> list[int]:
    """Returns the hashes by which engines identify the full blocks of a request's tokens."""
    root = block_hash.root_digest(info.fingerprint, cache_salt=request.cache_salt)
    token_ids = request.prompt_token_ids + request.resume_token_ids
    digests = block_hash.block_digests(root, token_ids, info.block_size)
    return block_hash.low_64_bits_of_all(digests).tolist()


def _no_place(model: str, refused: Mapping[str, RequestError]) -> RequestError:
    """Returns the error for a client when no engine is left to try."""
    statuses = [error.status for error in refused.values()]
    full = [status for status in statuses if status.reason == Reason.QUEUE_FULL]
    if full:
        return QueueFull(
            f'{len(full)} engines of model "{model}" are full, and no other engine takes requests',
            {"model": model, "full_engines": str(len(full))},
            retry_after=min(status.retry_after or RETRY_SECONDS for status in full),
        )
    for error in refused.values():
        if error.status.reason == Reason.ENGINE_FAILED:
            return error
    return NoEngine(
        f'no engine of model "{model}" takes requests now',
        {"model": model},
        retry_after=RETRY_SECONDS,
    )
