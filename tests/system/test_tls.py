"""A router's own process between clients and engines, with certificates on every hop."""

import asyncio
import shutil
import ssl
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest

from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.channel import client_options
from router.config import read_config
from router.launch import run
from router.workers.supervisor import supervise
from servicekit.errors import StartupError
from servicekit.tls import server_tls
from tests.fakes.certificates import make_certificates, replace
from tests.fakes.checked_stream import CheckedStream
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig
from tests.fakes.service_process import HOST, ServiceProcess, free_ports, running
from tests.system.fleets import TIMEOUT, until

NUM_STREAMS = 64
NUM_TOKENS = 150
ROTATED = ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def live(made, tmp_path):
    """A folder with the files that the services read, which a test may replace."""
    for name in ROTATED:
        shutil.copy(made / name, tmp_path / name)
    return tmp_path


def options(folder):
    """The options of a router that asks everybody for a certificate, and shows its own."""
    names = {"tls-cert": "server.pem", "tls-key": "server.key", "tls-client-ca": "ca.pem"}
    names |= {"engine-tls-ca": "ca.pem", "engine-tls-cert": "client.pem"}
    names |= {"engine-tls-key": "client.key"}
    return [f"--{option}={folder / name}" for option, name in names.items()]


def router_of(folder, engines, *more):
    port, operations_port, http_port = free_ports(3)
    arguments = ["router", "--engines", engines, "--port", str(port), *options(folder), *more]
    arguments += ["--operations-port", str(operations_port), "--http-port", str(http_port)]
    return ServiceProcess(arguments, port, folder / "router.log"), http_port


@asynccontextmanager
async def client(router, folder):
    """A stub on a connection of its own, with the certificates of a folder."""
    names = ("ca.pem", "client.key", "client.pem")
    credentials = grpc.ssl_channel_credentials(*((folder / name).read_bytes() for name in names))
    local = [*client_options(), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(router.address, credentials, options=local) as channel:
        yield router_pb2_grpc.RouterServiceStub(channel)


async def list_engines(stub, *, waits=True):
    request = router_pb2.ListEnginesRequest()
    answer = await stub.ListEngines(request, timeout=TIMEOUT, wait_for_ready=waits)
    return answer.engines


async def is_serving(stub):
    states = [engine.state for engine in await list_engines(stub)]
    return states == [router_pb2.ENGINE_STATE_SERVING]


async def http_status(port, folder):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.load_cert_chain(folder / "client.pem", folder / "client.key")
    async with httpx.AsyncClient(verify=context, timeout=TIMEOUT) as client_:
        return (await client_.get(f"https://localhost:{port}/v1/models")).status_code


def engine_of(folder):
    config = FakeEngineConfig(decode_step_seconds=0.01, max_num_seqs=NUM_STREAMS)
    source = server_tls(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    return FakeEngine(config, tls=source)


async def test_all_certificates_are_replaced_under_64_streams(made, live):
    other = made / "other"
    streams = [CheckedStream([*range(40), i], NUM_TOKENS) for i in range(NUM_STREAMS)]
    async with engine_of(live) as engine:
        router, http_port = router_of(live, engine.address)
        async with running(router), client(router, made) as stub:
            await until(lambda: is_serving(stub))
            async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
                for stream in streams:
                    group.create_task(stream.run(stub, TIMEOUT))

                async def have_tokens():
                    return all(stream.token_ids for stream in streams)

                await until(have_tokens)
                for name in ROTATED:
                    replace(live / name, other / name)
                # New connections have the new ones, and the old ones are good for none.
                async with client(router, other) as new:
                    await list_engines(new)
                assert await http_status(http_port, other) == 200
                async with client(router, made) as old:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await list_engines(old, waits=False)
                    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.details()
                assert not any(stream.is_ended for stream in streams)
            assert [stream.error for stream in streams] == [None] * NUM_STREAMS
            # The router comes back to an engine that has a certificate of the new CA.
            await engine.restart()
            async with client(router, other) as new:
                await until(lambda: is_serving(new))
    assert "certificates reloaded" in router.log_path.read_text()


async def test_workers_share_a_port_that_refuses_strangers(made, live):
    ca = (made / "ca.pem").read_bytes()
    pair = [(made / "other" / f"client.{end}").read_bytes() for end in ("key", "pem")]
    async with engine_of(live) as engine:
        router, http_port = router_of(live, engine.address, "--workers", "2")
        async with running(router), client(router, made) as stub:
            await until(lambda: is_serving(stub))
            assert await http_status(http_port, made) == 200
            for channel in (
                grpc.aio.secure_channel(router.address, grpc.ssl_channel_credentials(ca)),
                grpc.aio.secure_channel(router.address, grpc.ssl_channel_credentials(ca, *pair)),
                grpc.aio.insecure_channel(router.address),
            ):
                async with channel:
                    stranger = router_pb2_grpc.RouterServiceStub(channel)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await list_engines(stranger, waits=False)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        # gRPC writes these lines itself.
        log = router.log_path.read_text()
        for reason in ("DID_NOT_RETURN_A_CERTIFICATE", "VERIFY_FAILED", "WRONG_VERSION_NUMBER"):
            assert reason in log


@pytest.mark.parametrize("start", [run, supervise])
def test_expired_certificate_is_refused_at_start(made, live, start):
    replace(live / "server.pem", made / "expired.pem")
    replace(live / "server.key", made / "expired.key")
    config = read_config([f"--engines={HOST}:1", "--workers=2", *options(live)], {})
    with pytest.raises(StartupError) as caught:
        start(config)
    said = f"--tls-cert {live}/server.pem: is refused: certificate has expired"
    assert caught.value.message == said
