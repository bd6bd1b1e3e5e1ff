"""What the servicers of an engine's two services share."""

import contextlib
from collections.abc import Iterator

from engine_service.server.health import Health
from engine_service.server.metrics import EngineMetrics
from engine_service.server.replica import Replica
from engine_service.server.status import as_request_error
from servicekit.status import Context


class BaseServicer:
    """Serves calls from the replica, once it exists.

    Attributes:
        replica: Set before the health leaves STARTING.
    """

    def __init__(self, health: Health, metrics: EngineMetrics) -> None:
        self._health = health
        self._metrics = metrics
        self.replica: Replica | None = None

    def _loaded(self) -> Replica:
        self._health.check_loaded()
        assert self.replica is not None, "it is set before the state leaves STARTING"
        return self.replica

    @contextlib.contextmanager
    def _counted_refusals(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            refusal = as_request_error(error)
            self._metrics.count_refusal(refusal.reason.lower())
            if refusal is error:
                raise
            raise refusal from error


def trace_context(context: Context) -> tuple[str, str]:
    """Returns the W3C headers traceparent and tracestate of a call, for logs; or empty texts."""
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata.get("traceparent", "")), str(metadata.get("tracestate", ""))
