"""The service as processes: its signals, its end and its refusals to start."""

import asyncio
import json
import os
import shutil
import signal
import socket
from array import array

import grpc
import pytest
import safetensors.torch
import torch

from engine_service import launch
from engine_service.config import ModelOptions, read_config
from engine_service.models import hub
from engine_service.server.engine_server import EngineServer
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash
from tests.engine_service.core.fake_executor import make_info, oracle
from tests.engine_service.process_harness import (
    FAKE,
    REAL,
    engine_process,
    kill,
    press_ctrl_c,
    stopped,
    wait_gone,
)
from tests.engine_service.server.harness import (
    generate_request,
    read,
    read_until,
    status_of,
    submission,
)

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}


WATCHED = ("--core-silence-seconds", "2", "--frozen-core-exit-seconds", "0.5")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of an engine whose folder passes the server's checks."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return ["--model", str(folder), "--load-format", "dummy", "--block-size", "16"]


async def test_requests_are_served_until_a_drain_lets_the_last_one_finish(options):
    async with engine_process(FAKE, *options) as engine:
        await engine.wait_line("ready")
        core = engine.core_pid()
        prompt = list(range(1, 41))
        async with engine.stub() as stub:
            watch = stub.WatchCache(engine_pb2.WatchCacheRequest())
            await read(watch)
            first = [message async for message in stub.Generate(_request(prompt, 100))]
            expected = oracle(prompt, 100, 0, 0.0, 100)
            assert [token for message in first for token in message.token_ids] == expected
            assert first[0].admission.cached_token_count == 0
            assert first[-1].finish.reason == engine_pb2.FINISH_REASON_LENGTH

            info = await stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
            root = block_hash.root_digest(info.model_fingerprint)
            digests = block_hash.block_digests(root, array("i", prompt), info.block_size_tokens)
            told = set()
            while not told.issuperset(map(block_hash.low_64_bits, digests)):
                told |= set((await read(watch)).delta.stored_block_hashes)

            last = stub.Generate(_request(prompt, 200))
            assert (await read(last)).admission.cached_token_count == 32
            engine.process.send_signal(signal.SIGTERM)
            received = 1
            while (message := await read(last)) is not grpc.aio.EOF:
                received += len(message.token_ids)
            assert received == 200
        assert await engine.wait_end() == 0
        await wait_gone(core)


async def test_ctrl_c_reaches_both_processes_and_still_lets_requests_finish(options):
    async with engine_process(FAKE, *options) as engine:
        await engine.wait_line("ready")
        async with engine.stub() as stub:
            call = stub.Generate(_request([1], 100))
            received = len((await read(call)).token_ids)
            press_ctrl_c(engine)
            while (message := await read(call)) is not grpc.aio.EOF:
                received += len(message.token_ids)
            assert received == 100
        assert await engine.wait_end() == 0


async def test_second_signal_ends_both_processes_at_once(options):
    async with engine_process(FAKE, *options, "--drain-grace-seconds", "3600") as engine:
        await engine.wait_line("ready")
        core = engine.core_pid()
        async with engine.stub() as stub:
            call = stub.Generate(_request([1], 4000))
            await read(call)
            engine.process.send_signal(signal.SIGINT)
            while await engine.http_status("/readyz") != 503:
                pass
            engine.process.send_signal(signal.SIGINT)
            assert await engine.wait_end() == 128 + signal.SIGINT
        await wait_gone(core)


async def test_drain_past_its_grace_ends_what_is_left_with_draining(options):
    async with engine_process(FAKE, *options, "--drain-grace-seconds", "0.1") as engine:
        await engine.wait_line("ready")
        async with engine.stub() as stub:
            call = stub.Generate(_request([1], 4000))
            await read(call)
            engine.process.send_signal(signal.SIGTERM)
            assert (await status_of(call)).reason == "DRAINING"
        assert await engine.wait_end() == 0


async def test_killed_core_answers_every_request_and_ends_the_server(options):
    async with engine_process(FAKE, *options) as engine:
        await engine.wait_line("ready")
        async with engine.stub() as stub:
            single = stub.Generate(_request([1], 4000))
            await read(single)
            many = stub.GenerateMany()
            await many.write(submission(1, _request([2], 4000)))
            await read(many)
            kill(engine.core_pid())
            for call in (single, many):
                status = await status_of(call)
                assert (status.code, status.reason) == (14, "ENGINE_FAILED")
        assert await engine.wait_end() == 1
        assert "core lost" in engine.lines[-1]


async def test_step_that_hangs_ends_its_requests_and_the_server(options):
    arguments = [*options, *WATCHED, "--served-model-name", "hanging-step"]
    async with engine_process(FAKE, *arguments) as engine:
        await engine.wait_line("ready")
        children = engine.children()
        async with engine.stub() as stub:
            first = stub.Generate(_request([1], 4000))
            await read(first)
            second = stub.Generate(_request([2], 4000))
            for call in (first, second):
                status = await status_of(call)
                assert (status.code, status.reason) == (14, "ENGINE_FAILED")
        assert await engine.wait_end() == 1
        for pid in children:
            await wait_gone(pid)


