"""Where the engines are: a list, a file or a name in DNS, each as a source of all their addresses.

File and name are polled. A poll that fails changes nothing: engines that are there do not go away
with the name server, and a slip in the file must not take them all out.
"""

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protos.wire.printable import shown
from servicekit.address import join, split
from servicekit.daemon_thread import run_in_daemon_thread

_logger = logging.getLogger(__name__)

_MAX_ENGINES = 4096
"""Of one source; each has a connection and some tasks of its own."""
_MAX_FILE_BYTES = 1_048_576
_FILE_INTERVAL_SECONDS = 1.0
_LOOKUP_SECONDS = 10.0
"""Deadline of a lookup. Resolvers ask again after 5 s, which makes up for a lost packet."""
_JITTER = 0.2
"""How far the wait before a poll may lie from the interval, as a share of it."""

Addresses = tuple[str, ...]
"""All engines, each once, as "host:port"."""
Resolver = Callable[[str, int], Awaitable[Iterable[str]]]
"""Returns the IP addresses of a host, of which one may stand twice; raises OSError."""
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceName:
    """A host whose IP addresses are those of all engines, and the port of each of them."""

    host: str
    port: int


class Discovery(Protocol):
    """Knows all engines there are; has one reader."""

    @property
    def num_failures(self) -> int:
        """How many polls gave no addresses that can be used."""

    def addresses(self) -> AsyncIterator[Addresses]:
        """Yields all addresses as soon as they are known, and all of them again on a change.

        Never ends and never fails. Cancelling the wait for the next item ends the iteration at
        once; of a poll under way, its system call ends by itself in a thread of the event loop.
        """


class Source(Protocol):
    """What a poll asks; its text names it in the log."""

    async def read(self) -> Addresses:
        """Returns all addresses, at least one; may be cancelled at any time.

        Raises:
            Unusable: There are none, or not all can be told.
        """


class Unusable(Exception):
    """A source does not tell where the engines are; the text ends a sentence on the source."""


def discover(
    *,
    engines: Addresses,
    engines_file: Path | None,
    engine_dns: ServiceName | None,
    interval: float,
) -> Discovery:
    """Returns where the engines are, by the one of the first three that is given.

    Reads a file at once, and blocks meanwhile; a name need not resolve yet.

    Args:
        engines: All addresses, or none.
        engines_file: File with one address a line.
        engine_dns: Name whose A and AAAA records are the engines'.
        interval: Seconds between two lookups of the name.

    Raises:
        Unusable: The file cannot be used; the text is a whole sentence and names the option.
    """
    if engines_file is not None:
        file = EnginesFile(engines_file)
        try:
            known = file.load()
        except Unusable as error:
            raise Unusable(f"--engines-file {engines_file} {error}") from None
        return PolledDiscovery(file, _FILE_INTERVAL_SECONDS, known)
    if engine_dns is not None:
        return PolledDiscovery(EngineDns(engine_dns), interval)
    return StaticDiscovery(engines)


class StaticDiscovery:
    """Engines that stay the same."""

    num_failures = 0

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    async def addresses(self) -> AsyncIterator[Addresses]:
        """Yields the addresses once, then waits until cancelled."""
        yield self._addresses
        await asyncio.Event().wait()


