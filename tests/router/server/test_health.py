from grpc_health.v1 import health_pb2

from router.server.grpc_server import SERVICE
from router.server.health import Health, State


async def test_readiness_follows_the_state_and_liveness_does_not():
    health = Health()
    answers = []

    for state in (State.WAITING, State.SERVING, State.DRAINING, State.SERVING):
        await health.enter(state)
        for service in ("", SERVICE):
            request = health_pb2.HealthCheckRequest(service=service)
            answer = await health.servicer.Check(request, None)
            answers.append(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    # There is no way back from draining.
    assert answers[::2] == ["SERVING"] * 4
    assert answers[1::2] == ["NOT_SERVING", "SERVING", "NOT_SERVING", "NOT_SERVING"]
