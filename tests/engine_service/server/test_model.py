import hashlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine_service.core.types import Failure, StepStats
from engine_service.errors import StartupError, invalid_logits
from engine_service.server import tokenizer_files
from engine_service.server.tokenizer_files import TokenizerFiles
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash
from protos.wire.sampling_params import SamplingParams, from_message
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import (
    ScriptedCore,
    generate_request,
    read,
    running_engine,
    starting_engine,
    status_of,
)

SERVICE = "pagestream.engine.v1.EngineService"


async def test_model_info_tells_what_start_up_learnt():
    info = make_info(
        eos_token_ids=frozenset({7, 3}),
        dtype="bfloat16",
        max_logprobs=7,
        default_sampling_params=SamplingParams(temperature=0.5, top_k=20, min_p=0.0),
    )
    async with running_engine(info) as engine:
        told = await engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
        assert told.model_name == info.model_name
        assert told.architecture == info.architecture
        assert told.model_fingerprint == info.model_fingerprint
        assert told.vocabulary_size == info.vocab_size
        assert told.max_model_length_tokens == info.max_model_len
        assert told.block_size_tokens == info.block_size
        assert told.block_hash_scheme == block_hash.SCHEME
        assert list(told.eos_token_ids) == [3, 7]
        assert told.epoch != 0
        assert told.total_block_count == info.num_blocks
        assert told.max_running_request_count == info.max_num_seqs
        assert told.max_batched_token_count == info.max_num_batched_tokens
        assert told.tensor_parallel_size == 1
        assert told.dtype == "bfloat16"
        assert told.tokenizer_sha256 == ""
        assert "temperature" in told.supported_sampling_params
        assert told.engine_version
        assert told.max_logprob_count == 7
        assert from_message(told.default_sampling_params) == info.default_sampling_params


async def test_every_supported_parameter_is_a_field_of_the_contract():
    async with running_engine() as engine:
        told = await engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
        fields = engine_pb2.SamplingParams.DESCRIPTOR.fields_by_name
        assert set(told.supported_sampling_params) <= set(fields)


async def test_tokenizer_arrives_byte_by_byte_as_it_is_on_disk(tmp_path):
    contents = {
        "tokenizer.json": bytes(range(256)) * 10_000,  # several chunks
        "chat_template.jinja": "{{ messages }} \u00e9".encode(),
        "empty.json": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = TokenizerFiles.read(tmp_path / name for name in contents)
    async with running_engine(tokenizer=tokenizer) as engine:
        files, digests = {}, {}
        async for message in engine.stub.GetTokenizer(engine_pb2.GetTokenizerRequest()):
            if message.HasField("file"):
                name = message.file.name
                files[name] = b""
                digests[name] = (message.file.size_bytes, message.file.sha256)
            else:
                assert 0 < len(message.chunk) <= 1 << 20
                files[name] += message.chunk
        assert files == contents
        for name, content in contents.items():
            assert digests[name] == (len(content), hashlib.sha256(content).hexdigest())
        info = await engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
        assert info.tokenizer_sha256 == tokenizer.sha256


def test_digest_of_the_tokenizer_depends_on_names_and_contents(tmp_path):
    def digest(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return TokenizerFiles.read([path]).sha256

    digests = {digest("a", b"1"), digest("a", b"2"), digest("b", b"1")}
    assert len(digests) == 3
    assert digest("a", b"1") in digests


async def test_model_without_a_tokenizer_is_not_found():
    async with running_engine() as engine:
        status = await status_of(engine.stub.GetTokenizer(engine_pb2.GetTokenizerRequest()))
        assert (status.code, status.reason) == (5, "NO_TOKENIZER")
        assert status.metadata == {"model_name": "fake"}


async def test_engine_is_live_before_it_is_ready():
    core = ScriptedCore()
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    async with starting_engine(core) as engine:
        assert await _health(engine, "") == serving
        assert await _health(engine, SERVICE) == not_serving
        assert (await engine.http("/livez"))[0] == 200
        code, body = await engine.http("/readyz")
        assert (code, body) == (503, "starting: the model is loading\n")
        assert await engine.metric("ready") == 0

        core.send(make_info())
        await engine.server.serve(core.pipe_of_server, TokenizerFiles())
        assert await _health(engine, SERVICE) == serving
        assert await engine.http("/readyz") == (200, "serving\n")
        assert await engine.metric("ready") == 1


async def test_metrics_describe_the_model():
    async with running_engine(make_info(num_blocks=32, block_size=4)) as engine:
        assert await engine.metric("kv_cache_blocks") == 32
        assert await engine.metric("kv_cache_block_size_tokens") == 4
        labels = (
            'architecture="Fake",device="cpu",dtype="float32",fingerprint="fake-1",'
            'model_name="fake"'
        )
        assert await engine.metric(f"model_info{{{labels}}}") == 1


def test_tokenizer_that_leads_out_of_its_folder_or_is_too_large_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(b"12345")
    (folder / "vocab.json").write_bytes(b"123456")
    monkeypatch.setattr(tokenizer_files, "_MAX_BYTES", 10)
    with pytest.raises(
        StartupError,
        match=r"vocab\.json: with this file, .* 11 bytes together, over the limit of 10",
    ):
        TokenizerFiles.read([folder / "tokenizer.json", folder / "vocab.json"])

    (tmp_path / "secret").write_text("s3cret")
    (folder / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(StartupError, match=r"merges\.txt: is a link that leads out"):
        TokenizerFiles.read([folder / "merges.txt"])


async def test_requests_that_got_no_token_are_counted():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request(1))
        request = await engine.core.next_request()
        engine.core.step(
            failures=[Failure(request_id=request.request_id, error=invalid_logits(1))],
            stats=StepStats(num_invalid_logits=1),
        )
        assert (await status_of(call)).reason == "INTERNAL"
        assert await engine.metric("invalid_logits_total") == 1
        assert await engine.metric('requests_total{outcome="internal"}') == 1


async def test_reflection_names_the_services():
    async with starting_engine() as engine:
        stub = reflection_pb2_grpc.ServerReflectionStub(engine.channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await read(call)
        names = {service.name for service in answer.list_services_response.service}
        assert names == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        call.cancel()


async def test_unknown_health_service_is_not_found():
    async with starting_engine() as engine:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _health(engine, "nothing")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def _health(engine, service):
    stub = health_pb2_grpc.HealthStub(engine.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
