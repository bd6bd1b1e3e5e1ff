"""All settings of an engine. Nothing is read, checked or defaulted anywhere else.

Each field of the option classes is an option of the command line and an environment variable; its
metadata says what it means and which values it takes. Whoever constructs one has it checked.
"""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from engine_service.errors import StartupError
from protos.wire.printable import NAME_RULE, is_name
from servicekit.address import is_host

ENVIRONMENT_PREFIX = "PAGESTREAM_ENGINE_"
LOG_LEVELS = ("debug", "info", "warning", "error")
_MAX_INT32 = 2**31 - 1


class _Values(Protocol):
    """Which values an option takes. A text that `parse` cannot read is left for `check`.

    The ValueErrors of `check` end a sentence on the option.
    """

    def parse(self, text: str) -> object: ...
    def check(self, value: object) -> None: ...


@dataclass(frozen=True, slots=True)
class _Integers:
    minimum: int
    maximum: int

    def parse(self, text: str) -> object:
        try:
            return int(text)
        except ValueError:
            return text

    def check(self, value: object) -> None:
        bounds = f"from {self.minimum} to {self.maximum}"
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"is {value!r}, must be an integer {bounds}")
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"is {value}, must be {bounds}")


@dataclass(frozen=True, slots=True)
class _Numbers:
    minimum: float
    maximum: float

    def parse(self, text: str) -> object:
        try:
            return float(text)
        except ValueError:
            return text

    def check(self, value: object) -> None:
        bounds = f"from {self.minimum:g} to {self.maximum:g}"
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"is {value!r}, must be a number {bounds}")
        if math.isnan(value) or not self.minimum <= value <= self.maximum:
            raise ValueError(f"is {value:g}, must be {bounds}")


@dataclass(frozen=True, slots=True)
class _OneOf:
    choices: tuple[Any, ...]

    def parse(self, text: str) -> object:
        return next((choice for choice in self.choices if str(choice) == text), text)

    def check(self, value: object) -> None:
        # 16.0 equals 16 and is none of the choices.
        if not any(type(value) is type(choice) and value == choice for choice in self.choices):
            raise ValueError(f"is {value!r}, must be one of {', '.join(map(str, self.choices))}")


@dataclass(frozen=True, slots=True)
class _Texts:
    pattern: str
    expected: str

    def parse(self, text: str) -> str:
        return text

    def check(self, value: object) -> None:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"is {value!r}, must be {self.expected}")


@dataclass(frozen=True, slots=True)
class _Hosts:
    def parse(self, text: str) -> str:
        return text

    def check(self, value: object) -> None:
        if not isinstance(value, str) or not is_host(value):
            raise ValueError(f"is {value!r}, must be a name or an IP address, without brackets")


@dataclass(frozen=True, slots=True)
class _Names:
    def parse(self, text: str) -> str:
        return text

    def check(self, value: object) -> None:
        if value != "" and (not isinstance(value, str) or not is_name(value)):
            raise ValueError(f"is {value!r}, must be {NAME_RULE}")


@dataclass(frozen=True, slots=True)
class _Flags:
    def parse(self, text: str) -> object:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)

    def check(self, value: object) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}, must be true or false")


def _about(values: _Values, help: str, unset: str = "") -> dict[str, Any]:
    """Returns a field's metadata; `unset` says what the default None or "" stands for."""
    return {"values": values, "help": help, "unset": unset}


def _check_all(options: "_Options") -> None:
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        if value is None and option.default is None:
            continue
        try:
            option.metadata["values"].check(value)
        except ValueError as error:
            raise StartupError(f"{option.name} {error}") from None


