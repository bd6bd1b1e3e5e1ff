"""All settings of a router. Nothing is read, checked or defaulted anywhere else.

Each field of `RouterConfig` is an option of the command line and an environment variable; its
metadata says what it means and which values it takes. Constructing one checks its values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from protos.wire.limits import MAX_PROMPT_BYTES
from router.engines.discovery import ServiceName, parse_addresses, parse_service_name
from router.errors import StartupError
from router.text.parsers.registry import REASONING_PARSERS, TOOL_CALL_PARSERS
from servicekit import common_options
from servicekit.options import OptionReader, Options, about
from servicekit.service_host import service_host
from servicekit.values import (
    PORTS,
    Flags,
    Integers,
    Listed,
    OneOf,
    Paths,
    byte_sizes,
    counts,
    quoted,
    seconds,
)

ENVIRONMENT_PREFIX = "PAGESTREAM_ROUTER_"
PLACEMENTS = ("prefix", "round_robin", "random", "least_loaded")
PROGRAM = "python -m router"
_ENGINES = ("engines", "engines_file", "engine_dns")
"""Options that say where the engines are; exactly one of them is given."""
_ONE_OF_ENGINES = "none; one of --engines, --engines-file and --engine-dns is required"


class _Addresses(Listed):
    """Addresses of engines, as a text and as a tuple."""

    def parse(self, text: str) -> object:
        return parse_addresses(text)

    def check(self, value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"is {quoted(value)}, must be a tuple of addresses, host:port")
        if parse_addresses(",".join(value)) != value:
            raise ValueError(f"is {quoted(value)}, must have one address, host:port, in each item")


class _ServiceNames:
    """A name in DNS and a port."""

    def parse(self, text: str) -> object:
        return parse_service_name(text)

    def check(self, value: object) -> None:
        if not isinstance(value, ServiceName):
            raise ValueError(f"is {quoted(value)}, must be a name and a port")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig(Options):
    """The router's engines, its addresses and its limits."""

    engines: tuple[str, ...] = field(
        default=(),
        metadata=about(
            _Addresses(),
            "addresses of the engines, host:port, separated by commas",
            unset=_ONE_OF_ENGINES,
        ),
    )
    engines_file: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with one engine address per line, host:port; it may change while the router runs",
            unset=_ONE_OF_ENGINES,
        ),
    )
    engine_dns: ServiceName | None = field(
        default=None,
        metadata=about(
            _ServiceNames(),
            "name:port whose A and AAAA records are the engines; they may change while the router "
            "runs",
            unset=_ONE_OF_ENGINES,
        ),
    )
    discovery_interval: float = field(
        default=5.0,
        metadata=about(
            seconds(0.1, 3600),
            "seconds between lookups of --engine-dns, 0.1 to 3600",
        ),
    )
    host: str = field(default="127.0.0.1", metadata=common_options.HOST)
    insecure_host: str | None = field(default=None, metadata=common_options.INSECURE_HOST)
    port: int = field(default=50050, metadata=common_options.PORT)
    operations_port: int = field(default=8100, metadata=common_options.OPERATIONS_PORT)
    http_port: int | None = field(
        default=None,
        metadata=about(
            PORTS,
            "port of the HTTP APIs of OpenAI and Anthropic; 0 picks a free one",
            unset="none: gRPC only",
        ),
    )
    tls_cert: Path | None = field(default=None, metadata=common_options.TLS_CERT)
    tls_key: Path | None = field(default=None, metadata=common_options.TLS_KEY)
    tls_client_ca: Path | None = field(default=None, metadata=common_options.TLS_CLIENT_CA)
    operations_tls_cert: Path | None = field(
        default=None, metadata=common_options.OPERATIONS_TLS_CERT
    )
    operations_tls_key: Path | None = field(
        default=None, metadata=common_options.OPERATIONS_TLS_KEY
    )
    engine_tls_ca: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with certificates of CAs in PEM; engines must then speak TLS and have a "
            "certificate of one of them; this and the next two may change while the router runs",
            unset="none: plain text to engines",
        ),
    )
    engine_tls_cert: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with the certificate that the router shows to engines, and those between it and "
            "its CA",
            unset="none",
        ),
    )
    engine_tls_key: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with the private key of --engine-tls-cert, without a passphrase",
            unset="none",
        ),
    )
    engine_tls_name: str = field(
        default="",
        metadata=about(
            common_options.TLS_NAMES,
            "name that the certificate of each engine must have",
            unset="the host of the engine's address",
        ),
    )
    api_keys_file: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file of the API keys that clients need, made by `pagestream keys`; it may change "
            "while the router runs",
            unset="clients need none",
        ),
    )
    workers: int = field(
        default=1,
        metadata=about(
            Integers(1, 256),
            "processes that share the ports, each a router of its own with the bounds below",
        ),
    )
    placement: str = field(
        default="prefix",
        metadata=about(
            OneOf(PLACEMENTS),
            f"how an engine is chosen: {', '.join(PLACEMENTS)}",
        ),
    )
    max_concurrent_requests: int = field(
        default=4096,
        metadata=about(
            counts(1, 1_000_000),
            "maximum requests in progress at once, of which a call has n; more are refused with "
            "QUEUE_FULL",
        ),
    )
    max_prompt_bytes: int = field(
        default=4 * 1024 * 1024,
        metadata=about(
            byte_sizes(1, MAX_PROMPT_BYTES),
            "maximum UTF-8 bytes of a text, or of all messages of a chat together",
        ),
    )
    max_request_bytes: int = field(
        default=256 * 1024 * 1024,
        metadata=about(
            byte_sizes(1, 1 << 40),
            "maximum bytes of all requests in progress together; more are refused with QUEUE_FULL",
        ),
    )
    max_queued_prompt_tokens: int = field(
        default=4 * 1024 * 1024,
        metadata=about(
            counts(1, 1 << 40),
            "maximum prompt tokens of all requests that no engine has started yet; more are "
            "refused with QUEUE_FULL",
        ),
    )
    max_buffered_tokens: int = field(
        default=16_384,
        metadata=about(
            counts(1, 100_000_000),
            "maximum unread tokens of each continuation; if tokens come for one that has more, its "
            "request ends with SLOW_READER",
        ),
    )
    slow_reader_seconds: float = field(
        default=30.0,
        metadata=about(
            seconds(0.1, 3600),
            "seconds that a client may leave a message unread, 0.1 to 3600; after that, its "
            "request ends with SLOW_READER",
        ),
    )
    tokenizer_threads: int = field(
        default=2,
        metadata=about(
            Integers(1, 256),
            "threads that tokenize texts and long chats",
        ),
    )
    template_seconds: float = field(
        default=2.0,
        metadata=about(
            seconds(0.01, 60),
            "seconds of CPU time that a model's chat template may take for one chat, 0.01 to 60",
        ),
    )
    chat_template: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with a chat template that replaces those of all models, at most 1 Mi characters",
            unset="each model's own",
        ),
    )
    tool_call_parser: str = field(
        default="auto",
        metadata=about(
            OneOf(TOOL_CALL_PARSERS),
            f"how models write tool calls: {', '.join(TOOL_CALL_PARSERS)}; auto goes by the "
            "model's chat template",
        ),
    )
    reasoning_parser: str = field(
        default="auto",
        metadata=about(
            OneOf(REASONING_PARSERS),
            f"how models write their reasoning: {', '.join(REASONING_PARSERS)}; auto goes by the "
            "model's chat template",
        ),
    )
    allow_special_tokens_in_content: bool = field(
        default=False,
        metadata=about(
            Flags(),
            "encode names of special tokens in chat messages as these tokens; unsafe unless the "
            "authors of the messages are trusted",
        ),
    )
    max_connection_age_seconds: float = field(
        default=300.0,
        metadata=about(
            seconds(0, common_options.MAX_SECONDS),
            "seconds after which a gRPC connection takes no new calls, so that its client connects "
            "again, perhaps to another router; 0 is never",
        ),
    )
    max_connection_age_grace_seconds: float = field(
        default=0.0,
        metadata=about(
            seconds(0, common_options.MAX_SECONDS),
            "seconds that calls get to finish on a connection that takes no new ones; 0 is as long "
            "as they need",
        ),
    )
    drain_grace_seconds: float = field(default=30.0, metadata=common_options.DRAIN_GRACE_SECONDS)
    log_level: str = field(default="info", metadata=common_options.LOG_LEVEL)


