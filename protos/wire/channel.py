"""The gRPC options that both ends of a connection must agree on."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message either side receives; our own checks bound requests far below it."""

_MAX_BACKLOG = 65_536
"""Calls that wait for the server to look at them; past it they end as CANCELLED without a word."""

_KEEPALIVE_TIME_MS = 10_000
_KEEPALIVE_TIMEOUT_MS = 5_000

ChannelOptions = list[tuple[str, int]]


def server_options() -> ChannelOptions:
    """Returns the options of a server: message limit, and pings both ways.

    The server's own notice a client whose machine is gone, so that its requests are cancelled.
    """
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        # A burst is refused by our own bounds, which say why. By default the backlog is cut at
        # random from 1,000 on.
        ("grpc.server.max_pending_requests", _MAX_BACKLOG),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_BACKLOG),
        # Without this a second server on a port shares it silently instead of failing.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Else a ping without an answer is waited for a minute, whatever the line above says.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_TIME_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def client_options() -> ChannelOptions:
    """Returns the options of a long-lived channel: message limit, and pings that notice a loss."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Else a ping without an answer is waited for a minute, whatever the line above says.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Services find each other by address; a proxy of the environment must not come between.
        ("grpc.enable_http_proxy", 0),
    ]
