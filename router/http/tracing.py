"""The trace context that an HTTP request brings along."""

from starlette.types import Scope

from router.request.trace_context import trace_context


def http_trace_context(scope: Scope) -> tuple[str, str]:
    """Returns traceparent and tracestate, as `trace_context`."""
    # Most requests have a dozen headers, and none of these.
    return trace_context(
        [
            (name.decode(), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.startswith(b"trace")
        ]
    )