READER = OptionReader(
    program=PROGRAM,
    description="Serves models over gRPC: turns text into tokens, picks an engine, streams text "
    "back.",
    prefix=ENVIRONMENT_PREFIX,
    groups={"router": RouterConfig},
)


def read_config(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    program: str = PROGRAM,
) -> RouterConfig:
    """Reads the settings from the command line, else from the environment, else from a file.

    `--help` prints the options and exits.

    Args:
        arguments: The command line without the program's name.
        environment: Variables; None means those of the process.
        program: The command as it was called, for `--help`.

    Raises:
        StartupError: An option is unknown, missing, has a bad value or does not go with another;
            the message names it.
    """
    given = READER.read(arguments, environment, program=program)
    _check_engines(given.sources)
    config = given.build(RouterConfig)
    return replace(config, host=service_host(given, config.host))


def _check_engines(sources: Mapping[str, str]) -> None:
    """Refuses options on the engines that do not go together, by who gave them."""
    given = [sources[name] for name in _ENGINES if name in sources]
    if not given:
        raise StartupError(
            f"--engines host:port,... (or {ENVIRONMENT_PREFIX}ENGINES), --engines-file or "
            "--engine-dns is required; --help lists the options"
        )
    if len(given) > 1:
        raise StartupError(f"{' and '.join(given)} are given; give only one of them")
    if "discovery_interval" in sources and "engine_dns" not in sources:
        raise StartupError(
            f"{sources['discovery_interval']} applies to --engine-dns only, "
            f"but {given[0]} is given; remove one of them"
        )
