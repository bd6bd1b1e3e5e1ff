"""Sends what the pipeline generates: at once when it is complete, or as server-sent events."""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.access.caller import until_revoked
from router.http.errors import ErrorForm, Refusal, error_response, refused
from router.http.outlet import outlet_of
from router.http.service import Service
from router.request.slow_readers import READING
from router.types.generation import GenerationDelta

Deltas = AsyncGenerator[GenerationDelta, None]

_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029"]
"""Some clients take these for the end of a line of the stream, which JSON's own escapes prevent."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would collect events before it passes them on.
    (b"x-accel-buffering", b"no"),
]
COMMENT = b": keep-alive\n\n"
"""What tells the client of a stream nothing, which every client must pass over."""


class EventWriter(Protocol):
    """Writes one answer in the form of its API.

    Attributes:
        error_form: Of its errors.
        keep_alive: What is sent when nothing else has been for long.
    """

    error_form: ErrorForm
    keep_alive: bytes

    def begin(self) -> bytes:
        """Returns the events before the first delta."""

    def delta(self, delta: GenerationDelta) -> bytes:
        """Returns the events of a delta, which may be none."""

    def end(self) -> bytes:
        """Returns the events after the last delta."""

    def error(self, refusal: Refusal) -> bytes:
        """Returns the events that end an answer with an error."""


def event(content: dict[str, Any], name: str = "") -> bytes:
    """Returns one server-sent event with an object of JSON."""
    # A third of the time of `json`.
    data = _one_line(to_json(content))
    if name:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    return b"data: %b\n\n" % data


def quoted(text: str) -> bytes:
    """Returns a text as JSON, for an event that is put together by hand."""
    return _one_line(to_json(text))


def numbers(values: Iterable[int]) -> bytes:
    """Returns a list of numbers as JSON."""
    return b"[%b]" % ",".join(map(str, values)).encode()


def openai_usage(num_prompt: int, num_completion: int, num_cached: int) -> bytes:
    """Returns the tokens of an answer as JSON, as OpenAI's older APIs have them."""
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d}}'
    ) % (num_prompt, num_completion, num_prompt + num_completion, num_cached)


class EventStream(Response):
    """Streams an answer.

    Its status is that of the error if it ends before anything has been sent.
    """

    def __init__(
        self, request: Request, service: Service, deltas: Deltas, writer: EventWriter
    ) -> None:
        # Not that of a response, whose headers have a length.
        self.raw_headers = list(_HEADERS)
        self.num_silent_ticks = 0
        self._outlet = outlet_of(request.scope)
        self._service = service
        self._deltas = deltas
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it, but for a stream itself, which goes straight to its outlet."""
        outlet, writer = self._outlet, self._writer
        try:
            last = await self._send_deltas() + writer.end()
        except ClientDisconnect:
            return
        # A failing request must not fail the service.
        except Exception as error:
            refusal = refused(error, scope)
            if not outlet.has_begun:
                await error_response(refusal, writer.error_form)(scope, receive, send)
                return
            last = writer.error(refusal)
        await outlet.wait_read()
        self._begin()
        outlet.end(last)

    def break_silence(self) -> None:
        """Sends what tells the client nothing, unless it has not even read what came before."""
        if not self._outlet.is_held_up:
            self._begin()
            self._outlet.send(self._writer.keep_alive)

    async def _send_deltas(self) -> bytes:
        """Sends all deltas but the last, which it returns for what follows."""
        service, outlet, writer = self._service, self._outlet, self._writer
        held, is_first = b"", True
        service.keep_alive.watch(self)
        try:
            async with (
                outlet.until_client_leaves(),
                until_revoked(outlet.caller),
                service.slow_readers.watch(self._deltas) as reader,
            ):
                async for delta in self._deltas:
                    content = writer.delta(delta)
                    if is_first:
                        content, is_first = writer.begin() + content, False
                    if delta.finish is not None:
                        # It goes with what follows, which of a single continuation is the end.
                        held += content
                    elif content:
                        if outlet.is_held_up:
                            reader.num_ticks = 0
                            await outlet.wait_read()
                            reader.num_ticks = READING
                        self._begin()
                        outlet.send(held + content)
                        self.num_silent_ticks = 0
                        held = b""
        finally:
            service.keep_alive.forget(self)
        return held

    def _begin(self) -> None:
        if not self._outlet.has_begun:
            self._outlet.begin(self.raw_headers)


async def read_answer(
    request: Request, deltas: Deltas, read: Callable[[GenerationDelta], object]
) -> None:
    """Passes each delta to `read`, until the last.

    Raises:
        ClientDisconnect: The client has left; the generation is cancelled.
        RequestError: As the pipeline says.
    """
    outlet = outlet_of(request.scope)
    async with outlet.until_client_leaves(), until_revoked(outlet.caller), aclosing(deltas):
        async for delta in deltas:
            read(delta)


def _one_line(data: bytes) -> bytes:
    if not data.isascii():
        for end, escaped in _LINE_ENDS:
            data = data.replace(end, escaped)
    return data
