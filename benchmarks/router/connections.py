"""Client ends of HTTP connections that keep what arrives, and when, and look into it later.

A measured service shall not wait for its client, and a gRPC library in Python costs the client as
much per message as the service. So these read from the socket and note times; messages are parsed
when the measurement is over.
"""

import json
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

_READ_BYTES = 1 << 20
_MAX_WINDOW = (1 << 31) - 1
_DEFAULT_WINDOW = 65_535
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8


@dataclass(slots=True)
class Call:
    """One call and all that came back.

    Attributes:
        started: When it was sent, of `time.perf_counter`.
        chunks: Bytes of the answer's body as they arrived, each with its time.
        ended: When it ended, or 0 while it has not.
    """

    started: float
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0


class Connection(Protocol):
    """A connection to the measured service."""

    socket: socket.socket

    def call(self, body: bytes) -> Call:
        """Sends a call."""

    def receive(self) -> int:
        """Takes in what is there to read; returns how many calls ended with it."""


def connect(address: str) -> socket.socket:
    """Returns a connected socket that sends at once."""
    host, _, port = address.rpartition(":")
    connected = socket.create_connection((host, int(port)))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


class GrpcConnection:
    """HTTP/2 with one unary-stream method, any number of calls at once (RFC 9113)."""

    def __init__(self, address: str, path: str) -> None:
        self.socket = connect(address)
        self._headers = b"".join(
            _header(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", address),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            )
        )
        self._calls: dict[int, Call] = {}
        self._next_stream = 1
        self._received = b""
        self._window = _DEFAULT_WINDOW
        self._unsent: deque[tuple[int, bytes]] = deque()
        # Identifier 4 is the window of each stream: nothing shall ever wait for this client.
        self.socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, _MAX_WINDOW))
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _MAX_WINDOW - _DEFAULT_WINDOW))
        )

    def call(self, body: bytes) -> Call:
        """Sends a call with one message."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        call = self._calls[stream] = Call(started=time.perf_counter())
        message = struct.pack(">BI", 0, len(body)) + body
        self._unsent.append((stream, message))
        self._send()
        return call

    def receive(self) -> int:
        """Takes in what is there to read; returns how many calls ended with it."""
        read = self.socket.recv(_READ_BYTES)
        now = time.perf_counter()
        if not read:
            raise ConnectionError("the service closed the connection")
        data = self._received + read if self._received else read
        calls = self._calls
        num_ended = start = 0
        size = len(data)
        while start + 9 <= size:
            end = start + 9 + int.from_bytes(data[start : start + 3], "big")
            if end > size:
                break
            kind, flags = data[start + 3], data[start + 4]
            stream = int.from_bytes(data[start + 5 : start + 9], "big")
            if kind == _DATA:
                if flags & _PADDED:
                    raise ConnectionError("padded frames are not supported")
                calls[stream].chunks.append((now, data[start + 9 : end]))
            elif kind not in (_HEADERS, _RST_STREAM):
                self._control(kind, flags, stream, data[start + 9 : end])
            if (kind in (_DATA, _HEADERS) and flags & _END_STREAM) or kind == _RST_STREAM:
                calls.pop(stream).ended = now
                num_ended += 1
            start = end
        self._received = data[start:]
        return num_ended

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self.socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
            self._send()
        elif kind == _GOAWAY:
            raise ConnectionError(f"the service sent GOAWAY: {payload[8:]!r}")

    def _send(self) -> None:
        """Sends the calls that the service's window has room for; a call is far below 64 kB."""
        while self._unsent and len(self._unsent[0][1]) <= self._window:
            stream, message = self._unsent.popleft()
            self._window -= len(message)
            self.socket.sendall(
                _frame(_HEADERS, _END_HEADERS, stream, self._headers)
                + _frame(_DATA, _END_STREAM, stream, message)
            )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    header = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return header + payload


def _header(name: str, value: str) -> bytes:
    """Returns a header as a literal that is not indexed; names and values are short."""
    encoded = [text.encode() for text in (name, value)]
    return b"\0" + b"".join(bytes((len(text),)) + text for text in encoded)


def grpc_messages(call: Call) -> list[tuple[float, bytes]]:
    """Returns the messages of a call, each with the time at which it was complete."""
    messages = []
    data = b""
    for moment, chunk in call.chunks:
        data += chunk
        start = 0
        while start + 5 <= len(data):
            end = start + 5 + int.from_bytes(data[start + 1 : start + 5], "big")
            if end > len(data):
                break
            messages.append((moment, data[start + 5 : end]))
            start = end
        data = data[start:]
    return messages


class SseConnection:
    """HTTP/1.1 with one call at a time, answered by server-sent events in chunks (RFC 9112)."""

    def __init__(self, address: str, path: str) -> None:
        self.socket = connect(address)
        self._head = (
            f"POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
            "content-length: "
        ).encode()
        self._call = Call(started=0.0)
        self._last = b""

    def call(self, body: bytes) -> Call:
        """Sends a call."""
        self._call = Call(started=time.perf_counter())
        self._last = b""
        self.socket.sendall(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
        return self._call

    def receive(self) -> int:
        """Takes in what is there to read; returns how many calls ended with it."""
        read = self.socket.recv(_READ_BYTES)
        now = time.perf_counter()
        if not read:
            raise ConnectionError("the service closed the connection")
        self._call.chunks.append((now, read))
        # The last chunk is an empty one, and may come in two pieces.
        self._last = (self._last + read)[-7:]
        if self._last.endswith(b"\r\n0\r\n\r\n"):
            self._call.ended = now
            return 1
        return 0


def sse_events(call: Call) -> list[tuple[float, dict[str, object]]]:
    """Returns the JSON events of a call, each with the time at which its line was complete.

    Raises:
        ConnectionError: The answer is not a stream of events.
    """
    events = []
    data = b""
    for moment, chunk in call.chunks:
        data += chunk
        *lines, data = data.split(b"\n")
        events += [(moment, json.loads(line[6:])) for line in lines if line.startswith(b"data: {")]
    if not events:
        raise ConnectionError(f"no event in the answer {b''.join(c for _, c in call.chunks)!r}")
    return events