async def test_signal_while_the_core_is_frozen_is_no_good_end_and_waits_for_nothing(options):
    arguments = [*options, *WATCHED, "--frozen-core-exit-seconds", "3600"]
    async with engine_process(FAKE, *arguments, "--drain-grace-seconds", "3600") as engine:
        await engine.wait_line("ready")
        core = engine.core_pid()
        with stopped(core):
            await wait_http(engine, "/livez", 503)
            engine.process.send_signal(signal.SIGTERM)
            assert await engine.wait_end() == 1
            await wait_gone(core)
    *_, frozen, lost = engine.lines
    assert "ERROR engine_service.server.engine_server core frozen silence_seconds=" in frozen
    assert "ERROR engine_service core lost silence_seconds=" in lost


async def test_stopped_server_does_not_blame_its_core(options):
    async with engine_process(FAKE, *options, *WATCHED) as engine:
        await engine.wait_line("ready")
        async with engine.stub() as stub:
            call = stub.Generate(_request([1], 500))
            received = len((await read(call)).token_ids)
            with stopped(engine.process.pid):
                # Longer than the silence that is allowed; the core goes on until the pipe is full.
                await asyncio.sleep(2.5)
            while (message := await read(call)) is not grpc.aio.EOF:
                received += len(message.token_ids)
            assert received == 500
        assert await engine.http_status("/livez") == 200
        engine.process.send_signal(signal.SIGTERM)
        assert await engine.wait_end() == 0
    assert not [line for line in engine.lines if "frozen" in line]


async def test_core_that_cannot_be_killed_is_left_behind(options, monkeypatch, caplog):
    class Immortal:
        pid = 17

        def join(self, timeout=None):
            assert timeout is not None, "would wait for ever"

        def kill(self):
            pass

        def is_alive(self):
            return True

    codes = []
    monkeypatch.setattr(launch.os, "_exit", codes.append)
    core = launch._CoreProcess(read_config(options, {}), run_short_core)
    core._process = Immortal()
    async with core.ended():
        pass
    assert codes == [launch.EXIT_ENGINE_FAILED]
    assert "core process left behind pid=17" in caplog.text


class EndlessFarewell(EngineServer):
    """Is told to stop while it handles the loss of its core."""

    async def wait_core_lost(self):
        await super().wait_core_lost()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()


def run_short_core(pipe, config):
    pipe.send(make_info())


def test_signal_while_the_core_s_loss_is_handled_is_no_good_end(options, monkeypatch):
    monkeypatch.setattr(launch, "EngineServer", EndlessFarewell)
    config = read_config([*options, "--port", "0", "--operations-port", "0"], {})
    assert launch.run(config, run_short_core) == launch.EXIT_ENGINE_FAILED


async def test_killed_server_takes_its_core_along(options):
    async with engine_process(FAKE, *options) as engine:
        await engine.wait_line("ready")
        children = engine.children()
        assert engine.core_pid() in children
        kill(engine.process.pid)
        for pid in children:
            await wait_gone(pid)


async def test_engine_that_loads_is_live_and_not_ready_and_its_core_follows_a_killed_server(
    options,
):
    async with engine_process(FAKE, *options, "--served-model-name", "hang") as engine:
        await engine.wait_line("loading")
        assert await engine.http_status("/livez") == 200
        assert await engine.http_status("/readyz") == 503
        core = await engine.wait_core()
        kill(engine.process.pid)
        await wait_gone(core)


async def test_signal_while_loading_is_a_good_end(options):
    async with engine_process(FAKE, *options, "--served-model-name", "hang") as engine:
        await engine.wait_line("loading")
        engine.process.send_signal(signal.SIGTERM)
        assert await engine.wait_end() == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-memory", "no memory for one block of 1024 bytes; lower --block-size"),
        ("crash", "the core process was killed, most likely by the system because memory ran out"),
    ],
)
async def test_core_that_cannot_start_ends_the_server_with_one_line(options, name, message):
    async with engine_process(FAKE, *options, "--served-model-name", name) as engine:
        assert await engine.wait_end() == 2
        errors = [line for line in engine.lines if " INFO " not in line]
        assert len(errors) == 1
        assert errors[0].startswith(f"engine_service: {message}")


@pytest.mark.parametrize("option", ["--port", "--operations-port"])
async def test_port_in_use_is_told_in_one_line(options, option):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with engine_process(REAL, *options, option, str(port)) as engine:
            assert await engine.wait_end() == 2
    assert len(engine.lines) == 1
    assert engine.lines[0] == (
        f"engine_service: cannot listen on 127.0.0.1:{port} (Address already in use); "
        f"choose another {option} or host\n"
    )


async def test_missing_model_is_told_in_one_line(tmp_path):
    missing = str(tmp_path / "missing" / "folder" / "of" / "model")
    async with engine_process(REAL, "--model", missing) as engine:
        assert await engine.wait_end() == 2
    assert len(engine.lines) == 1
    assert missing in engine.lines[0]


