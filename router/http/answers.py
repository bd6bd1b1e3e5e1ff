"""Sends what the pipeline generates: at once when it is complete, or as server-sent events."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from json.encoder import encode_basestring
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.http.errors import ErrorForm, Refusal, error_response, log_error
from router.http.leaving import until_client_leaves
from router.http.service import Service
from router.request.slow_readers import READING
from router.types import GenerationDelta

Deltas = AsyncGenerator[GenerationDelta, None]

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
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
    data = _one_line(_to_json(content))
    if name:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    return b"data: %b\n\n" % data


def quoted(text: str) -> bytes:
    """Returns a text as JSON, for an event that is put together by hand."""
    return _one_line(encode_basestring(text))


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
                    if content:
                        reader.num_ticks = 0
                        await _send(send, content)
                        reader.num_ticks = READING
                await _send(send, writer.end(), is_last=True)
        except ClientDisconnect:
            return
        # A failing request must not fail the service.
        except Exception as error:
            log_error(error, scope["path"])
            if is_begun:
                await _send(send, writer.error(Refusal(error)), is_last=True)
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


def _one_line(text: str) -> bytes:
    return (text if text.isascii() else text.translate(_LINE_ENDS)).encode()


async def _send(send: Send, body: bytes, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})
