"""What the router says of itself to whoever probes it, over gRPC and HTTP alike."""

import enum

from router.server.grpc_server import SERVICE
from servicekit import health


class State(enum.Enum):
    """Where the router is in its life."""

    WAITING = "waiting: no engine takes requests"
    SERVING = "serving"
    DRAINING = "draining: running requests finish, new ones are refused"


class Health(health.Health[State]):
    """The router's state. It is live as long as it answers: a restart brings no engine back."""

    def __init__(self) -> None:
        super().__init__(SERVICE, initial=State.WAITING, serving=State.SERVING, dead=frozenset())

    async def enter(self, state: State) -> None:
        """Changes the state and tells all who watch it; there is no way back from DRAINING."""
        await super().enter(self.state if self.state is State.DRAINING else state)
