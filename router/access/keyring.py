"""The API keys that count now, by what clients send."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from router.access.bucket import Clock
from router.access.caller import Caller
from router.access.keys_file import KeysFile, parse_keys, read_content
from router.errors import Unauthenticated
from servicekit.errors import StartupError

_INTERVAL_SECONDS = 1.0
_MAX_KEY_CHARACTERS = 256
_SCHEME = "bearer "

_logger = logging.getLogger(__name__)


class Keyring:
    """Knows the keys of a file, and reads it again whenever it changes.

    A key is looked up by its SHA-256. How long that takes depends on the digest only, which tells
    nothing of the key: so there is no comparison whose time could help to guess it.

    Attributes:
        num_failures: How often the file could not be read, or was wrong.
    """

    def __init__(
        self,
        path: Path,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        """Reads the file.

        Args:
            path: The file.
            sleep: Waits between two looks at the file; tests set it.
            clock: Returns seconds, for the limits of the keys; tests set it.

        Raises:
            StartupError: It cannot be read, or is wrong.
        """
        self.num_failures = 0
        self._path = path
        self._sleep = sleep
        self._clock = clock
        self._problem = ""
        self._content = read_content(path)
        self._callers: dict[bytes, Caller] = {}
        self._take(parse_keys(self._content, path))

    @property
    def callers(self) -> list[Caller]:
        """All keys."""
        return list(self._callers.values())

    def of_authorization(self, value: str) -> Caller:
        """Returns who has sent `Bearer KEY`.

        Raises:
            Unauthenticated: Nobody whom the file knows.
        """
        if value[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("authorization must be: Bearer, a space, and an API key")
        return self.of_key(value[len(_SCHEME) :].strip())

    def of_key(self, key: str) -> Caller:
        """Returns who has sent a key.

        Raises:
            Unauthenticated: Nobody whom the file knows.
        """
        if len(key) <= _MAX_KEY_CHARACTERS:
            caller = self._callers.get(hashlib.sha256(key.encode()).digest())
            if caller is not None:
                return caller
        raise Unauthenticated("the API key is not known")

    def of_metadata(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
        """Returns who has made a gRPC call.

        Raises:
            Unauthenticated: Nobody whom the file knows.
        """
        for name, value in metadata or ():
            if name == "authorization" and isinstance(value, str):
                return self.of_authorization(value)
        raise Unauthenticated("an API key is needed: metadata authorization: Bearer KEY")

    def of_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Returns who has sent an HTTP request.

        Raises:
            Unauthenticated: Nobody whom the file knows.
        """
        key = None
        for name, value in headers:
            if name == b"authorization":
                return self.of_authorization(value.decode("latin-1"))
            if name == b"x-api-key":
                key = value.decode("latin-1")
        if key is None:
            raise Unauthenticated(
                "an API key is needed: header authorization: Bearer KEY, or x-api-key: KEY"
            )
        return self.of_key(key)

    async def run(self) -> None:
        """Looks at the file again and again, until cancelled."""
        while True:
            await self._sleep(_INTERVAL_SECONDS)
            await self.refresh()

    async def refresh(self) -> None:
        """Reads the file again if it has changed; a file that is wrong changes nothing."""
        # That it is as before counts as news, too, if it was wrong meanwhile.
        is_told = bool(self._problem)
        try:
            content = await asyncio.to_thread(read_content, self._path)
            if content != self._content:
                # A thousand keys take a second, in which others must be served.
                self._take(await asyncio.to_thread(parse_keys, content, self._path))
                self._content = content
                is_told = True
            if is_told:
                _logger.info("API keys read file=%s num_keys=%d", self._path, len(self._callers))
        except StartupError as error:
            self.num_failures += 1
            if str(error) != self._problem:
                self._problem = str(error)
                _logger.error(
                    "API keys not read, the old ones stay file=%s num_keys=%d error=%s",
                    self._path,
                    len(self._callers),
                    error,
                )
        else:
            self._problem = ""

    def _take(self, file: KeysFile) -> None:
        old, self._callers = self._callers, {}
        usage = {caller.key.name: caller.limits.usage for caller in old.values()}
        for digest, key in file.keys.items():
            caller = old.pop(digest, None)
            if caller is None:
                caller = Caller(key, file.cache_secret, self._clock)
                # The counters of a name go on when it gets another key.
                caller.limits.usage = usage.get(key.name, caller.limits.usage)
            else:
                caller.set_key(key, file.cache_secret)
            self._callers[digest] = caller
        for caller in old.values():
            caller.revoke()
            _logger.info("API key revoked key=%s", caller.key.name)
