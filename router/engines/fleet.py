"""All engines of a router and the models that they serve.

`run` keeps every engine connected. The fleet belongs to one event loop and needs no lock.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from router.engines import catalogue
from router.engines.catalogue import RETRY_SECONDS, Catalogue
from router.engines.client import ClientSettings, EngineClient
from router.engines.connection_loss import Fault, ends_task
from router.engines.lifecycle import Stage
from router.engines.member import FleetMember
from router.engines.tokenizer_source import TokenizerSource
from router.errors import (
    RequestError,
)
from router.placement.prefix_index import IndexStatistics, PrefixIndex
from router.types.engine_events import TokenRequest
from router.types.engine_state import EngineSnapshot, ModelInfo, ModelSnapshot

_logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatistics:
    """Counts of the fleet as a whole; the dispatcher's observer counts single requests."""

    index: IndexStatistics
    num_connections: int
    """Connections opened, of all engines."""
    num_faults: Mapping[Fault, int]
    """Faults of engines, by kind."""


class Fleet:
    """The engines of a router.

    Args:
        addresses: "host:port" of each engine; `set_addresses` changes them.
        settings: Bounds and waits of the connections.
    """

    def __init__(self, addresses: Iterable[str], settings: ClientSettings | None = None) -> None:
        self._index = PrefixIndex()
        self._tokenizers = TokenizerSource(self._tokenizer_holders)
        self._ready = asyncio.Event()
        self._unready = asyncio.Event()
        self._unready.set()
        self._settings = settings
        self._members: dict[str, FleetMember] = {}
        self._catalogue = Catalogue(self._members.values())
        self._newcomers: asyncio.Queue[FleetMember] = asyncio.Queue()
        self._addresses: dict[str, None] = {}
        """All current addresses; members also include engines that are still leaving."""
        self._num_past_connections = 0
        self._num_past_faults: Counter[Fault] = Counter()
        self.set_addresses(addresses)

    def set_addresses(self, addresses: Iterable[str]) -> None:
        """Replaces the list of engines.

        New engines are connected. Removed engines get no new requests, and are forgotten when their
        last request has ended or their connection is lost.
        """
        self._addresses = dict.fromkeys(addresses)
        for address in self._addresses:
            if address not in self._members:
                self._join(address)
        # Removed addresses first, so that one does not block another name of the same engine.
        for member in sorted(self._members.values(), key=lambda m: m.address in self._addresses):
            must_leave = self._must_leave(member)
            if must_leave and member.life.stage not in (Stage.LEAVING, Stage.CLOSED):
                _logger.info("engine leaves engine=%s", member.address)
                member.leave()
            elif not must_leave and member.life.stage is Stage.LEAVING:
                _logger.info("engine returns engine=%s", member.address)
                member.life.come_back()

    async def run(self) -> None:
        """Connects all engines and keeps them connected until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep(), name="index sweep")
            while True:
                member = await self._newcomers.get()
                tasks.create_task(self._run_member(member), name=f"engine {member.address}")

    async def _sweep(self) -> None:
        """Frees the memory of engines that left, in slices."""
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
        if member.address not in self._addresses:
            return True
        # While it was leaving, another name of the same engine may have replaced it.
        is_leaving = member.life.stage is Stage.LEAVING
        return is_leaving and self._twin(member, member.life.known_model) is not None

    async def _run_member(self, member: FleetMember) -> None:
        """Keeps an engine connected until it has left."""
        try:
            await member.client.run()
        # A client survives all that its engine does; a bug in it must not end the other engines.
        except BaseException as error:
            if ends_task(error):
                raise
            _logger.exception("engine client restarted engine=%s", member.address)
            self._num_past_faults[Fault.UNEXPECTED] += 1
            await asyncio.sleep(RETRY_SECONDS)
        del self._members[member.address]
        self._index.remove_engine(member.address)
        self._num_past_connections += member.client.num_connections
        self._num_past_faults += member.client.num_faults
        _logger.info("engine left engine=%s", member.address)
        if member.address in self._addresses:
            self._join(member.address)

    async def wait_ready(self) -> None:
        """Waits until at least one engine takes requests."""
        await self._ready.wait()

    async def wait_unready(self) -> None:
        """Waits until no engine takes requests."""
        await self._unready.wait()

    def engines(self) -> list[EngineSnapshot]:
        """Returns the state of each engine, in the order of the given addresses."""
        return [member.snapshot() for member in self._members.values()]

    def models(self) -> Sequence[ModelSnapshot]:
        """Returns the models of all connected engines, by name, with their longest length."""
        return self._catalogue.models()

    def model_info(self, name: str) -> ModelInfo:
        """Returns the model served under a name; an empty name means the only model.

        Raises:
            UnknownModel: Engines are connected, but none serves this model, or a name is needed.
            NoEngine: No engine that could serve it is connected.
        """
        return self._catalogue.find(name)

    async def fetch_tokenizer(self, model: ModelInfo) -> dict[str, bytes]:
        """Returns a model's tokenizer files by name; they have the digest that the model names.

        Raises:
            EngineError: No engine that announces this digest sent them.
        """
        return await self._tokenizers.fetch(model)

    def tokenizers_in_use(self) -> set[str]:
        """Returns the digests of the tokenizers that connected engines announce."""
        return {info.tokenizer_sha256 for info in self.served()}

    def _tokenizer_holders(self, sha256: str) -> dict[str, EngineClient]:
        return {
            member.address: member.client
            for member in self._members.values()
            if (info := member.life.served_model) and info.tokenizer_sha256 == sha256
        }

    def model_of(self, request: TokenRequest) -> ModelInfo:
        """Returns the model of a request, which must be the one that its prompt was tokenized for.

        Raises:
            UnknownModel, NoEngine: As `model_info`; NoEngine also if the name now stands for
                another model.
        """
        info = self._catalogue.find(request.model)
        catalogue.check_same(request, info)
        return info

    def member(self, address: str) -> FleetMember | None:
        """Returns the engine at an address, if there is one."""
        return self._members.get(address)

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """Returns how many of these leading blocks each engine holds, by address."""
        return self._index.match(hashes)

    def epoch_of(self, address: str) -> int | None:
        """Returns the epoch of an engine, or None if it takes no requests."""
        member = self._members.get(address)
        if member is None or not member.life.takes_requests or member.life.model is None:
            return None
        return member.life.model.epoch

    def end_requests(self, error: RequestError) -> None:
        """Ends every request in progress on an engine with an error."""
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

    def served(self) -> Sequence[ModelInfo]:
        """Returns the models of the connected engines."""
        return self._catalogue.served()

    def _check_model(self, newcomer: FleetMember, info: ModelInfo) -> str:
        """Returns how an engine differs from others that serve a model of the same name.

        An engine already connected by another address is refused: counted twice, it would get twice
        its share of requests, and a request that it failed could return to it.
        """
        if twin := self._twin(newcomer, info):
            return f"it is the same engine as {twin.address} (epoch {info.epoch})"
        members = self._members.values()
        refusal = catalogue.difference(newcomer, info, members)
        if not refusal and (difference := catalogue.other_defaults(newcomer, info, members)):
            _logger.warning(
                "engine defaults differ engine=%s model=%s detail=%s",
                newcomer.address,
                info.name,
                difference,
            )
        return refusal

    def _twin(self, member: FleetMember, info: ModelInfo | None) -> FleetMember | None:
        """Returns another member, not leaving, whose address leads to the same engine."""
        for other in self._members.values():
            known = other.life.known_model
            is_leaving = other.life.stage is Stage.LEAVING
            if other is member or is_leaving or known is None or info is None:
                continue
            if (known.fingerprint, known.epoch) == (info.fingerprint, info.epoch):
                return other
        return None

    def _state_changed(self) -> None:
        self._catalogue.forget()
        if any(member.life.takes_requests for member in self._members.values()):
            self._ready.set()
            self._unready.clear()
        else:
            self._ready.clear()
            self._unready.set()
