"""Who asks: a client that has shown its API key."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from router.access.bucket import Clock
from router.access.keys_file import Key
from router.access.limits import Limits
from router.errors import PermissionDenied, Unauthenticated, UnknownModel


class Caller:
    """All clients with one key, which together have its limits.

    Attributes:
        key: What the file says of it.
        limits: Counts what its clients ask for.
    """

    def __init__(self, key: Key, cache_secret: bytes, clock: Clock = time.monotonic) -> None:
        """Has asked for nothing yet.

        Args:
            key: What the file says of it.
            cache_secret: The file's.
            clock: Returns seconds, for the limits; tests set it.
        """
        self.limits = Limits(key, clock)
        self.set_key(key, cache_secret)
        self._is_revoked = False
        self._streams: set[asyncio.Timeout] = set()

    def set_key(self, key: Key, cache_secret: bytes) -> None:
        """Takes in what a new file says of it, from the next request on."""
        self.key = key
        self.limits.set_key(key)
        tenant = (key.tenant or key.name).encode()
        self._salt_key = hmac.digest(cache_secret, tenant, hashlib.sha256)
        self._own_salt = self._salted("")

    def may_use(self, model: str) -> bool:
        """Whether requests may be for a model."""
        return not self.key.models or model in self.key.models

    def check_model(self, model: str) -> None:
        """Refuses a model that the key may not use, as if there were none of this name.

        Raises:
            UnknownModel: Whoever has the key learns nothing of other models.
        """
        if not self.may_use(model):
            raise self.unknown_model(model)

    def unknown_model(self, model: str) -> UnknownModel:
        """Returns the error for a model that is not served, or not to this key."""
        what = f'model "{model:.128}"' if model else "the model of a request that names none"
        return UnknownModel(
            f'{what} is not served, or not to the API key "{self.key.name}"', {"model": model}
        )

    def check_priority(self, priority: int) -> None:
        """Refuses a priority above the key's.

        Raises:
            PermissionDenied: It is above.
        """
        most = self.key.max_priority
        if priority > most:
            raise PermissionDenied(
                f'priority is {priority}, over max-priority {most} of API key "{self.key.name}"',
                {"field": "priority", "value": str(priority), "bounds": f"at most {most}"},
            )

    def cache_salt(self, asked: str) -> str:
        """Returns the salt of a request, which no other tenant can have.

        Args:
            asked: The client's own, or empty.
        """
        return self._salted(asked) if asked else self._own_salt

    def _salted(self, asked: str) -> str:
        return hmac.digest(self._salt_key, asked.encode(), hashlib.sha256).hex()

    def revoke(self) -> None:
        """Ends what the clients have under way."""
        self._is_revoked = True
        now = asyncio.get_running_loop().time()
        for stream in self._streams:
            stream.reschedule(now)

    @asynccontextmanager
    async def until_revoked(self) -> AsyncIterator[None]:
        """Ends the block when the key is revoked.

        Raises:
            Unauthenticated: It was.
        """
        if self._is_revoked:
            raise self._revoked()
        stream = asyncio.timeout(None)
        self._streams.add(stream)
        try:
            async with stream:
                yield
        except TimeoutError:
            if not stream.expired():
                raise
            raise self._revoked() from None
        finally:
            self._streams.discard(stream)

    def _revoked(self) -> Unauthenticated:
        return Unauthenticated(
            f'the API key "{self.key.name}" has been revoked', {"key": self.key.name}
        )


_FOREVER: AbstractAsyncContextManager[None] = nullcontext()


def until_revoked(caller: Caller | None) -> AbstractAsyncContextManager[None]:
    """Returns what ends its block when the key of a request is revoked, if it needs one."""
    return _FOREVER if caller is None else caller.until_revoked()
