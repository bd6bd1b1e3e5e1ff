"""What the HTTP handlers need of the router."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from router.access.keyring import Keyring
from router.http.keep_alive import KeepAlive
from router.request.pipeline import Pipeline
from router.request.slow_readers import SlowReaders
from router.types.engine_state import ModelSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The router, as the HTTP handlers see it.

    Attributes:
        pipeline: Answers requests.
        models: Returns the models that can be asked for.
        slow_readers: Ends the answers that are not read; somebody must run it.
        max_body_bytes: The most bytes of a request's body.
        keyring: The API keys of clients, or None if they need none.
        keep_alive: Has something sent on streams that are silent.
    """

    pipeline: Pipeline
    models: Callable[[], Sequence[ModelSnapshot]]
    slow_readers: SlowReaders
    max_body_bytes: int
    keyring: Keyring | None = None
    keep_alive: KeepAlive = field(default_factory=KeepAlive)
