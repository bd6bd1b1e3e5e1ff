"""What a hostile client sends, as data: bytes to a method, and what must come of it.

To add a mode, add a line: a name, the method, the messages, the status and the reason.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protos.wire.wire_format import packed

ROUTER = "/pagestream.router.v1.RouterService"
ENGINE = "/pagestream.engine.v1.EngineService"
HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.v1.ServerReflection"

EMPTY = 2
"""Bytes of an empty message, or text, in a list."""
NOT_UTF8 = b"\xff\xfe"
UNKNOWN_FIELD = b"\xf8\x3f\x01"


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One kind of attack.

    Attributes:
        name: What it is.
        method: Its path.
        send: Returns the messages of one call.
        code: Name of the status that the call ends with; "OK" if it is answered.
        reason: That of its ErrorInfo, empty if gRPC itself answers.
        field: Named by the ErrorInfo's metadata, empty if none is.
        is_gzip: Whether the messages are compressed.
    """

    name: str
    method: str
    send: Callable[[], Sequence[bytes]]
    code: str = "INVALID_ARGUMENT"
    reason: str = "BAD_REQUEST"
    field: str = ""
    is_gzip: bool = False


def one(content: Callable[[], bytes]) -> Callable[[], Sequence[bytes]]:
    """Returns a function that sends a single message."""
    return lambda: [content()]


