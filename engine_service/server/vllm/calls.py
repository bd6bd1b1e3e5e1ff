"""The open Generate calls of the vLLM service by their clients' names, so that Abort finds them."""

import contextlib
from collections.abc import Iterator

from engine_service.server.core_client import CoreClient
from engine_service.server.output_stream import OutputStream


class Call:
    """One Generate call.

    Attributes:
        stream: Its outputs.
        is_aborted: Whether its requests were cancelled by their name.
    """

    def __init__(self, client: CoreClient, stream: OutputStream) -> None:
        self._client = client
        self.stream = stream
        self.is_aborted = False

    def cancel(self, handle: int) -> None:
        """Cancels one of its requests in the core."""
        self._client.cancel(self.stream, handle)

    def abort(self) -> None:
        """Cancels its requests in the core and wakes its reader."""
        self.is_aborted = True
        for handle in list(self.stream.open_requests):
            self.cancel(handle)
        self.stream.wake()


class OpenCalls:
    """Calls by name; several may have one name, since a gateway repeats it when it tries again."""

    def __init__(self) -> None:
        self._calls: dict[str, list[Call]] = {}

    @contextlib.contextmanager
    def opened(self, name: str, client: CoreClient, max_buffered_tokens: int) -> Iterator[Call]:
        """Yields a new call, and cancels what is left of it in the end."""
        call = Call(client, client.open_stream(max_buffered_tokens))
        self._calls.setdefault(name, []).append(call)
        try:
            yield call
        finally:
            client.close_stream(call.stream)
            calls = self._calls[name]
            calls.remove(call)
            if not calls:
                del self._calls[name]

    def abort(self, name: str) -> None:
        """Aborts all calls of a name; ignores one that is unknown or has ended."""
        for call in self._calls.get(name, ()):
            call.abort()
