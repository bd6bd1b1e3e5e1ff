"""All settings of a router. Nothing is read, checked or defaulted anywhere else."""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from protos.wire.limits import MAX_PROMPT_BYTES
from router.engines.discovery import ServiceName, parse_addresses, parse_service_name
from router.errors import StartupError
from servicekit.address import is_host

ENVIRONMENT_PREFIX = "PAGESTREAM_ROUTER_"
PLACEMENTS = ("prefix", "round_robin", "random", "least_loaded")
LOG_LEVELS = ("debug", "info", "warning", "error")
_ENGINES = ("engines", "engines_file", "engine_dns")
"""Options that say where the engines are; exactly one of them is given."""
_ONE_OF_ENGINES = "one of the first three is required"


def _text(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _host(text: str) -> str:
    if not is_host(_text(text)):
        raise ValueError(f"is {text!r}, must be a name or an IP address, without brackets")
    return text


def _integer(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            raise ValueError(f"is {text!r}, must be an integer from {minimum} to {maximum}")
        return value

    return parse


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"is {text!r}, must be true or false")
    return text == "true"


def _path(text: str) -> Path:
    return Path(_text(text))


def _seconds(maximum: float, minimum: float = 0) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not minimum <= value <= maximum:
            raise ValueError(
                f"is {text!r}, must be a number of seconds from {minimum:g} to {maximum:g}"
            )
        return value

    return parse


def _choice(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is {text!r}, must be one of {', '.join(choices)}")
        return text

    return parse


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Settings of one router; each field is an option of the command line."""

    engines: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "addresses of the engines, host:port separated by commas",
            "parse": parse_addresses,
            "unset": _ONE_OF_ENGINES,
        },
    )
    engines_file: Path | None = field(
        default=None,
        metadata={
            "help": "file with the address of one engine a line, followed as it changes",
            "parse": _path,
            "unset": _ONE_OF_ENGINES,
        },
    )
    engine_dns: ServiceName | None = field(
        default=None,
        metadata={
            "help": "name:port whose A and AAAA records are the engines, followed as they change",
            "parse": parse_service_name,
            "unset": _ONE_OF_ENGINES,
        },
    )
    discovery_interval: float = field(
        default=5.0,
        metadata={
            "help": "seconds between two lookups of --engine-dns, 0.1 to 3600",
            "parse": _seconds(3600, minimum=0.1),
        },
    )
    host: str = field(
        default="127.0.0.1",
        metadata={
            "help": "address that both ports listen on; :: is all of the machine's, 0.0.0.0 all "
            "its IPv4 ones",
            "parse": _host,
        },
    )
    port: int = field(
        default=50050,
        metadata={"help": "port of gRPC; 0 picks a free one", "parse": _integer(0, 65535)},
    )
    operations_port: int = field(
        default=9100,
        metadata={
            "help": "port of /metrics, /livez and /readyz over HTTP; 0 picks a free one",
            "parse": _integer(0, 65535),
        },
    )
    placement: str = field(
        default="prefix",
        metadata={
            "help": f"how an engine is chosen: {', '.join(PLACEMENTS)}",
            "parse": _choice(PLACEMENTS),
        },
    )
    max_concurrent_requests: int = field(
        default=4096,
        metadata={
            "help": "requests under way at once; more are refused with QUEUE_FULL",
            "parse": _integer(1, 1_000_000),
        },
    )
    max_prompt_bytes: int = field(
        default=4 * 1024 * 1024,
        metadata={
            "help": "size of a text, or of all messages of a chat together, in bytes of UTF-8",
            "parse": _integer(1, MAX_PROMPT_BYTES),
        },
    )
    max_request_bytes: int = field(
        default=256 * 1024 * 1024,
        metadata={
            "help": "bytes of all requests under way together; more are refused with QUEUE_FULL",
            "parse": _integer(1, 1 << 40),
        },
    )
    max_queued_prompt_tokens: int = field(
        default=4 * 1024 * 1024,
        metadata={
            "help": "tokens of prompts that wait for an engine to begin with them; more are "
            "refused with QUEUE_FULL",
            "parse": _integer(1, 1 << 40),
        },
    )
    max_buffered_tokens: int = field(
        default=16_384,
        metadata={
            "help": "tokens kept for one client that does not read; past it, its request ends "
            "with SLOW_READER",
            "parse": _integer(1, 100_000_000),
        },
    )
    slow_reader_seconds: float = field(
        default=30.0,
        metadata={
            "help": "seconds, 0.1 to 3600, that a client may leave a message unread; past it, its "
            "request ends with SLOW_READER",
            "parse": _seconds(3600, minimum=0.1),
        },
    )
    tokenizer_threads: int = field(
        default=2,
        metadata={"help": "threads that tokenize texts and long chats", "parse": _integer(1, 256)},
    )
    template_seconds: float = field(
        default=2.0,
        metadata={
            "help": "seconds of CPU time, 0.01 to 60, that a model's chat template gets for a chat",
            "parse": _seconds(60, minimum=0.01),
        },
    )
    allow_special_tokens_in_content: bool = field(
        default=False,
        metadata={
            "help": "let names of special tokens in the messages of chats be those tokens",
            "parse": _flag,
        },
    )
    drain_grace_seconds: float = field(
        default=30.0,
        metadata={
            "help": "seconds that running requests get to finish after SIGTERM",
            "parse": _seconds(86_400),
        },
    )
    log_level: str = field(
        default="info",
        metadata={
            "help": f"least severe of what is logged: {', '.join(LOG_LEVELS)}",
            "parse": _choice(LOG_LEVELS),
        },
    )


_FIELDS = {option.name: option for option in dataclasses.fields(RouterConfig)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartupError(f"{message}; --help lists the options")


def read_config(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> RouterConfig:
    """Reads the settings from the command line and, where it is silent, from the environment.

    `--help` prints the options and exits.

    Args:
        arguments: The command line without the program's name.
        environment: Variables; None means those of the process.

    Raises:
        StartupError: An option is unknown, missing, has a bad value or does not go with another;
            the message names it.
    """
    variables = os.environ if environment is None else environment
    texts = vars(_parser().parse_args(arguments))
    sources = {name: f"--{_dashed(name)}" for name in texts}
    values = {
        name: text if isinstance(text, bool) else _parse(name, text, sources[name])
        for name, text in texts.items()
    }
    for variable, text in sorted(variables.items()):
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if name not in _FIELDS:
                raise StartupError(f"environment variable {variable} is no option{_hint(text)}")
            if name not in values:
                values[name] = _parse(name, text, variable)
                sources[name] = variable
    _check_engines(sources)
    return RouterConfig(**values)  # type: ignore[arg-type]


def _check_engines(sources: Mapping[str, str]) -> None:
    """Refuses options on the engines that do not go together, by who gave them."""
    given = [sources[name] for name in _ENGINES if name in sources]
    if not given:
        raise StartupError(
            f"--engines host:port,... is missing (or {ENVIRONMENT_PREFIX}ENGINES), or else "
            "--engines-file or --engine-dns; --help lists the options"
        )
    if len(given) > 1:
        raise StartupError(f"{' and '.join(given)} are given; they exclude each other")
    if "discovery_interval" in sources and "engine_dns" not in sources:
        raise StartupError(
            f"{sources['discovery_interval']} is given without --engine-dns, "
            f"and means nothing to {given[0]}"
        )


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m router",
        description="Serves models over gRPC: turns text into tokens, picks an engine, streams "
        "text back. A command line option wins over its environment variable.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, option in _FIELDS.items():
        kind: dict[str, Any] = {"metavar": "VALUE"}
        default = option.metadata.get("unset") or f"default {option.default}"
        if isinstance(option.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
            default = f"default {'on' if option.default else 'off'}"
        parser.add_argument(
            f"--{_dashed(name)}",
            **kind,
            help=f"{option.metadata['help']} ({default}; {ENVIRONMENT_PREFIX}{name.upper()})",
        )
    return parser


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _parse(name: str, text: str, source: str) -> object:
    try:
        return _FIELDS[name].metadata["parse"](text)
    except ValueError as error:
        raise StartupError(f"{source} {error}{_hint(text)}") from None


def _hint(text: str) -> str:
    # Kubernetes describes a Service named pagestream-router in variables with our prefix.
    if text.startswith("tcp://"):
        return "; Kubernetes sets it for a Service of this name: set enableServiceLinks to false"
    return ""
