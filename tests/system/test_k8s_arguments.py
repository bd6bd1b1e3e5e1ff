"""The arguments of the manifests' containers, run as local processes, answer a request."""

from pathlib import Path

import grpc
import yaml

from examples.demo.model import CHECKPOINT
from examples.demo.services import Services
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc

BASE = Path(__file__).parents[2] / "k8s" / "base"
NOT_HERE = ("--host", "--port", "--operations-port", "--model", "--engine-dns")
"""What names the cluster's ports, addresses and weights."""


def arguments_of(path: str) -> list[str]:
    """Returns a container's own arguments, without those that only hold in the cluster."""
    pod = yaml.safe_load((BASE / path).read_text())["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    arguments = container["args"]
    names = {argument.partition("=")[0] for argument in arguments}
    assert set(NOT_HERE[:3]) <= names
    return [a for a in arguments if a.partition("=")[0] not in NOT_HERE]


async def test_request_goes_through_the_containers_of_the_manifests(tmp_path):
    engine_arguments = arguments_of("engine/statefulset.yaml")
    router_arguments = arguments_of("router/deployment.yaml")
    async with Services(tmp_path) as services:
        local = ["--model", str(CHECKPOINT), "--cpu-threads", "1", "--num-blocks", "64"]
        engine = services.start("engine-0", ["engine_service", *engine_arguments, *local])
        # Where this name has an IPv6 address too, no engine is there, which harms nobody.
        name = f"localhost:{engine.address.rpartition(':')[2]}"
        router = services.start("router", ["router", *router_arguments, "--engine-dns", name])
        await services.wait_ready([engine, router], 90, lambda service, state: None)
        async with grpc.aio.insecure_channel(router.address) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            request = router_pb2.GenerateRequest(
                text="introduce yourself",
                sampling_params=router_pb2.SamplingParams(max_tokens=5, ignore_eos=True),
            )
            responses = [response async for response in stub.Generate(request, timeout=60)]
    assert sum(len(response.token_ids) for response in responses) == 5
    assert responses[-1].finish.reason == router_pb2.FINISH_REASON_LENGTH
