"""What the vLLM service tells of the model, the engine, its load and its tokenizer."""

import hashlib
import io
import zipfile

from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_service.core.types import StepStats
from engine_service.server.tokenizer_files import TokenizerFiles
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import read, running_engine, status_of
from tests.engine_service.server.vllm.client import request, running_vllm_engine

CONFIG = b'{"model_type": "qwen3", "bos_token_id": 5, "pad_token_id": null}'


def files(folder, **contents):
    for name, content in contents.items():
        (folder / f"{name}.json").write_bytes(content)
    return TokenizerFiles.read(folder.iterdir())


async def test_model_is_described(tmp_path):
    info = make_info(
        default_sampling_params=SamplingParams(temperature=0.6, top_k=20),
        eos_token_ids=frozenset({3, 1}),
    )
    async with running_vllm_engine(info, files(tmp_path, config=CONFIG)) as (_, stub):
        found = await stub.GetModelInfo(pb.GetModelInfoRequest())
    assert MessageToDict(found, preserving_proto_field_name=True) == {
        "model_path": "fake",
        "tokenizer_path": "fake",
        "served_model_name": "fake",
        "is_generation": True,
        "max_context_length": info.max_model_len,
        "max_req_input_len": info.max_model_len - 1,
        "vocab_size": info.vocab_size,
        "model_type": "qwen3",
        "architectures": [info.architecture],
        "eos_token_ids": [1, 3],
        "bos_token_id": 5,
        "default_sampling_params_json": '{"temperature": 0.6, "top_k": 20}',
    }


async def test_engine_and_its_load_are_described():
    async with running_vllm_engine() as (engine, stub):
        call = stub.Generate(request())
        asked = await engine.core.next_request()
        engine.core.step(
            {asked.request_id: [1]},
            stats=StepStats(
                num_running=1,
                num_waiting=2,
                num_waiting_prefill_tokens=30,
                num_free_blocks=24,
                num_decode_tokens=10,
                num_prefix_query_tokens=40,
                num_prefix_hit_tokens=30,
                step_seconds=0.1,
            ),
        )
        await read(call)
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        loads = await stub.GetLoads(pb.GetLoadsRequest(include=["core"]))
        call.cancel()
    assert (info.active_requests, info.server_type) == (1, "vllm-grpc")
    assert (info.block_size, info.max_num_seqs, info.data_parallel_size) == (4, 8, 1)
    assert info.uptime_seconds > 0
    assert info.constrained_decoding_start == "first_token"
    assert loads.dp_rank_count == 1
    # 8 of 32 blocks of 4 tokens are in use.
    assert MessageToDict(loads.loads[0], preserving_proto_field_name=True) == {
        "num_running_reqs": 1,
        "num_waiting_reqs": 2,
        "num_total_reqs": 3,
        "num_used_tokens": 32,
        "max_total_num_tokens": 128,
        "token_usage": 0.25,
        "utilization": 0.25,
        "gen_throughput": 100.0,
        "cache_hit_rate": 0.75,
        "max_running_requests": 8,
        "num_waiting_uncached_tokens": 30,
    }


async def test_tokenizer_is_an_archive_whose_digest_comes_last(tmp_path):
    big = bytes(range(256)) * 1000
    content = files(tmp_path, config=CONFIG, vocab=big + hashlib.sha512(big).digest() * 5000)
    async with running_vllm_engine(tokenizer=content) as (_, stub):
        for _ in range(2):
            chunks = [chunk async for chunk in stub.GetTokenizer(common_pb2.GetTokenizerRequest())]
            archive = b"".join(chunk.data for chunk in chunks)
            assert {chunk.sha256 for chunk in chunks[:-1]} <= {""}
            assert chunks[-1].sha256 == hashlib.sha256(archive).hexdigest()
            with zipfile.ZipFile(io.BytesIO(archive)) as found:
                assert {name: found.read(name) for name in found.namelist()} == {
                    file.name: file.content for file in content.files
                }


async def test_model_without_tokenizer_says_so():
    async with running_vllm_engine() as (_, stub):
        status = await status_of(stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
        assert status.reason == "NO_TOKENIZER"


async def test_readiness_is_told_by_the_name_of_the_service_too():
    async with running_vllm_engine() as (engine, _):
        stub = health_pb2_grpc.HealthStub(engine.channel)
        asked = health_pb2.HealthCheckRequest(service="vllm.grpc.engine.VllmEngine")
        assert (await stub.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING


async def test_without_the_option_the_service_is_unknown():
    async with running_engine() as engine:
        stub = vllm_engine_pb2_grpc.VllmEngineStub(engine.channel)
        assert (await status_of(stub.HealthCheck(pb.HealthCheckRequest()))).code == 12