class PolledDiscovery:
    """Engines of a source that is asked again and again.

    Args:
        source: Who is asked.
        interval: Seconds between two polls; each wait is up to a fifth shorter or longer, so that
            routers that started together do not ask together for ever.
        known: What the source said already.
        sleep: Waits; given by tests.
        rng: Draws the waits; given by tests.
    """

    def __init__(
        self,
        source: Source,
        interval: float,
        known: Addresses = (),
        *,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._source = source
        self._interval = interval
        self._known = known
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._problem = ""
        self._num_failures = 0

    @property
    def num_failures(self) -> int:
        """How many polls gave no addresses that can be used."""
        return self._num_failures

    async def addresses(self) -> AsyncIterator[Addresses]:
        """Yields all addresses as soon as they are known, and all of them again on a change.

        A poll that fails is counted, and logged if the one before did not fail in the same way.
        Never ends and never fails. Cancelling the wait for the next item ends the iteration at
        once; of a poll under way, its system call ends by itself in a thread of the event loop.
        """
        if self._known:
            yield self._known
            await self._pause()
        while True:
            found = await self._poll()
            if found != self._known:
                self._known = found
                _logger.info("engines changed source=%s engines=%s", self._source, ",".join(found))
                yield found
            await self._pause()

    async def _pause(self) -> None:
        await self._sleep(self._interval * self._rng.uniform(1 - _JITTER, 1 + _JITTER))

    async def _poll(self) -> Addresses:
        """Returns what the source says, or what is known where that cannot be used."""
        try:
            found = await self._source.read()
        except Unusable as error:
            self._num_failures += 1
            if str(error) != self._problem:
                self._problem = str(error)
                _logger.warning(
                    "engines stay as known source=%s num_known=%d problem=%s",
                    self._source,
                    len(self._known),
                    error,
                )
            return self._known
        if self._problem:
            self._problem = ""
            _logger.info("engines told again source=%s", self._source)
        return found


class EnginesFile:
    """A file with one address a line; "#" begins a comment.

    It is read whole each time. Its time, size and inode can all stay the same across a change, and
    tell nothing of a read that failed for a moment.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    async def read(self) -> Addresses:
        """Returns the addresses in the order of the lines.

        Cancelling ends the wait, and the thread that reads ends by itself.

        Raises:
            Unusable: The file is missing, unreadable, empty or too large, or a line is wrong.
        """
        return await asyncio.to_thread(self.load)

    def load(self) -> Addresses:
        """Does the same as `read`, blocking."""
        try:
            with self._path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise Unusable(f"cannot be read: {error.strerror}") from None
        if len(content) > _MAX_FILE_BYTES:
            raise Unusable(f"has more than {_MAX_FILE_BYTES} bytes")
        addresses: dict[str, None] = {}
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                address = line.decode("utf-8-sig").partition("#")[0].strip()
                if address:
                    _add(address, addresses)
            except UnicodeDecodeError:
                raise Unusable(f"line {number} is not UTF-8") from None
            except ValueError as error:
                raise Unusable(f"line {number} {error}") from None
        # Also what a reader meets while the file is written anew in place.
        if not addresses:
            raise Unusable("lists no address")
        return tuple(addresses)


async def _resolve(host: str, port: int) -> list[str]:
    def look_up() -> list[str]:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in answers]

    # Nothing waits for it in the end, however long a name server is silent.
    return await run_in_daemon_thread(look_up, f"lookup of {host}")


class EngineDns:
    """A name whose A and AAAA records are the engines', as a headless Service's are.

    Args:
        name: What is looked up.
        resolve: Looks it up; given by tests.
        timeout: Seconds that a lookup may take.
    """

    def __init__(
        self, name: ServiceName, resolve: Resolver = _resolve, timeout: float = _LOOKUP_SECONDS
    ) -> None:
        self._name = name
        self._resolve = resolve
        self._timeout = timeout

    def __str__(self) -> str:
        return join(self._name.host, self._name.port)

    async def read(self) -> Addresses:
        """Returns the addresses, sorted: name servers give them in any order.

        Cancelling ends the wait. The thread that looks up goes on for as long as the system's
        resolver tries, and nothing waits for it.

        Raises:
            Unusable: The lookup fails, takes too long or finds nothing.
        """
        host, port = self._name.host, self._name.port
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._resolve(host, port)
        except TimeoutError:
            raise Unusable(f"does not resolve within {self._timeout:g} s") from None
        except OSError as error:
            raise Unusable(f"does not resolve: {error.strerror}") from None
        addresses = {join(ip, port) for ip in found}
        if not addresses:
            raise Unusable("resolves to nothing")
        if len(addresses) > _MAX_ENGINES:
            raise Unusable(f"resolves to more than {_MAX_ENGINES} addresses")
        return tuple(sorted(addresses))


def parse_addresses(text: str) -> Addresses:
    """Returns the "host:port" addresses of a text, which commas separate, in their order.

    An IPv6 address stands in brackets: "[::1]:9000". A host's name is one engine, however many
    addresses it has: it is resolved with each connection.

    Raises:
        ValueError: An address is malformed or stands twice, or there are too many; ends a sentence
            on the text.
    """
    addresses: dict[str, None] = {}
    for part in text.split(","):
        _add(part.strip(), addresses)
    return tuple(addresses)


def parse_service_name(text: str) -> ServiceName:
    """Returns the name and the port of a text "name:port".

    Raises:
        ValueError: The text is malformed; ends a sentence on it.
    """
    host, port = _split(text)
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f'has "{shown(text)}", whose name DNS cannot hold') from None
    return ServiceName(host=host, port=port)


def _add(address: str, addresses: dict[str, None]) -> None:
    _split(address)
    if address in addresses:
        raise ValueError(f'lists "{shown(address)}" twice')
    if len(addresses) == _MAX_ENGINES:
        raise ValueError(f"lists more than {_MAX_ENGINES} addresses")
    addresses[address] = None


def _split(address: str) -> tuple[str, int]:
    try:
        return split(address)
    except ValueError as error:
        raise ValueError(f'has "{shown(address)}", {error}') from None
