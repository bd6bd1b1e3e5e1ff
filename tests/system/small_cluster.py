"""Runs the containers of an overlay as processes, each at an address of its own.

`python -m tests.system.small_cluster OVERLAY ROUTERS ENGINES LOGS [ipv6]` needs network, mount and
process namespaces of its own (`unshare`). There all ports are free, and the resolver asks a name
server that knows the names of the Services, through a search path as pods have it, and `/run` is
empty but for the Secrets of the pods. It writes what the routers saw and answered, as JSON, and
what they said to a client whose API key was revoked.
"""

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc

from examples.demo.model import CHECKPOINT
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from servicekit.address import join
from tests.contract.manifests import LAPTOP, Deployed, arguments_of
from tests.fakes.name_server import NameServer
from tests.system.cluster_secrets import Secrets, make, revoke
from tests.system.cluster_secrets import mount as mount_secrets

ZONE = "default.svc.cluster.local"
NAME_SERVER = "127.0.0.53"
ADDRESSES = {"engine": "127.0.1.{}", "router": "127.0.2.{}"}
IPV6 = "::1"
"""The only address of that family; where there is one pod of a kind, all pods have it."""
MODULES = {"engine": "engine_service", "router": "router"}
SMALL = ["--model", str(CHECKPOINT), "--device", "cpu", "--cpu-threads", "1", "--num-blocks", "64"]
"""Instead of a model that has to be downloaded and a GPU."""
RUN = "/run"
MS_BIND = 4096
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def isolate(logs: Path) -> None:
    """Brings the loopback device up, names the name server, and empties `/run`."""
    with socket.socket() as any_socket:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)
    resolv = logs / "resolv.conf"
    resolv.write_text(f"nameserver {NAME_SERVER}\nsearch {ZONE}\noptions ndots:5 timeout:1\n")
    place = Path("/etc/resolv.conf").resolve()
    mount("tmpfs", RUN, "tmpfs", 0)
    # It may be a link to there.
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    mount(str(resolv), str(place), "none", MS_BIND)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        raise OSError(ctypes.get_errno(), f"cannot mount {target}")


class Pod:
    """One container of the overlay, as a process."""

    def __init__(
        self, deployed: Deployed, name: str, number: int, logs: Path, *, is_ipv6: bool
    ) -> None:
        self.host = IPV6 if is_ipv6 else ADDRESSES[name].format(number)
        self.settings = deployed.settings(name)
        self.log = logs / f"{name}-{number}.log"
        arguments = arguments_of(deployed.pod(name))
        if not is_ipv6:
            # Else its value :: stays, which is all of this network.
            arguments = [a.replace("host=::", f"host={self.host}") for a in arguments]
        if name == "engine":
            own = SMALL[:2] if deployed.folder == LAPTOP else SMALL
            given = {option for option in own if option.startswith("--")}
            arguments = [a for a in arguments if a.partition("=")[0] not in given] + own
        command = [sys.executable, "-m", MODULES[name], *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    @property
    def address(self) -> str:
        return join(self.host, self.settings.port)

    async def wait_ready(self) -> None:
        """Asks the readiness probe's path until it says yes."""
        url = f"http://{join(self.host, self.settings.operations_port)}/readyz"
        while not await asyncio.to_thread(answers, url):
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text()[-2000:])
            await asyncio.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


class Client:
    """Asks routers as the overlay's clients have to."""

    def __init__(self, deployed: Deployed, secrets: Secrets) -> None:
        settings = deployed.settings("router")
        self._credentials = None
        self._options = [("grpc.ssl_target_name_override", f"{deployed.prefix}router")]
        self._metadata = []
        if settings.tls_cert is not None:
            pair = (None, None)
            if settings.tls_client_ca is not None:
                pair = tuple(secrets.read("client", key) for key in ("tls.key", "tls.crt"))
            ca = secrets.read(f"{deployed.prefix}router-server", "ca.crt")
            self._credentials = grpc.ssl_channel_credentials(ca, *pair)
        if settings.api_keys_file is not None:
            self._metadata = [("authorization", f"Bearer {secrets.api_key}")]

    @property
    def has_key(self) -> bool:
        return bool(self._metadata)

    async def wait_refused(self, router: Pod) -> str:
        """Asks for engines until that is refused; returns the status."""
        async with self.channel(router.address) as channel, asyncio.timeout(30):
            stub = router_pb2_grpc.RouterServiceStub(channel)
            while True:
                try:
                    await stub.ListEngines(
                        router_pb2.ListEnginesRequest(), timeout=10, metadata=self._metadata
                    )
                except grpc.aio.AioRpcError as error:
                    return error.code().name
                await asyncio.sleep(0.1)

    def channel(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address)
        return grpc.aio.secure_channel(address, self._credentials, self._options)

    async def ask(self, router: Pod) -> dict:
        """Returns the engines that a router knows and the tokens of an answer."""
        async with self.channel(router.address) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            request = router_pb2.GenerateRequest(
                text="introduce yourself",
                sampling_params=router_pb2.SamplingParams(max_tokens=5, ignore_eos=True),
            )
            call = stub.Generate(request, timeout=60, metadata=self._metadata)
            responses = [response async for response in call]
            listing = router_pb2.ListEnginesRequest()
            engines = await stub.ListEngines(listing, timeout=10, metadata=self._metadata)
        return {
            "tokens": sum(len(response.token_ids) for response in responses),
            "engines": sorted(engine.address for engine in engines.engines),
        }


async def run(
    folder: str, num_routers: int, num_engines: int, logs: Path, *, is_ipv6: bool
) -> dict:
    isolate(logs)
    deployed = Deployed(folder)
    secrets = make(deployed, logs)
    for name in MODULES:
        mount_secrets(secrets, deployed.pod(name))
    client = Client(deployed, secrets)
    service = deployed.find("Service", "engine")["metadata"]["name"]
    engines = [
        Pod(deployed, "engine", number + 1, logs, is_ipv6=is_ipv6) for number in range(num_engines)
    ]
    records = {f"{service}.{ZONE}": [engine.host for engine in engines]}
    await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(records), local_addr=(NAME_SERVER, 53)
    )
    routers = [
        Pod(deployed, "router", number + 1, logs, is_ipv6=is_ipv6) for number in range(num_routers)
    ]
    for pod in [*engines, *routers]:
        await pod.wait_ready()
    before = [await client.ask(router) for router in routers]
    # As when the set is scaled down: the pod is told to end, and its record goes.
    if num_engines > 1:
        gone = engines.pop()
        records[f"{service}.{ZONE}"] = [engine.host for engine in engines]
        gone.process.send_signal(signal.SIGTERM)
        exit_code = await asyncio.to_thread(gone.process.wait)
    else:
        exit_code = None
    after = [await client.ask(router) for router in routers]
    revoked = []
    if client.has_key:
        revoke(secrets)
        mount_secrets(secrets, deployed.pod("router"))
        revoked = [await client.wait_refused(router) for router in routers]
    return {"before": before, "after": after, "exit_code": exit_code, "revoked": revoked}


if __name__ == "__main__":
    overlay, routers, engines, folder, *family = sys.argv[1:]
    result = asyncio.run(
        run(overlay, int(routers), int(engines), Path(folder), is_ipv6=family == ["ipv6"])
    )
    sys.stdout.write(json.dumps(result))
    sys.stdout.flush()
    # Everything else in the process namespace ends with its first process.
    os._exit(0)
