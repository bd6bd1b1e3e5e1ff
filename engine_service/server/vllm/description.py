"""What the vLLM service tells of the model, the engine and its load."""

import json
from datetime import UTC, datetime

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_service.models.json_file import parse_json
from engine_service.server.replica import Replica
from engine_service.server.vllm.message import Message
from protos.wire.sampling_params import DEFAULT_PARAMS
from servicekit.version import software_version

_SERVER_TYPE = "vllm-grpc"
"""What the protocol's own servers call themselves; a gateway may look for it."""
_MAX_TOKEN_ID = 2**31 - 1


def model_info(replica: Replica) -> Message:
    """Returns what GetModelInfo tells, which never changes."""
    info = replica.info
    config = _config(replica)
    model_type = config.get("model_type")
    defaults = {
        name: value
        for name in DEFAULT_PARAMS
        if (value := getattr(info.default_sampling_params, name)) is not None
    }
    return pb.GetModelInfoResponse(
        model_path=info.model_name,
        tokenizer_path=info.model_name,
        served_model_name=info.model_name,
        is_generation=True,
        max_context_length=info.max_model_len,
        max_req_input_len=replica.limits.max_sequence_len - 1,
        vocab_size=info.vocab_size,
        model_type=model_type if isinstance(model_type, str) else "",
        architectures=[info.architecture],
        eos_token_ids=sorted(info.eos_token_ids),
        pad_token_id=_token_id(config, "pad_token_id"),
        bos_token_id=_token_id(config, "bos_token_id"),
        default_sampling_params_json=json.dumps(defaults) if defaults else "",
    )


def server_info(replica: Replica, uptime_seconds: float) -> Message:
    """Returns what GetServerInfo tells now."""
    info = replica.info
    return pb.GetServerInfoResponse(
        active_requests=replica.client.num_open,
        uptime_seconds=uptime_seconds,
        server_type=_SERVER_TYPE,
        data_parallel_size=1,
        kv_cache_dtype=info.dtype,
        block_size=info.block_size,
        model_dtype=info.dtype,
        max_num_seqs=info.max_num_seqs,
        constrained_decoding_start="first_token",
    )


def loads(replica: Replica, cache_hit_rate: float) -> Message:
    """Returns what GetLoads tells now.

    Args:
        replica: What serves.
        cache_hit_rate: Share of the tokens of prompts that were found in the cache.
    """
    info, load = replica.info, replica.load_meter.load
    num_used_blocks = load.num_blocks - load.num_free_blocks
    usage = num_used_blocks / load.num_blocks
    return pb.GetLoadsResponse(
        timestamp=datetime.now(UTC).isoformat(),
        version=software_version(),
        dp_rank_count=1,
        loads=[
            pb.SchedulerLoad(
                num_running_reqs=load.num_running,
                num_waiting_reqs=load.num_waiting,
                num_total_reqs=load.num_running + load.num_waiting,
                num_used_tokens=num_used_blocks * info.block_size,
                max_total_num_tokens=load.num_blocks * info.block_size,
                token_usage=usage,
                utilization=usage,
                gen_throughput=load.decode_rate,
                cache_hit_rate=cache_hit_rate,
                max_running_requests=info.max_num_seqs,
                num_waiting_uncached_tokens=load.num_waiting_prefill_tokens,
            )
        ],
    )


def _config(replica: Replica) -> dict[str, object]:
    content = replica.tokenizer.content("config.json")
    config = None if content is None else parse_json(content)
    return config if isinstance(config, dict) else {}


def _token_id(config: dict[str, object], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and 0 <= value <= _MAX_TOKEN_ID else 0
