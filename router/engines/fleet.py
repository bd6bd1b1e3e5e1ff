"""All engines of a router: who is there, who gets a request, what comes back.

`run` keeps every engine connected; `generate` is the whole life of one request below the text. The
fleet belongs to one event loop and needs no lock.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from protos.wire import block_hash
from protos.wire.status import Reason
from router.engines import catalogue
from router.engines.catalogue import RETRY_SECONDS
from router.engines.client import ClientSettings, EngineClient
from router.engines.connection_loss import Fault, ends_task
from router.engines.member import FleetMember
from router.engines.tokenizer_source import TokenizerSource
from router.errors import (
    EngineRefused,
    NoEngine,
    QueueFull,
    RequestError,
)
from router.placement.policy import POLICIES, Placement, Query, costs, place
from router.placement.prefix_index import IndexStatistics, PrefixIndex
from router.request.blame import judged
from router.request.failover import Journey
from router.request.retry_budget import RetryBudget
from router.types import (
    Admitted,
    EngineEvent,
    EngineSnapshot,
    ModelInfo,
    ModelSnapshot,
    TokenRequest,
    Tokens,
)

_logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10.0
"""What a request with tokens waits for an engine that goes on with it."""
_PATIENCE_STEP_SECONDS = 0.1
_LEAVE_POLL_SECONDS = 0.25
_SWEEP_SECONDS = 1.0


class FleetObserver(Protocol):
    """Learns of each request what metrics want to know."""

    def request_placed(self, placement: Placement, seconds: float) -> None:
        """An engine was chosen, which took this long; again for each retry."""

    def request_admitted(self, placement: Placement, num_cached_tokens: int) -> None:
        """An engine began with a request and found this many of its tokens in its cache."""

    def request_retried(self, engine: str, error: RequestError) -> None:
        """A request leaves an engine that refused or lost it before a token."""

    def request_resumed(self, error: RequestError, num_tokens: int) -> None:
        """A request leaves an engine that failed or handed it back after tokens of it.

        Another is to go on with all that it has, which are so many tokens.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatistics:
    """What the fleet counts itself; of single requests, its observer learns."""

    index: IndexStatistics
    num_connections: int
    """How often a connection to an engine came up, of all engines."""
    num_faults: Mapping[Fault, int]
    """What engines did that they must not, by kind."""


