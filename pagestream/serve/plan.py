"""What `pagestream serve` starts: which services, with which options, on which GPUs and ports."""

import contextlib
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_service.config import ModelOptions
from engine_service.models.name import served_name
from pagestream.gpus import VISIBLE, count_gpus, visible_gpus
from pagestream.serve.options import (
    READER,
    ServeOptions,
    engine_options,
    router_options,
)
from servicekit import address
from servicekit.errors import StartupError
from servicekit.listening import listen
from servicekit.options import GivenOptions
from servicekit.service_host import service_host

_LOOPBACK = "127.0.0.1"
_LOOPBACKS = {"0.0.0.0": _LOOPBACK, "::": "::1"}
"""Where this machine reaches what listens on all addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process to start.

    Attributes:
        name: For the reader, such as "engine-0".
        arguments: What stands behind `python -m`.
        address: Where it serves gRPC, "host:port".
        operations_address: Where it serves /metrics, /livez and /readyz, "host:port".
        operations_tls_cert: The certificate of that port; None if it speaks plain text.
        place: The GPUs or the CPU that it runs on, for the reader.
        environment: Variables of its own.
    """

    name: str
    arguments: Sequence[str]
    address: str
    operations_address: str
    operations_tls_cert: Path | None = None
    place: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is to be started.

    Attributes:
        model: The name that the engines give the model.
        engines: The engines.
        router: The router before them.
        http_address: Where it serves HTTP, "host:port".
        tls_cert: The certificate of its client ports; None if they speak plain text.
        needs_key: Whether its clients need an API key.
        needs_certificate: Whether they need a certificate.
        grace_seconds: Time that running requests get to finish.
    """

    model: str
    engines: tuple[Service, ...]
    router: Service
    http_address: str
    tls_cert: Path | None = None
    needs_key: bool = False
    needs_certificate: bool = False
    grace_seconds: float

    @property
    def services(self) -> tuple[Service, ...]:
        """All, in the order in which they start."""
        return (*self.engines, self.router)


def make_plan(given: GivenOptions, environment: Mapping[str, str]) -> Plan:
    """Decides what to start; ports that may be any are free ones.

    Raises:
        StartupError: There are not as many GPUs as the options ask for.
    """
    options = given.build(ServeOptions)
    num_ranks: int = _value(given, "tensor_parallel_size")
    groups = _gpu_groups(options, num_ranks, environment)
    num_engines = len(groups) or options.replicas or 1
    of_router = _router_ports(given, options)
    ports = _free_ports(_LOOPBACK, 2 * num_engines, of_router.values())
    taken = set(ports)
    arguments = [f"--model={options.model}", *engine_options(given.values)]
    if not groups:
        arguments += ["--device", "cpu"]
        num_sharing = num_engines * num_ranks
        if num_sharing > 1 and "cpu_threads" not in given.values:
            num_cores = len(os.sched_getaffinity(0))
            arguments.append(f"--cpu-threads={max(1, num_cores // num_sharing)}")
    engines = []
    for number in range(num_engines):
        gpus = ",".join(groups[number]) if groups else ""
        at = address.join(_LOOPBACK, ports.pop()), address.join(_LOOPBACK, ports.pop())
        engines.append(
            Service(
                name=f"engine-{number}",
                arguments=["engine_service", *arguments, *_listening(*at)]
                + (["--device", "cuda"] if groups else []),
                address=at[0],
                operations_address=at[1],
                operations_tls_cert=given.values.get("operations_tls_cert"),
                place=f"GPU {gpus}" if groups else "the CPU",
                environment={VISIBLE: gpus} if groups else {},
            )
        )
    router, http_address = _router(given, of_router, [one.address for one in engines], taken)
    return Plan(
        model=served_name(given.build(ModelOptions), Path(options.model)),
        engines=tuple(engines),
        router=router,
        http_address=http_address,
        tls_cert=given.values.get("tls_cert"),
        needs_key="api_keys_file" in given.values,
        needs_certificate="tls_client_ca" in given.values,
        grace_seconds=options.drain_grace_seconds,
    )


def _gpu_groups(
    options: ServeOptions, num_ranks: int, environment: Mapping[str, str]
) -> list[list[str]]:
    """Returns the GPUs of each engine; none for engines on the CPU."""
    gpus = [] if options.device == "cpu" else visible_gpus(environment, count_gpus())
    if not gpus:
        if options.device == "cuda":
            raise StartupError(
                "--device is cuda, but there is no GPU; `pagestream doctor` says what is missing"
            )
        return []
    num_engines = options.replicas or len(gpus) // num_ranks
    if not num_engines or num_engines * num_ranks > len(gpus):
        wanted = f"--tensor-parallel-size {num_ranks}"
        if options.replicas:
            wanted = f"--replicas {options.replicas} with {wanted}"
        raise StartupError(
            f"{wanted} needs {max(1, num_engines) * num_ranks} GPUs, but there "
            f"{'is 1' if len(gpus) == 1 else f'are {len(gpus)}'}; lower it, or serve with "
            "--device cpu"
        )
    return [
        gpus[first : first + num_ranks] for first in range(0, num_engines * num_ranks, num_ranks)
    ]


def _router_ports(given: GivenOptions, options: ServeOptions) -> dict[str, int]:
    """Returns the ports that the router shall have, by their options; 0 is any."""
    return {
        "port": _value(given, "port"),
        "operations_port": _value(given, "operations_port"),
        "http_port": options.http_port,
    }


def _router(
    given: GivenOptions, ports: Mapping[str, int], engines: Sequence[str], taken: Collection[int]
) -> tuple[Service, str]:
    host = service_host(given, _value(given, "host"))
    reached = _LOOPBACKS.get(host, host)
    for name, port in ports.items():
        if port:
            _check_free(host, port, name.replace("_", "-"))
    taken = {*taken, *ports.values()}
    free = _free_ports(reached, len(ports), taken) if 0 in ports.values() else []
    ports = {name: port or free.pop() for name, port in ports.items()}
    values = {**given.values, **ports}
    at = {name: address.join(reached, port) for name, port in ports.items()}
    arguments = ["--engines", ",".join(engines), *router_options(values)]
    service = Service(
        name="router",
        arguments=["router", *arguments],
        address=at["port"],
        operations_address=at["operations_port"],
        operations_tls_cert=given.values.get("operations_tls_cert"),
    )
    return service, at["http_port"]


def _value(given: GivenOptions, name: str) -> Any:  # noqa: ANN401
    """Returns the value of an option that is not serve's own."""
    return given.values.get(name, READER.fields[name].default)


def _listening(at: str, operations_at: str) -> list[str]:
    host, port = address.split(at)
    _, operations_port = address.split(operations_at)
    return [f"--host={host}", f"--port={port}", f"--operations-port={operations_port}"]


def _check_free(host: str, port: int, option: str) -> None:
    """Refuses a port in use at once; the router would do so some seconds later.

    Raises:
        CannotListen: The port is in use, or the host is not this machine's.
    """
    for listener in listen(host, port, option):
        listener.close()


def _free_ports(host: str, count: int, taken: Collection[int]) -> list[int]:
    """Returns ports that nothing listens on; the services have them some moments later.

    Args:
        host: Name or address of this machine.
        count: How many.
        taken: Ports that are for other services, which may not listen yet.
    """
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            try:
                found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
                one = held.enter_context(socket.socket(found[0][0], socket.SOCK_STREAM))
                one.bind(found[0][-1])
            except OSError as error:
                raise StartupError(
                    f"cannot listen on {host} ({error.strerror}); choose another host"
                ) from None
            if one.getsockname()[1] not in taken:
                ports.append(one.getsockname()[1])
        return ports
