"""The gRPC options that both ends of a connection must agree on."""

from protos.pagestream.engine.v1 import engine_pb2
from protos.pagestream.router.v1 import router_pb2
from protos.wire.limits import MAX_CHAT_MESSAGES, MAX_LABEL_BYTES
from protos.wire.message_parser import max_bytes

_SPARE_BYTES = 64 * 1024
"""For fields that a newer peer may send."""
_CHAT_MESSAGE_BYTES = 128
"""Size of one chat message with a part and a tool call, without their texts."""

MAX_SUBMISSION_BYTES = max_bytes(engine_pb2.Submission)
"""The largest submission whose fields are within their bounds."""
ENGINE_REQUEST_BYTES = MAX_SUBMISSION_BYTES + _SPARE_BYTES
"""The largest message that an engine accepts; a router sends none larger than the largest
submission."""
ENGINE_RESPONSE_BYTES = 4 * 1024 * 1024
"""The largest message that an engine sends and a router accepts from it."""

_MAX_BACKLOG = 65_536
"""Calls that wait for the server to accept them; any beyond end as CANCELLED without a message."""

_WINDOW_BYTES = 256 * 1024
"""What a peer may send of a message before gRPC has looked at it.

gRPC would measure the connection with pings to set it, which takes a twentieth of a request's
processor time. A longer message needs one more round trip, one of 4 MiB four more."""

_KEEPALIVE_TIME_MS = 10_000
_KEEPALIVE_TIMEOUT_MS = 5_000

ChannelOptions = list[tuple[str, int]]


def router_request_bytes(max_prompt_bytes: int) -> int:
    """Returns the largest message that a router accepts, given the largest prompt."""
    prompt = max(max_prompt_bytes, max_bytes(router_pb2.TokenIds))
    messages = MAX_CHAT_MESSAGES * _CHAT_MESSAGE_BYTES
    params = max_bytes(router_pb2.SamplingParams)
    return prompt + messages + params + 4 * MAX_LABEL_BYTES + _SPARE_BYTES


def server_options(
    max_request_bytes: int = ENGINE_REQUEST_BYTES,
    *,
    max_connections: int = 1 << 20,
    is_port_shared: bool = False,
) -> ChannelOptions:
    """Returns the options of a server: message limit, and pings in both directions.

    The server's pings detect a client whose machine is gone, so that its requests are cancelled.

    Args:
        max_request_bytes: The largest message that it accepts. gRPC applies it to compressed
            messages both before and after decompression.
        max_connections: At each address; any beyond are closed at once.
        is_port_shared: Whether other servers, of this process or others, have its port, too.
    """
    return [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),
        # Our own bounds refuse a burst, and say why. The default backlog drops calls at random
        # from 1,000 on.
        ("grpc.server.max_pending_requests", _MAX_BACKLOG),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_BACKLOG),
        # By default, it accepts until the process has no file descriptor left for anything else.
        ("grpc.max_allowed_incoming_connections", max_connections),
        # By default, a second server on a port shares it silently instead of failing.
        ("grpc.so_reuseport", int(is_port_shared)),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Otherwise an unanswered ping is waited for a minute, despite the line above.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_TIME_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
    ]


def client_options() -> ChannelOptions:
    """Returns the options of a long-lived channel: message limit, and pings that detect a loss."""
    return [
        ("grpc.max_receive_message_length", ENGINE_RESPONSE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Otherwise an unanswered ping is waited for a minute, despite the line above.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        # Services connect by address; a proxy from the environment must not be used.
        ("grpc.enable_http_proxy", 0),
    ]