_PORTS = _Integers(0, 65535)
_COUNTS = _Integers(1, _MAX_INT32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, in which arithmetic, on which device."""

    model: str = field(
        metadata=_about(
            _Texts(r"[^\x00]+", "a folder or a hub ID"),
            "folder of a Hugging Face checkpoint, or its hub ID",
        )
    )
    served_model_name: str = field(
        default="",
        metadata=_about(
            _Names(),
            "name that clients ask for",
            unset="the last part of --model",
        ),
    )
    load_format: str = field(
        default="auto",
        metadata=_about(
            _OneOf(("auto", "dummy")),
            "auto: read the safetensors files; dummy: random weights, from config.json alone",
        ),
    )
    dtype: str = field(
        default="auto",
        metadata=_about(
            _OneOf(("auto", "float32", "bfloat16")),
            "arithmetic: auto (the checkpoint's on CUDA, float32 on CPU), float32 or bfloat16",
        ),
    )
    device: str = field(
        default="auto",
        metadata=_about(
            _Texts(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N"),
            "where to compute: auto (cuda if there is one, else cpu), cpu, cuda or cuda:N",
        ),
    )
    max_model_len: int | None = field(
        default=None,
        metadata=_about(
            _Integers(2, _MAX_INT32),
            "the most tokens of prompt and output together",
            unset="the checkpoint's",
        ),
    )
    seed: int = field(
        default=0,
        metadata=_about(_Integers(0, 2**63 - 1), "seed of the weights of --load-format dummy"),
    )
    enforce_eager: bool = field(
        default=False,
        metadata=_about(_Flags(), "launch each kernel of a step by itself instead of CUDA graphs"),
    )
    cpu_threads: int | None = field(
        default=None,
        metadata=_about(
            _Integers(1, 1024),
            "threads that compute on the CPU; engines that share a machine should share its cores",
            unset="one per core",
        ),
    )

    def __post_init__(self) -> None:
        _check_all(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """The paged KV cache."""

    block_size: int = field(
        default=64, metadata=_about(_OneOf((16, 32, 64, 128, 256)), "tokens of one block")
    )
    num_blocks: int | None = field(
        default=None,
        metadata=_about(
            _COUNTS,
            "blocks of the pool",
            unset="sized by --gpu-memory-utilization on CUDA, by --cpu-cache-bytes on CPU",
        ),
    )
    gpu_memory_utilization: float = field(
        default=0.9,
        metadata=_about(
            _Numbers(0.01, 1.0),
            "share of the GPU's memory for weights, activations and cache together, 0.01 to 1",
        ),
    )
    cpu_cache_bytes: int = field(
        default=1 << 30,
        metadata=_about(
            _Integers(1, 2**63 - 1), "bytes of the pool on the CPU when --num-blocks is not given"
        ),
    )
    enable_prefix_caching: bool = field(
        default=True,
        metadata=_about(_Flags(), "reuse the blocks of prompts that begin alike"),
    )

    def __post_init__(self) -> None:
        _check_all(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """How much one step may do."""

    max_num_seqs: int = field(
        default=256,
        metadata=_about(_Integers(1, 65536), "the most sequences that run at once"),
    )
    max_num_batched_tokens: int = field(
        default=8192, metadata=_about(_Integers(1, 2**24), "the most tokens of one step")
    )
    max_steps_in_flight: int | None = field(
        default=None,
        metadata=_about(
            _Integers(1, 8),
            "steps launched before the tokens of the first are read; with 1, the GPU waits while "
            "the next step is planned",
            unset="2 on CUDA, 1 on the CPU, which computes while it launches",
        ),
    )

    def __post_init__(self) -> None:
        _check_all(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How the engine is reached, and what it holds for those who wait or read slowly."""

    host: str = field(
        # The wire is neither encrypted nor authenticated: whoever opens it to a network says so.
        default="127.0.0.1",
        metadata=_about(
            _Hosts(),
            "address that both ports listen on; :: is all of the machine's, 0.0.0.0 all its IPv4 "
            "ones",
        ),
    )
    port: int = field(default=50051, metadata=_about(_PORTS, "port of gRPC; 0 picks a free one"))
    operations_port: int = field(
        default=9101,
        metadata=_about(
            _PORTS, "port of /metrics, /livez and /readyz over HTTP; 0 picks a free one"
        ),
    )
    max_waiting_requests: int = field(
        default=1024,
        metadata=_about(
            _Integers(1, 1_000_000),
            "requests that may wait for a place in a step; more are refused with QUEUE_FULL",
        ),
    )
    max_buffered_tokens: int = field(
        default=16_384,
        metadata=_about(
            _COUNTS,
            "tokens kept for one Generate call that is not read; past it, it ends with SLOW_READER",
        ),
    )
    max_stream_buffered_tokens: int = field(
        default=262_144,
        metadata=_about(
            _COUNTS,
            "tokens kept for one GenerateMany stream that is not read; past it, SLOW_READER",
        ),
    )
    max_cache_history_hashes: int = field(
        default=1 << 20,
        metadata=_about(
            _COUNTS,
            "block hashes of past cache changes kept for watchers that resume or read slowly",
        ),
    )
    drain_grace_seconds: float = field(
        default=30.0,
        metadata=_about(
            _Numbers(0, 86_400), "seconds that running requests get to finish after SIGTERM"
        ),
    )
    core_silence_seconds: float = field(
        default=5.0,
        metadata=_about(
            _Numbers(1, 86_400),
            "seconds of silence after which the core counts as frozen, 1 to 86400; its own long "
            "steps extend them",
        ),
    )
    frozen_core_exit_seconds: float = field(
        default=30.0,
        metadata=_about(
            _Numbers(0, 86_400),
            "seconds that a frozen core gets to wake up before the engine kills it and exits",
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about(
            _OneOf(LOG_LEVELS), f"least severe of what is logged: {', '.join(LOG_LEVELS)}"
        ),
    )

    def __post_init__(self) -> None:
        _check_all(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine; part of each goes to the process that needs it."""

    model: ModelOptions
    cache: CacheOptions = field(default_factory=CacheOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    server: ServerOptions = field(default_factory=ServerOptions)


_Options = ModelOptions | CacheOptions | SchedulerOptions | ServerOptions

_GROUPS: dict[str, type[_Options]] = {
    "model": ModelOptions,
    "cache": CacheOptions,
    "scheduler": SchedulerOptions,
    "server": ServerOptions,
}
_FIELDS = {
    option.name: option for group in _GROUPS.values() for option in dataclasses.fields(group)
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartupError(f"{message}; --help lists the options")


def read_config(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> EngineConfig:
    """Reads the settings from the command line and, where it is silent, from the environment.

    `--help` prints the options and exits.

    Args:
        arguments: The command line without the program's name.
        environment: Variables; None means those of the process.

    Raises:
        StartupError: An option is unknown, missing or has a bad value; the message names it.
    """
    variables = os.environ if environment is None else environment
    values: dict[str, Any] = {
        name: value if isinstance(value, bool) else _parse(name, value, _option(name))
        for name, value in vars(_parser().parse_args(arguments)).items()
    }
    for variable, text in sorted(variables.items()):
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if name not in _FIELDS:
                raise StartupError(f"environment variable {variable} is no option{_hint(text)}")
            if name not in values:
                values[name] = _parse(name, text, variable)
    if "model" not in values:
        raise StartupError(
            f"--model is missing (or {ENVIRONMENT_PREFIX}MODEL): "
            f"{_FIELDS['model'].metadata['help']}; --help lists the options"
        )
    parts: dict[str, Any] = {
        part: group(
            **{o.name: values[o.name] for o in dataclasses.fields(group) if o.name in values}
        )
        for part, group in _GROUPS.items()
    }
    return EngineConfig(**parts)


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m engine_service",
        description="Serves one replica of one model over gRPC: token IDs in, token IDs out. "
        "A command line option wins over its environment variable.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for part, group in _GROUPS.items():
        section = parser.add_argument_group(part, (group.__doc__ or "").strip())
        for option in dataclasses.fields(group):
            is_flag = isinstance(option.metadata["values"], _Flags)
            kind: dict[str, Any] = (
                {"action": argparse.BooleanOptionalAction} if is_flag else {"metavar": "VALUE"}
            )
            section.add_argument(_option(option.name), help=_help(option), **kind)
    return parser


def _help(option: "dataclasses.Field[Any]") -> str:
    if option.default is dataclasses.MISSING:
        default = "required"
    else:
        default = f"default: {option.metadata['unset'] or option.default}"
    text = f"{option.metadata['help']} ({default}; {ENVIRONMENT_PREFIX}{option.name.upper()})"
    return text.replace("%", "%%")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parse(name: str, text: str, source: str) -> object:
    values: _Values = _FIELDS[name].metadata["values"]
    try:
        value = values.parse(text)
        values.check(value)
    except ValueError as error:
        raise StartupError(f"{source} {error}{_hint(text)}") from None
    return value


def _hint(text: str) -> str:
    # Kubernetes describes a Service named pagestream-engine in variables with our prefix.
    if text.startswith("tcp://"):
        return "; Kubernetes sets it for a Service of this name: set enableServiceLinks to false"
    return ""
