"""Router and engine show each other certificates: the real server of an engine without a model.

Whatever is wrong, the router lists the reason, and the engine's log or gRPC's has a line.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest

from engine_service.config import ServerOptions
from engine_service.server.engine_server import EngineServer
from router.engines.channels import EngineChannels
from router.types.engine_state import EngineState
from servicekit.errors import StartupError
from servicekit.tls import client_tls
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import running_engine
from tests.fakes.certificates import CLIENT, CLIENT_URI, make_certificates
from tests.router.engines.test_client import TIMEOUT, client_of

INFO = make_info(model_fingerprint="0" * 32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def pair(folder, name):
    return {"tls_cert": folder / f"{name}.pem", "tls_key": folder / f"{name}.key"}


@asynccontextmanager
async def engine_of(made, *, shows="server", trusts="ca.pem", names=()):
    options = pair(made, shows) if shows else {}
    trusted = {"tls_client_ca": made / trusts} if trusts else {}
    async with running_engine(INFO, **options, **trusted, tls_client_names=names or None) as engine:
        yield engine


def channels(made, *, shows="client", trusts="ca.pem", name=""):
    cert, key = (made / f"{shows}.pem", made / f"{shows}.key") if shows else (None, None)
    return EngineChannels(client_tls(cert, key, made / trusts), name)


async def detail(engine, opened):
    """Returns why the engine cannot be used; "" if it can."""
    address = f"127.0.0.1:{engine.server.port}"
    async with client_of(address, channels=opened) as (_, listener), asyncio.timeout(TIMEOUT):
        life = listener.life
        await listener.wait_until(
            lambda: life.state in (EngineState.SERVING, EngineState.UNAVAILABLE)
        )
        return "" if life.state is EngineState.SERVING else life.loss.detail


@pytest.mark.parametrize("names", [(), (CLIENT,), ("x", CLIENT_URI)])
async def test_right_certificates_connect(made, names):
    async with engine_of(made, names=names) as engine:
        assert await detail(engine, channels(made)) == ""


async def test_engine_that_asks_for_no_certificate_is_checked_all_the_same(made):
    async with engine_of(made, trusts=None) as engine:
        assert await detail(engine, channels(made, shows=None)) == ""
        said = await detail(engine, channels(made, shows=None, trusts="other/ca.pem"))
        assert "CERTIFICATE_VERIFY_FAILED" in said


async def test_name_that_the_engine_must_have_is_the_one_given(made):
    async with engine_of(made, shows="elsewhere") as engine:
        said = await detail(engine, channels(made))
        assert said.startswith("its certificate does not have the host of its address; --engine-t")
        said = await detail(engine, channels(made, name="third.test"))
        assert "its certificate does not have the name third.test" in said
        assert await detail(engine, channels(made, name="elsewhere.test")) == ""


@pytest.mark.parametrize("shows", [None, "other/client"])
async def test_client_that_the_ca_does_not_know_is_refused(made, shows):
    async with engine_of(made) as engine:
        said = await detail(engine, channels(made, shows=shows))
        assert "may have refused this router's --engine-tls-cert, or its lack" in said


async def test_client_of_another_name_is_told_so(made, caplog):
    async with engine_of(made, names=(CLIENT,)) as engine:
        said = await detail(engine, channels(made, shows="guest"))
        assert said.startswith(
            "PERMISSION_DENIED: the client's certificate names guest.test, which"
        )
        [line] = [one for one in caplog.messages if one.startswith("client refused")]
        assert "method=EngineService/GetModelInfo peer=ipv4:127.0.0.1:" in line
        assert line.endswith("names guest.test, which is not in --tls-client-names")


async def test_expired_certificates_are_refused_by_the_other_end(made, monkeypatch):
    # As if they had expired after the start.
    monkeypatch.setattr("servicekit.tls._check_cert", lambda files: None)
    async with engine_of(made, shows="expired") as engine:
        assert "certificate has expired" in await detail(engine, channels(made))
    async with engine_of(made) as engine:
        said = await detail(engine, channels(made, shows="gone"))
        assert "may have refused this router's --engine-tls-cert" in said


async def test_plain_text_and_tls_do_not_meet(made):
    async with engine_of(made) as engine:
        said = await detail(engine, EngineChannels())
        assert said.endswith("if it speaks TLS, this router needs --engine-tls-ca")
    async with engine_of(made, shows=None, trusts=None) as engine:
        said = await detail(engine, channels(made))
        assert said.startswith("it does not speak TLS, but --engine-tls-ca is given: ")


def test_names_of_clients_need_a_ca_that_vouches_for_them(made):
    options = ServerOptions(**pair(made, "server"), tls_client_names=(CLIENT,))
    with pytest.raises(StartupError, match="--tls-client-names needs --tls-client-ca, too"):
        EngineServer(options, "small")