async def test_model_of_another_architecture_is_told_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["Gpt9"]}))
    arguments = ["--model", str(tmp_path), "--load-format", "dummy"]
    async with engine_process(REAL, *arguments) as engine:
        assert await engine.wait_end() == 2
    assert len(engine.lines) == 1
    assert "Gpt9" in engine.lines[0]
    assert "Qwen3ForCausalLM" in engine.lines[0]


def _spoil_with_deep_json(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)


def _spoil_with_a_pipe(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    os.mkfifo(folder / "tokenizer.json")


def _spoil_with_a_link(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_spoil_with_deep_json, "config.json: is not valid JSON: it is nested more than 64 levels"),
        (_spoil_with_a_pipe, "tokenizer.json: is not a regular file"),
        (
            _spoil_with_a_link,
            "chat_template.jinja: is a link that leads outside the model's folder",
        ),
    ],
)
async def test_folder_of_a_stranger_is_refused_in_one_line(tmp_path, spoil, expected):
    folder = tmp_path / "line\nbreak"
    folder.mkdir()
    spoil(folder)
    arguments = ["--model", str(folder), "--load-format", "dummy"]
    arguments += ["--served-model-name", "stranger"]
    async with engine_process(REAL, *arguments) as engine:
        assert await engine.wait_end() == 2
    assert len(engine.lines) == 1
    assert f"/line\\nbreak/{expected}" in engine.lines[0]


async def test_weights_that_are_not_finite_are_refused_in_one_line(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model.folder, tmp_path / "model")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    async with engine_process(REAL, "--model", str(folder), "--device", "cpu") as engine:
        assert await engine.wait_end() == 2
    errors = [line for line in engine.lines if " INFO " not in line]
    assert errors == [
        f"engine_service: {folder}/model.safetensors: tensor model.norm.weight, stored as F32, "
        "contains NaN\n"
    ]


def test_core_is_given_the_folder_that_was_checked_so_that_the_hub_is_asked_once(
    tiny_model, monkeypatch
):
    asked = []

    def download(model, patterns):
        asked.append(model)
        return tiny_model.folder

    monkeypatch.setattr(hub, "download", download)
    model, _ = launch._check_model(ModelOptions(model="acme/demo"))
    assert (model.model, model.served_model_name) == (str(tiny_model.folder), "demo")
    again, _ = launch._check_model(model)
    assert again == model
    assert asked == ["acme/demo"]


@pytest.mark.parametrize(("folder", "shown"), [("a\nb", r"a\nb"), ("my model", "my model")])
async def test_folder_whose_name_can_be_no_model_s_is_refused(tmp_path, folder, shown):
    path = tmp_path / folder
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    arguments = ["--model", str(path), "--load-format", "dummy"]
    async with engine_process(REAL, *arguments) as engine:
        assert await engine.wait_end() == 2
    assert engine.lines == [
        f'engine_service: the folder\'s name "{shown}" is not a valid model name, which has '
        "1 to 256 printable characters without spaces; set --served-model-name\n"
    ]


async def test_half_open_connections_leave_nothing_in_the_log_at_the_end(options):
    async with engine_process(FAKE, *options) as engine:
        await engine.wait_line("ready")
        address = ("127.0.0.1", engine.operations_port)
        with socket.create_connection(address), socket.create_connection(address) as half:
            half.sendall(b"GET /livez HTTP/1.1\r\n")
            half.shutdown(socket.SHUT_WR)
            assert await engine.http_status("/livez") == 200
            engine.process.send_signal(signal.SIGTERM)
            assert await engine.wait_end() == 0
    assert not [line for line in engine.lines if " INFO " not in line]


async def test_core_and_server_serve_on_when_nobody_reads_their_log(options):
    async with engine_process(FAKE, *options, "--log-level", "debug") as engine:
        await engine.wait_line("ready")
        async with engine.stub() as stub, asyncio.timeout(60):
            # More than the pipe and the test's own buffer hold.
            for start in range(0, 800, 200):
                calls = []
                for number in range(start, start + 200):
                    request = _request([number % 99], 1)
                    request.request_id = f"{number:0256d}"
                    calls.append(stub.Generate(request))
                for call in calls:
                    assert await read_until(call, lambda message: message.HasField("finish"))
            assert await engine.http_status("/livez") == 200
            engine.process.send_signal(signal.SIGTERM)
            await wait_gone(engine.process.pid)
        assert await engine.wait_end() == 0


async def test_wrong_option_is_told_in_one_line():
    async with engine_process(REAL, "--model", "m", "--max-num-seqs", "0") as engine:
        assert await engine.wait_end() == 2
    (line,) = engine.lines
    assert line == "engine_service: --max-num-seqs is 0, must be an integer from 1 to 65000\n"


async def wait_http(engine, path, status):
    """Asks until an answer has a status."""
    while await engine.http_status(path) != status:  # noqa: ASYNC110 (as a probe does)
        await asyncio.sleep(0.05)


def _request(prompt, max_tokens):
    return generate_request(*prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
