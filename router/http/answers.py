"""Sends what the pipeline generates: at once when it is complete, or as server-sent events."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.http.errors import ErrorForm, Refusal, error_response, log_error
from router.http.leaving import until_client_leaves
from router.http.service import Service
from router.request.slow_readers import READING
from router.types import GenerationDelta

Deltas = AsyncGenerator[GenerationDelta, None]

_BODY = "http.response.body"
_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029"]
"""Some clients take these for the end of a line of the stream, which JSON's own escapes prevent."""
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        # nginx would collect events before it passes them on.
        (b"x-accel-buffering", b"no"),
    ],
}


class EventWriter(Protocol):
    """Writes one answer in the form of its API."""

    error_form: ErrorForm

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


class EventStream(Response):
    """Streams an answer. Its status is that of the error if it ends before the first delta."""

    def __init__(self, service: Service, deltas: Deltas, writer: EventWriter) -> None:
        super().__init__()
        self._service = service
        self._deltas = deltas
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        writer, is_begun = self._writer, False
        held = b""
        try:
            async with (
                until_client_leaves(receive),
                self._service.slow_readers.watch(self._deltas) as reader,
            ):
                async for delta in self._deltas:
                    content = writer.delta(delta)
                    if not is_begun:
                        await send(_START)
                        is_begun = True
                        content = writer.begin() + content
                    if delta.finish is not None:
                        # It goes with what follows, which of a single continuation is the end.
                        held += content
                    elif content:
                        reader.num_ticks = 0
                        await send({"type": _BODY, "body": held + content, "more_body": True})
                        reader.num_ticks = READING
                        held = b""
                await _send_last(send, held + writer.end())
        except ClientDisconnect:
            return
        # A failing request must not fail the service.
        except Exception as error:
            log_error(error, scope["path"])
            if is_begun:
                await _send_last(send, held + writer.error(Refusal(error)))
            else:
                await error_response(error, writer.error_form)(scope, receive, send)


async def read_answer(
    request: Request, deltas: Deltas, read: Callable[[GenerationDelta], object]
) -> None:
    """Passes each delta to `read`, until the last.

    Raises:
        ClientDisconnect: The client has left; the generation is cancelled.
        RequestError: As the pipeline says.
    """
    async with until_client_leaves(request.receive), aclosing(deltas):
        async for delta in deltas:
            read(delta)


def _one_line(data: bytes) -> bytes:
    if not data.isascii():
        for end, escaped in _LINE_ENDS:
            data = data.replace(end, escaped)
    return data


async def _send_last(send: Send, body: bytes) -> None:
    await send({"type": _BODY, "body": body, "more_body": False})
