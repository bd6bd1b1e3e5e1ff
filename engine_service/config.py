"""All settings of an engine. Nothing is read, checked or defaulted anywhere else.

Each field of the option classes is a command line option and an environment variable. Its metadata
gives its meaning and its allowed values. Constructing an option class checks its values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from protos.wire.limits import MAX_LOGPROBS
from servicekit import common_options
from servicekit.options import OptionReader, Options, about
from servicekit.service_host import service_host
from servicekit.values import (
    Flags,
    Integers,
    Names,
    NamesOfClients,
    Numbers,
    OneOf,
    Texts,
    byte_sizes,
    counts,
    seconds,
)

ENVIRONMENT_PREFIX = "PAGESTREAM_ENGINE_"
_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_COUNTS = counts(1, _MAX_INT32)
PROGRAM = "python -m engine_service"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(Options):
    """The model, its dtype and its device."""

    model: str = field(
        metadata=about(
            Texts(r"[^\x00]+", "a folder or a hub ID"),
            "folder of a Hugging Face checkpoint, or a hub ID such as Qwen/Qwen3-0.6B",
        )
    )
    served_model_name: str = field(
        default="",
        metadata=about(
            Names(),
            "model name that clients use",
            unset="the last part of --model",
        ),
    )
    load_format: str = field(
        default="auto",
        metadata=about(
            OneOf(("auto", "dummy")),
            "auto: load the safetensors files; dummy: random weights, which need only config.json",
        ),
    )
    dtype: str = field(
        default="auto",
        metadata=about(
            OneOf(("auto", "float32", "float16", "bfloat16")),
            "dtype to compute in: auto (the checkpoint's on CUDA, float32 on the CPU), float32, "
            "float16 or bfloat16",
        ),
    )
    device: str = field(
        default="auto",
        metadata=about(
            Texts(r"auto|cpu|cuda(:[0-9]{1,3})?", "auto, cpu, cuda or cuda:N"),
            "device to compute on: auto (a usable GPU, else the CPU), cpu, cuda or cuda:N",
        ),
    )
    tensor_parallel_size: int = field(
        default=1,
        metadata=about(
            Integers(1, 64),
            "ranks that share the model, each a process with a GPU of its own, counted from the "
            "one of --device; on the CPU, processes that share its cores",
        ),
    )
    generation_config: str = field(
        default="auto",
        metadata=about(
            OneOf(("auto", "none")),
            "auto: the sampling parameters of the checkpoint's generation_config.json apply where "
            "a request leaves them unset; none: they are ignored",
        ),
    )
    max_model_len: int | None = field(
        default=None,
        metadata=about(
            counts(2, _MAX_INT32),
            "maximum tokens of a prompt and its output together",
            unset="the longest that the model is made for",
        ),
    )
    seed: int = field(
        default=0,
        metadata=about(
            Integers(0, _MAX_INT64), "seed of the random weights of --load-format dummy"
        ),
    )
    enforce_eager: bool = field(
        default=False,
        metadata=about(
            Flags(), "run without CUDA graphs, which saves their memory but decodes far slower"
        ),
    )
    cpu_threads: int | None = field(
        default=None,
        metadata=about(
            Integers(1, 1024),
            "threads that compute on the CPU; divide the cores among the engines of a machine",
            unset="one per core",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions(Options):
    """The paged KV cache."""

    block_size: int = field(
        default=64,
        metadata=about(
            OneOf((16, 32, 64, 128, 256)), "tokens per KV cache block: 16, 32, 64, 128 or 256"
        ),
    )
    num_blocks: int | None = field(
        default=None,
        metadata=about(
            _COUNTS,
            "blocks in the KV cache",
            unset="sized by --gpu-memory-utilization on CUDA, by --cpu-cache-bytes on the CPU",
        ),
    )
    gpu_memory_utilization: float = field(
        default=0.9,
        metadata=about(
            Numbers(0.01, 1.0),
            "share of the GPU's memory that the engine may use, 0.01 to 1: weights, activations, "
            "CUDA graphs and KV cache together",
        ),
    )
    cpu_cache_bytes: int = field(
        default=1 << 30,
        metadata=about(
            byte_sizes(1, _MAX_INT64),
            "bytes of each rank's KV cache on the CPU when --num-blocks is not given",
        ),
    )
    enable_prefix_caching: bool = field(
        default=True,
        metadata=about(Flags(), "reuse the KV cache blocks of prompts with the same prefix"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions(Options):
    """Limits on one step."""

    max_num_seqs: int = field(
        default=256,
        # The launch of a kernel has at most 65,535 programs in one direction, and graphs pad rows.
        metadata=about(counts(1, 65_000), "maximum sequences that run at once"),
    )
    max_num_batched_tokens: int = field(
        default=8192,
        metadata=about(
            counts(1, 2**24),
            "maximum tokens in one step; longer prompts are computed in chunks",
        ),
    )
    max_steps_in_flight: int | None = field(
        default=None,
        metadata=about(
            Integers(1, 8),
            "maximum steps launched but not yet finished; with 1, the GPU is idle while the next "
            "step is planned",
            unset="2 on CUDA, 1 on the CPU",
        ),
    )
    max_logprobs: int = field(
        default=20,
        metadata=about(
            Integers(0, MAX_LOGPROBS),
            "maximum logprobs that a request may ask for at each position, 0 to 100",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(Options):
    """The engine's addresses, and its limits for waiting requests and slow readers."""

    host: str = field(default="127.0.0.1", metadata=common_options.HOST)
    insecure_host: str | None = field(default=None, metadata=common_options.INSECURE_HOST)
    port: int = field(default=50051, metadata=common_options.PORT)
    operations_port: int = field(default=8101, metadata=common_options.OPERATIONS_PORT)
    tls_cert: Path | None = field(default=None, metadata=common_options.TLS_CERT)
    tls_key: Path | None = field(default=None, metadata=common_options.TLS_KEY)
    tls_client_ca: Path | None = field(default=None, metadata=common_options.TLS_CLIENT_CA)
    operations_tls_cert: Path | None = field(
        default=None, metadata=common_options.OPERATIONS_TLS_CERT
    )
    operations_tls_key: Path | None = field(
        default=None, metadata=common_options.OPERATIONS_TLS_KEY
    )
    tls_client_names: tuple[str, ...] | None = field(
        default=None,
        metadata=about(
            NamesOfClients(),
            "names, separated by commas, of which a client's certificate must have one: DNS, URI "
            "or common name, as it is written there; needs --tls-client-ca",
            unset="any",
        ),
    )
    max_waiting_requests: int = field(
        default=1024,
        metadata=about(
            counts(1, 1_000_000),
            "maximum requests that wait to be scheduled; more are refused with QUEUE_FULL",
        ),
    )
    max_buffered_tokens: int = field(
        default=16_384,
        metadata=about(
            _COUNTS,
            "maximum unread tokens kept for one Generate call, each logprob counted as one; above "
            "that, it ends with SLOW_READER",
        ),
    )
    max_stream_buffered_tokens: int = field(
        default=262_144,
        metadata=about(
            _COUNTS,
            "maximum unread tokens kept for one GenerateMany stream, each logprob counted as one; "
            "above that, it ends with SLOW_READER",
        ),
    )
    max_cache_history_hashes: int = field(
        default=1 << 20,
        metadata=about(
            _COUNTS,
            "maximum block hashes kept of past cache changes, for WatchCache clients that resume "
            "or read slowly",
        ),
    )
    grammar_seconds: float = field(
        default=2.0,
        metadata=about(
            seconds(0.01, 60),
            "seconds of processor time that checking one new grammar may take, 0.01 to 60; one "
            "that takes more is refused",
        ),
    )
    grammar_memory_bytes: int = field(
        default=1 << 29,
        metadata=about(
            byte_sizes(1 << 24, 1 << 40),
            "bytes of memory that checking one new grammar may take",
        ),
    )
    vllm_grpc: bool = field(
        default=False,
        metadata=about(
            Flags(),
            "serve vllm.grpc.engine.VllmEngine on the same port, too, for gateways that speak it, "
            "such as smg; needs pagestream[smg]",
        ),
    )
    drain_grace_seconds: float = field(default=30.0, metadata=common_options.DRAIN_GRACE_SECONDS)
    core_silence_seconds: float = field(
        default=5.0,
        metadata=about(
            seconds(1, common_options.MAX_SECONDS),
            "seconds without a heartbeat after which the core counts as frozen, 1 to 86400; more "
            "while its steps are long",
        ),
    )
    frozen_core_exit_seconds: float = field(
        default=30.0,
        metadata=about(
            seconds(0, common_options.MAX_SECONDS),
            "seconds that a frozen core gets to recover before the engine kills it and exits",
        ),
    )
    vllm_metrics: bool = field(
        default=False,
        metadata=about(
            Flags(), "show the metrics under vLLM's names, too, for dashboards and gateways"
        ),
    )
    log_level: str = field(default="info", metadata=common_options.LOG_LEVEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine; each process gets the parts that it needs."""

    model: ModelOptions
    cache: CacheOptions = field(default_factory=CacheOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    server: ServerOptions = field(default_factory=ServerOptions)


READER = OptionReader(
    program=PROGRAM,
    description="Serves one replica of one model over gRPC: token IDs in, token IDs out.",
    prefix=ENVIRONMENT_PREFIX,
    groups={
        "model": ModelOptions,
        "cache": CacheOptions,
        "scheduler": SchedulerOptions,
        "server": ServerOptions,
    },
)


def read_config(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    program: str = PROGRAM,
) -> EngineConfig:
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
    server = given.build(ServerOptions)
    return EngineConfig(
        model=given.build(ModelOptions),
        cache=given.build(CacheOptions),
        scheduler=given.build(SchedulerOptions),
        server=replace(server, host=service_host(given, server.host)),
    )