class Fleet:
    """The engines of a router.

    Args:
        addresses: "host:port" of each engine; `set_addresses` changes them.
        placement: Name of the policy, one of `placement.POLICIES`.
        observer: Told of each request.
        settings: Bounds and waits of the connections.
        rng: Breaks ties; given by tests.
    """

    def __init__(
        self,
        addresses: Iterable[str],
        *,
        placement: str = "prefix",
        observer: FleetObserver | None = None,
        settings: ClientSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._policy = POLICIES[placement]
        self._observer = observer
        self._rng = rng or random.Random()
        self._index = PrefixIndex()
        self._budget = RetryBudget()
        self._tokenizers = TokenizerSource(self._tokenizer_holders)
        self._ready = asyncio.Event()
        self._unready = asyncio.Event()
        self._unready.set()
        self._settings = settings
        self._members: dict[str, FleetMember] = {}
        self._newcomers: asyncio.Queue[FleetMember] = asyncio.Queue()
        self._addresses: dict[str, None] = {}
        """Of all engines there are; members are also those that have not left yet."""
        self._ending: RequestError | None = None
        """What every request ends with from now on."""
        self._num_past_connections = 0
        self._num_past_faults: Counter[Fault] = Counter()
        self._num_placements = 0
        self.set_addresses(addresses)

    def set_addresses(self, addresses: Iterable[str]) -> None:
        """Makes these all engines there are.

        One that is new is connected. One that is gone gets no new request, and is forgotten when
        its last one has ended or its connection is lost.
        """
        self._addresses = dict.fromkeys(addresses)
        for address in self._addresses:
            if address not in self._members:
                self._join(address)
        # Those that are gone first: an engine is not kept away by its own other name that leaves.
        for member in sorted(self._members.values(), key=lambda m: m.address in self._addresses):
            is_leaving = self._must_leave(member)
            if is_leaving != member.is_leaving:
                verb = "leaves" if is_leaving else "is back"
                _logger.info("engine %s engine=%s", verb, member.address)
                member.is_leaving = is_leaving
        self._state_changed()

    async def run(self) -> None:
        """Connects all engines and keeps them connected until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep(), name="index sweep")
            while True:
                member = await self._newcomers.get()
                tasks.create_task(self._run_member(member), name=f"engine {member.address}")

    async def _sweep(self) -> None:
        """Gives the memory of engines that left back, in slices."""
        while True:
            has_more = self._index.sweep()
            await asyncio.sleep(0 if has_more else _SWEEP_SECONDS)

    def _join(self, address: str) -> None:
        member = FleetMember(
            address, self._index, self._check_model, self._state_changed, self._settings
        )
        self._members[address] = member
        self._newcomers.put_nowait(member)

    def _must_leave(self, member: FleetMember) -> bool:
        if member.address not in self._addresses or member.is_closing:
            return True
        # While it was leaving, another name of the same engine may have taken its place.
        return member.is_leaving and self._twin(member, member.engine) is not None

    async def _run_member(self, member: FleetMember) -> None:
        """Keeps an engine connected until it has left."""
        try:
            await self._keep_connected(member)
        # A client survives what its engine does; a fault of it is not the other engines' end.
        except BaseException as error:
            if ends_task(error):
                raise
            _logger.exception("engine starts over engine=%s", member.address)
            self._num_past_faults[Fault.UNEXPECTED] += 1
            self._state_changed()
            await asyncio.sleep(RETRY_SECONDS)
        del self._members[member.address]
        self._index.remove_engine(member.address)
        self._num_past_connections += member.client.num_connections
        self._num_past_faults += member.client.num_faults
        _logger.info("engine has left engine=%s", member.address)
        if member.address in self._addresses:
            self._join(member.address)
        self._state_changed()

    async def _keep_connected(self, member: FleetMember) -> None:
        async with asyncio.TaskGroup() as tasks:
            connection = tasks.create_task(member.client.run())
            # Nobody announces the end of a request.
            while not member.is_done:  # noqa: ASYNC110
                await asyncio.sleep(_LEAVE_POLL_SECONDS)
            member.is_closing = True
            connection.cancel()

    async def wait_ready(self) -> None:
        """Waits until some engine takes requests."""
        await self._ready.wait()

    async def wait_unready(self) -> None:
        """Waits until no engine takes requests."""
        await self._unready.wait()

    def engines(self) -> list[EngineSnapshot]:
        """Returns what is known of each engine, in the order of their addresses as given."""
        return [member.snapshot() for member in self._members.values()]

    def models(self) -> list[ModelSnapshot]:
        """Returns the models of all connected engines, by name, with their longest length."""
        return catalogue.models(self._members.values())

    def model_info(self, name: str) -> ModelInfo:
        """Returns what is served under a name; an empty name means the only model.

        Raises:
            UnknownModel: Engines are connected, but none serves it, or a name is needed.
            NoEngine: No engine is connected that could.
        """
        return catalogue.find(name, self._members.values())

    async def fetch_tokenizer(self, model: ModelInfo) -> dict[str, bytes]:
        """Returns a model's tokenizer files by name, which have the digest that the model names.

        Raises:
            EngineRefused: No engine that announces this digest sent them.
        """
        return await self._tokenizers.fetch(model)

    def tokenizers_in_use(self) -> set[str]:
        """Returns the digests of the tokenizers that connected engines announce."""
        return {info.tokenizer_sha256 for info in self._served()}

    def _tokenizer_holders(self, sha256: str) -> dict[str, EngineClient]:
        return {
            member.address: member.client
            for member in self._members.values()
            if member.served is not None and member.served.tokenizer_sha256 == sha256
        }

    async def generate(self, request: TokenRequest) -> AsyncGenerator[EngineEvent, None]:
        """Streams the events of one request from the engine that suits it best.

        Yields `Admitted` once, then `Tokens`, then `Finished`. A request that its engine refuses,
        loses or hands back goes on at another engine with the tokens that it has, so that a reader
        sees each token once: as often as there are engines that say they are full or about to
        exit, and after failures as `Journey` allows. Closing the generator cancels the request on
        its engine at once.

        Raises:
            UnknownModel, NoEngine: As `model_info`; NoEngine also when no engine takes requests.
            QueueFull: Every engine of the model is full.
            EngineRefused: An engine refused the request for its content, or failed it.
        """
        loop = asyncio.get_running_loop()
        deadline = None if request.timeout is None else loop.time() + request.timeout
        info = catalogue.find_for(request, self._members.values())
        journey = Journey(request, self._budget)
        is_announced = False
        while True:
            hashes = _block_hashes(journey.request, info)
            placement = await self._find_place(info, journey, hashes)
            timeout = None if deadline is None else deadline - loop.time()
            admitted: Admitted | None = None
            member = self._members[placement.engine]
            model = member.client.model
            try:
                sent = member.dispatch(replace(journey.request, timeout=timeout), hashes, placement)
                with closing(sent):
                    async for event in sent:
                        if isinstance(event, Admitted):
                            self._admit(journey, placement, event)
                            admitted = event
                            continue
                        # Until an engine brings more than that, another may be the first.
                        if admitted is not None and not is_announced:
                            is_announced = True
                            yield admitted
                        if isinstance(event, Tokens):
                            journey.add_tokens(event.token_ids)
                        yield event
                return
            except (EngineRefused, QueueFull) as error:
                self._leave(
                    journey, placement.engine, model, error, is_admitted=admitted is not None
                )

    def end_requests(self, error: RequestError) -> None:
        """Ends every request under way, on an engine or not, and those that come, with an error."""
        self._ending = error
        for member in self._members.values():
            member.client.end_requests(error)

    def statistics(self) -> FleetStatistics:
        """Returns the counts so far."""
        return FleetStatistics(
            index=self._index.statistics(),
            num_connections=self._num_past_connections
            + sum(m.client.num_connections for m in self._members.values()),
            num_faults=sum(
                (m.client.num_faults for m in self._members.values()), self._num_past_faults
            ),
        )

    def _served(self) -> list[ModelInfo]:
        """Returns what the connected engines serve."""
        served = [member.served for member in self._members.values()]
        return [info for info in served if info is not None]

    def _num_sequence_tokens(self, model: str, request: TokenRequest) -> int:
        """Returns the length that the request's engine must be able to hold.

        One that is too long for all goes to an engine that can hold the most, which refuses it.
        """
        longest = max((i.max_sequence_len for i in self._served() if i.name == model), default=0)
        asked = len(request.prompt_token_ids) + (request.sampling_params.max_tokens or 1)
        return min(max(asked, request.num_known_tokens), longest)

    async def _find_place(
        self, info: ModelInfo, journey: Journey, hashes: Sequence[int]
    ) -> Placement:
        """Chooses an engine; for a request that has tokens already, waits for one if it must.

        Engines that are restarted one after the other can all be away for a moment.
        """
        while True:
            if self._ending is not None:
                raise self._ending
            placement = None if journey.must_wait else self._place(info, journey, hashes)
            if placement is not None:
                return placement
            if not journey.may_wait or journey.waited >= _PATIENCE_SECONDS:
                # A client that got tokens is told why they ended, not that others are full.
                raise journey.loss or _no_place(info.name, journey.refused)
            await asyncio.sleep(_PATIENCE_STEP_SECONDS)
            journey.wait(_PATIENCE_STEP_SECONDS, self._epoch_of)

    def _epoch_of(self, address: str) -> int | None:
        member = self._members.get(address)
        if member is None or not member.takes_requests or member.served is None:
            return None
        return member.served.epoch

    def _place(self, info: ModelInfo, journey: Journey, hashes: Sequence[int]) -> Placement | None:
        start = time.perf_counter()
        request = journey.request
        num_tokens = request.num_known_tokens
        # An engine always computes the last token, so its block is no hit even when it is held.
        usable = hashes[: max(0, num_tokens - 1) // info.block_size]
        query = Query(
            model=info.name,
            fingerprint=info.fingerprint,
            num_prompt_tokens=num_tokens,
            num_sequence_tokens=self._num_sequence_tokens(info.name, request),
            max_tokens=_num_tokens_left(request),
            num_cached_tokens={
                engine: count * info.block_size
                for engine, count in self._index.match(usable).items()
            },
            excluded=frozenset(journey.refused),
            turn=self._num_placements,
        )
        engines = self.engines()
        placement = place(self._policy, engines, query, self._rng)
        if placement is None or not self._members[placement.engine].is_of(info):
            return None
        seconds = time.perf_counter() - start
        self._num_placements += 1
        if self._observer is not None:
            self._observer.request_placed(placement, seconds)
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

    def _admit(self, journey: Journey, placement: Placement, admitted: Admitted) -> None:
        journey.admit(admitted)
        if self._observer is not None:
            self._observer.request_admitted(placement, admitted.num_cached_tokens)

    def _leave(
        self,
        journey: Journey,
        engine: str,
        model: ModelInfo | None,
        error: EngineRefused | QueueFull,
        *,
        is_admitted: bool,
    ) -> None:
        """Notes that a request leaves an engine; raises the error if it must end with it."""
        if isinstance(error, EngineRefused):
            error = judged(error, journey.request, engine, model)
        num_resumed_before = len(journey.request.resume_token_ids)
        epoch = model.epoch if model is not None else 0
        journey.leave(engine, error, epoch=epoch, is_admitted=is_admitted)
        num_resumed = len(journey.request.resume_token_ids)
        if self._observer is not None:
            if num_resumed > num_resumed_before:
                self._observer.request_resumed(error, num_resumed)
            else:
                self._observer.request_retried(engine, error)
        _logger.info(
            "request goes elsewhere request_id=%s engine=%s reason=%s resumed_tokens=%d",
            journey.request.request_id,
            engine,
            error.status.reason,
            num_resumed,
        )

    def _check_model(self, newcomer: FleetMember, info: ModelInfo) -> str:
        """Returns how an engine differs from those that serve a model of the same name.

        An engine that is connected by another address too is refused: counted twice, it would get
        twice its share, and a request that it failed could return to it.
        """
        if twin := self._twin(newcomer, info):
            return f"it is the same engine as {twin.address} (epoch {info.epoch})"
        return catalogue.difference(newcomer, info, self._members.values())

    def _twin(self, member: FleetMember, info: ModelInfo | None) -> FleetMember | None:
        """Returns another member, not leaving, whose address leads to the same engine."""
        for other in self._members.values():
            known = other.engine
            if other is member or other.is_leaving or known is None or info is None:
                continue
            if (known.fingerprint, known.epoch) == (info.fingerprint, info.epoch):
                return other
        return None

    def _state_changed(self) -> None:
        if any(member.takes_requests for member in self._members.values()):
            self._ready.set()
            self._unready.clear()
        else:
            self._ready.clear()
            self._unready.set()


def _num_tokens_left(request: TokenRequest) -> int | None:
    limit = request.sampling_params.max_tokens
    return None if limit is None else max(1, limit - len(request.resume_token_ids))


def _block_hashes(request: TokenRequest, info: ModelInfo) -> list[int]:
    root = block_hash.root_digest(info.fingerprint, cache_salt=request.cache_salt)
    token_ids = request.prompt_token_ids + request.resume_token_ids
    digests = block_hash.block_digests(root, token_ids, info.block_size)
    return block_hash.low_64_bits_of_all(digests)


def _no_place(model: str, refused: Mapping[str, RequestError]) -> RequestError:
    """Returns what a client gets when no engine is left to try."""
    statuses = [error.status for error in refused.values()]
    full = [status for status in statuses if status.reason == Reason.QUEUE_FULL]
    if full:
        return QueueFull(
            f'{len(full)} engines of model "{model}" are full, and no other takes requests',
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
