import enum

import pytest
from grpc_health.v1 import health_pb2

from servicekit.health import Health


class State(enum.Enum):
    COLD = "cold: it is not lit"
    HOT = "hot"
    BROKEN = "broken"


@pytest.fixture
def health():
    return Health("kitchen.v1.Kitchen", initial=State.COLD, serving=State.HOT, dead={State.BROKEN})


async def answer(health, service):
    request = health_pb2.HealthCheckRequest(service=service)
    status = (await health.servicer.Check(request, None)).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


@pytest.mark.parametrize(
    ("state", "is_live", "is_ready"),
    [(State.COLD, True, False), (State.HOT, True, True), (State.BROKEN, False, False)],
)
async def test_both_services_follow_the_state(health, state, is_live, is_ready):
    names = {True: "SERVING", False: "NOT_SERVING"}

    await health.enter(state)

    assert (health.state, health.is_live, health.is_ready) == (state, is_live, is_ready)
    assert await answer(health, "") == names[is_live]
    assert await answer(health, "kitchen.v1.Kitchen") == names[is_ready]


async def test_all_services_are_listed_with_their_state(health):
    await health.enter(State.HOT)
    await health.enter(State.BROKEN)

    listed = (await health.servicer.List(health_pb2.HealthListRequest(), None)).statuses

    assert set(listed) == {"", "kitchen.v1.Kitchen"}
    assert {one.status for one in listed.values()} == {health_pb2.HealthCheckResponse.NOT_SERVING}
