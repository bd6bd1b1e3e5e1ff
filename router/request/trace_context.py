"""The trace context that a call brings along (W3C Trace Context)."""

from collections.abc import Iterable

from protos.wire.limits import MAX_TRACEPARENT_BYTES, MAX_TRACESTATE_BYTES


def trace_context(headers: Iterable[tuple[str, str | bytes]]) -> tuple[str, str]:
    """Returns traceparent and tracestate; one that is too long to be passed on counts as none."""
    found = {key: str(value) for key, value in headers if key in ("traceparent", "tracestate")}
    traceparent, tracestate = found.get("traceparent", ""), found.get("tracestate", "")
    return (
        traceparent if len(traceparent) <= MAX_TRACEPARENT_BYTES else "",
        tracestate if len(tracestate) <= MAX_TRACESTATE_BYTES else "",
    )
