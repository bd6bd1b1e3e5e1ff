"""The options of `pagestream serve`: its own, and those of the services that it passes on."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from engine_service.config import ENVIRONMENT_PREFIX as ENGINE_PREFIX
from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions, ServerOptions
from router.config import ENVIRONMENT_PREFIX as ROUTER_PREFIX
from router.config import RouterConfig
from servicekit import common_options
from servicekit.errors import StartupError
from servicekit.options import OptionReader, Options, Without, about, flag
from servicekit.values import PORTS, Integers, OneOf, Texts

PREFIX = "PAGESTREAM_SERVE_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions(Options):
    """What runs on this machine."""

    model: str = field(
        metadata=about(
            Texts(r"[^\x00]+", "a folder or a hub ID"),
            "folder of a Hugging Face checkpoint, or a hub ID such as Qwen/Qwen3-0.6B",
            is_positional=True,
        )
    )
    replicas: int | None = field(
        default=None,
        metadata=about(
            Integers(1, 64),
            "engines, each with a copy of the model",
            unset="as many as the GPUs of CUDA_VISIBLE_DEVICES are enough for; 1 on the CPU",
        ),
    )
    device: str = field(
        default="auto",
        metadata=about(
            OneOf(("auto", "cpu", "cuda")),
            "auto: the GPUs of CUDA_VISIBLE_DEVICES, or the CPU if there are none; cpu or cuda",
        ),
    )
    http_port: int = field(
        default=8000,
        metadata=about(PORTS, "port of the HTTP APIs of OpenAI and Anthropic; 0 picks a free one"),
    )
    drain_grace_seconds: float = field(default=30.0, metadata=common_options.DRAIN_GRACE_SECONDS)
    log_level: str = field(default="info", metadata=common_options.LOG_LEVEL)


_OWN = {one.name for one in fields(ServeOptions)}
_WHERE_ENGINES_ARE = {"engines", "engines_file", "engine_dns", "discovery_interval"}
# Between router and engines, which are on this machine's loopback, nothing is encrypted.
_TLS_TO_ENGINES = {"engine_tls_ca", "engine_tls_cert", "engine_tls_key", "engine_tls_name"}
_NOT_OF_ROUTER = _WHERE_ENGINES_ARE | _TLS_TO_ENGINES
_OF_ROUTER = {one.name for one in fields(RouterConfig)} - _NOT_OF_ROUTER
_TLS_OF_ENGINES = {"tls_cert", "tls_key", "tls_client_ca", "tls_client_names"}
# Serve picks the first six. The next one is for clients of an engine, and a router is none.
_NOT_OF_ENGINES = {"model", "device", "host", "insecure_host", "port", "operations_port"}
_NOT_OF_ENGINES |= {"max_buffered_tokens"} | _TLS_OF_ENGINES
_ENGINE_CLASSES = (ModelOptions, CacheOptions, SchedulerOptions, ServerOptions)
_OF_ENGINES = {one.name for group in _ENGINE_CLASSES for one in fields(group)} - _NOT_OF_ENGINES
"""An option of this name that the router has, too, means the same to both and goes to both."""
_ELSEWHERE = _NOT_OF_ENGINES | _OWN | _OF_ROUTER
_NO_ENGINE_TLS = "serve's engines listen on the loopback only, without TLS"
_NO_ENGINES = "serve starts the engines itself; `pagestream router` goes before engines elsewhere"

READER = OptionReader(
    program="pagestream serve",
    description="Serves a model on this machine: starts a router and one engine per GPU, says when "
    "they are ready and where, and ends all of them at Ctrl-C.",
    prefix=PREFIX,
    groups={
        "serve": ServeOptions,
        "router": Without(RouterConfig, _NOT_OF_ROUTER | _OWN),
        "engine: model": Without(ModelOptions, _ELSEWHERE),
        "engine: cache": Without(CacheOptions, _ELSEWHERE),
        "engine: scheduler": Without(SchedulerOptions, _ELSEWHERE),
        "engine: server": Without(ServerOptions, _ELSEWHERE),
    },
    refused={
        "model": "write the model alone, `pagestream serve MODEL`",
        "engines": _NO_ENGINES,
        "engines_file": _NO_ENGINES,
        "engine_dns": _NO_ENGINES,
        "discovery_interval": _NO_ENGINES,
        **dict.fromkeys(sorted(_TLS_TO_ENGINES), _NO_ENGINE_TLS),
        "tls_client_names": _NO_ENGINE_TLS,
        "gpus": "set CUDA_VISIBLE_DEVICES to choose GPUs, and --replicas to have fewer engines",
    },
)


def check_variables(environment: Mapping[str, str]) -> None:
    """Refuses variables that a service would read, but that serve does not.

    Raises:
        StartupError: There is one; the message names it.
    """
    for prefix in (ENGINE_PREFIX, ROUTER_PREFIX):
        for variable in environment:
            name = variable.removeprefix(prefix)
            if variable.startswith(prefix):
                known = name.lower() in READER.fields
                instead = f"rename it to {PREFIX}{name} or unset it" if known else "unset it"
                raise StartupError(
                    f"environment variable {variable:.200} is for a service that is started "
                    f"alone, and serve does not read it; {instead}"
                )


def router_options(values: Mapping[str, Any]) -> list[str]:
    """Returns those of the given options that the router takes, as its command line."""
    return list(_written(sorted(_OF_ROUTER), values))


def engine_options(values: Mapping[str, Any]) -> list[str]:
    """Returns those of the given options that each engine takes, as its command line."""
    return list(_written(sorted(_OF_ENGINES), values))


def _written(names: Iterable[str], values: Mapping[str, Any]) -> Iterator[str]:
    for name in names:
        value = values.get(name)
        if isinstance(value, bool):
            yield flag(name) if value else flag(f"no_{name}")
        elif value is not None:
            # In one piece, for a value may begin with a dash.
            yield f"{flag(name)}={value}"