def router_modes(num_bytes: int) -> list[Mode]:
    """Returns the modes of a router's clients, whose large messages have about so many bytes."""
    generate, tokenize = f"{ROUTER}/Generate", f"{ROUTER}/Tokenize"
    detokenize = f"{ROUTER}/Detokenize"
    many = num_bytes // EMPTY
    text = packed(3, b"x")
    modes = [
        ("not UTF-8", generate, lambda: packed(3, NOT_UTF8), "BAD_REQUEST", "text"),
        ("not UTF-8 in a chat", generate, lambda: packed(4, packed(1, packed(1, NOT_UTF8))), *_BAD),
        ("cut off", generate, lambda: packed(3, b"hello")[:-1], *_BAD),
        ("nested groups", generate, lambda: text + b"\xfb\x3f" * 5000, *_BAD),
        ("large and cut off", generate, lambda: packed(3, b"x" * num_bytes)[:-1], *_BAD),
        ("large and not UTF-8", generate, lambda: packed(3, b"\xff" * (num_bytes // 2)), *_BAD),
        (
            "empty messages of a chat",
            generate,
            lambda: packed(4, packed(1, b"") * many),
            "BAD_CHAT",
            "chat.messages",
        ),
        (
            "chats that merge",
            generate,
            lambda: packed(4, packed(1, b"")) * (many // 2),
            "BAD_REQUEST",
            "chat",
        ),
        (
            "empty biases",
            generate,
            lambda: text + packed(6, packed(14, b"") * many),
            "BAD_SAMPLING_PARAMS",
            "sampling_params.logit_bias",
        ),
        (
            "empty stop texts",
            generate,
            lambda: text + packed(6, packed(15, b"") * many),
            "BAD_SAMPLING_PARAMS",
            "sampling_params.stop",
        ),
        (
            "stop tokens",
            generate,
            lambda: text + packed(6, packed(4, bytes(4 * 1025))),
            "BAD_SAMPLING_PARAMS",
            "sampling_params.stop_token_ids",
        ),
        (
            "parameters that merge",
            generate,
            lambda: text + packed(6, b"") * many,
            "BAD_REQUEST",
            "sampling_params",
        ),
        (
            "unknown fields",
            generate,
            lambda: text + UNKNOWN_FIELD * (num_bytes // 3),
            "BAD_REQUEST",
            "1023",
        ),
        (
            "token IDs that are not packed",
            generate,
            lambda: packed(5, b"\x0d\x01\0\0\0" * (num_bytes // 5)),
            "BAD_REQUEST",
            "token_ids.ids",
        ),
        (
            "lists of no token IDs",
            generate,
            lambda: packed(5, packed(1, b"") * many),
            "BAD_REQUEST",
            "token_ids.ids",
        ),
        (
            "a long model name",
            generate,
            lambda: packed(2, b"m" * (num_bytes // 2)) + text,
            "BAD_REQUEST",
            "model",
        ),
        (
            "a long request ID",
            generate,
            lambda: packed(1, b"r" * 1025) + text,
            "BAD_REQUEST",
            "request_id",
        ),
        (
            "too many token IDs",
            generate,
            lambda: packed(5, packed(1, bytes(4 * (2**20 + 1)))),
            "PROMPT_TOO_LONG",
            "token_ids.ids",
        ),
        (
            "a million token IDs",
            generate,
            lambda: packed(5, packed(1, bytes(4 * 2**20))),
            "PROMPT_TOO_LONG",
            "",
        ),
        (
            "a million token IDs of no vocabulary",
            detokenize,
            lambda: packed(2, b"\xff" * (4 * 2**20)),
            "BAD_REQUEST",
            "token_ids",
        ),
        ("a text to tokenize", tokenize, lambda: packed(2, NOT_UTF8), "BAD_REQUEST", "text"),
        (
            "empty messages to tokenize",
            tokenize,
            lambda: packed(3, packed(1, b"") * many),
            "BAD_CHAT",
            "chat.messages",
        ),
        ("garbage for no fields", f"{ROUTER}/ListModels", lambda: b"\xff" * 100, *_BAD),
        (
            "unknown fields of no fields",
            f"{ROUTER}/ListEngines",
            lambda: UNKNOWN_FIELD * (num_bytes // 3),
            "BAD_REQUEST",
            "1023",
        ),
    ]
    return [
        *(_mode(*mode) for mode in modes),
        Mode(
            name="empty biases, compressed",
            method=generate,
            send=one(lambda: text + packed(6, packed(14, b"") * many)),
            reason="BAD_SAMPLING_PARAMS",
            is_gzip=True,
        ),
        *common_modes(generate),
    ]


def engine_modes(num_bytes: int) -> list[Mode]:
    """Returns the modes of an engine's clients, whose large messages have about so many bytes."""
    generate, many_requests = f"{ENGINE}/Generate", f"{ENGINE}/GenerateMany"
    many = num_bytes // EMPTY
    prompt = packed(2, b"\1\0\0\0")
    modes = [
        ("not UTF-8", generate, lambda: packed(1, NOT_UTF8) + prompt, "BAD_REQUEST", "request_id"),
        ("cut off", generate, lambda: prompt[:-1], *_BAD),
        (
            "empty biases",
            generate,
            lambda: prompt + packed(3, packed(14, b"") * many),
            "BAD_SAMPLING_PARAMS",
            "sampling_params.logit_bias",
        ),
        (
            "unknown fields",
            generate,
            lambda: prompt + UNKNOWN_FIELD * (num_bytes // 3),
            "BAD_REQUEST",
            "1023",
        ),
        (
            "a million tokens",
            generate,
            lambda: packed(2, bytes(4 * 2**20)),
            "PROMPT_TOO_LONG",
            "prompt_token_ids",
        ),
        ("empty submissions", many_requests, lambda: packed(1, b"") * many, *_BAD),
        (
            "cancelled handles",
            many_requests,
            lambda: packed(2, bytes(4 * 4097)),
            "BAD_REQUEST",
            "cancelled_handles",
        ),
        (
            "cancelled handles that are not packed",
            many_requests,
            lambda: b"\x15\0\0\0\0" * (num_bytes // 5),
            *_BAD,
        ),
        ("garbage in a stream", many_requests, lambda: b"\xff" * 1000, *_BAD),
        (
            "a submission that names no handle",
            many_requests,
            lambda: packed(1, packed(2, packed(1, NOT_UTF8))),
            "BAD_REQUEST",
            "request.request_id",
        ),
        ("garbage for a watch", f"{ENGINE}/WatchCache", lambda: b"\x0f" * 100, *_BAD),
        ("garbage for no fields", f"{ENGINE}/GetModelInfo", lambda: b"\xff" * 100, *_BAD),
        ("garbage for files", f"{ENGINE}/GetTokenizer", lambda: b"\xff" * 100, *_BAD),
    ]
    return [*(_mode(*mode) for mode in modes), *common_modes(generate)]


def common_modes(method: str) -> list[Mode]:
    """Returns the modes that every service of ours is tried with."""
    return [
        Mode(
            name="a message over the limit",
            method=method,
            send=one(lambda: bytes(40 << 20)),
            code="RESOURCE_EXHAUSTED",
            reason="",
        ),
        Mode(
            name="a bomb",
            method=method,
            send=one(lambda: bytes(200 << 20)),
            code="RESOURCE_EXHAUSTED",
            reason="",
            is_gzip=True,
        ),
        Mode(name="health, listed", method=f"{HEALTH}/List", send=one(bytes), code="OK", reason=""),
        _mode(
            "health, not UTF-8",
            f"{HEALTH}/Check",
            lambda: packed(1, NOT_UTF8),
            "BAD_REQUEST",
            "service",
        ),
        _mode(
            "health, a long name",
            f"{HEALTH}/Watch",
            lambda: packed(1, b"s" * 100_000),
            "BAD_REQUEST",
            "service",
        ),
        _mode("health, garbage", f"{HEALTH}/List", lambda: b"\xff" * 10, *_BAD),
        _mode(
            "reflection, not UTF-8",
            f"{REFLECTION}/ServerReflectionInfo",
            lambda: packed(7, NOT_UTF8),
            "BAD_REQUEST",
            "list_services",
        ),
        Mode(
            name="no such method",
            method=f"{HEALTH}/Nothing",
            send=one(lambda: zlib.compress(b"x")),
            code="UNIMPLEMENTED",
            reason="",
        ),
    ]


_BAD = ("BAD_REQUEST", "")


def _mode(name: str, method: str, content: Callable[[], bytes], reason: str, field: str) -> Mode:
    return Mode(name=name, method=method, send=one(content), reason=reason, field=field)
