"""Operations ports with certificates: of a router, of one with workers, and of an engine."""

import asyncio
import shutil
import ssl
import time
from contextlib import asynccontextmanager

import httpx
import pytest

from examples.demo.model import CHECKPOINT
from pagestream.top.metrics_page import read_page
from tests.fakes.certificates import DAYS, make_certificates, replace
from tests.fakes.service_process import HOST, ServiceProcess, free_ports, running

TIMEOUT = 60.0
SERIES = "tls_certificate_expiration_timestamp_seconds"
SERVICES = {
    "router": ["router", "--engines", f"{HOST}:1"],
    "workers": ["router", "--engines", f"{HOST}:1", "--workers", "2"],
    "engine": ["engine_service", "--model", str(CHECKPOINT), "--num-blocks", "64"],
}
ENGINE = ["--device", "cpu", "--cpu-threads", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def live(made, tmp_path):
    """A folder with the files that a service reads, which a test may replace."""
    for name in ("server.pem", "server.key"):
        shutil.copy(made / name, tmp_path / name)
    return tmp_path


@asynccontextmanager
async def serving(kind, folder):
    """Yields a service and its operations port."""
    port, operations_port = free_ports(2)
    arguments = [*SERVICES[kind], *(ENGINE if kind == "engine" else [])]
    arguments += ["--port", str(port), "--operations-port", str(operations_port)]
    # Certificates of all its ports.
    for option in ("tls", "operations-tls"):
        for end, name in (("cert", "server.pem"), ("key", "server.key")):
            arguments.append(f"--{option}-{end}={folder / name}")
    service = ServiceProcess(arguments, port, folder / "log")
    async with running(service):
        yield service, operations_port


async def get(port, path, ca=None):
    """Returns the answer to a client that trusts a CA, or that speaks plain text."""
    verify = ssl.create_default_context(cafile=ca) if ca else False
    async with httpx.AsyncClient(verify=verify, timeout=TIMEOUT, trust_env=False) as client:
        return await client.get(f"{'https' if ca else 'http'}://{HOST}:{port}{path}")


async def until_status(port, path, ca, status):
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                answer = await get(port, path, ca)
            except httpx.ConnectError:
                # It does not listen yet.
                pass
            else:
                if answer.status_code == status:
                    return
            await asyncio.sleep(0.05)


async def until_shown(port, ca, wanted):
    """Scrapes until all certificates are there; workers report some time after the start."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            page = (await get(port, "/metrics", ca)).text
            if expirations(page).keys() >= wanted:
                return page
            await asyncio.sleep(0.05)


def expirations(text):
    """What a page says of certificates: by option, the days from now on until they expire."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if f"_{SERIES}{{" in name:
            option = name.partition('option="')[2].partition('"')[0]
            found[option] = round((float(value) - time.time()) / 86400)
    return found


@pytest.mark.parametrize("kind", SERVICES)
async def test_probes_and_scrapes_go_through_tls(kind, made, live):
    ca = made / "ca.pem"
    async with serving(kind, live) as (service, port):
        await until_status(port, "/livez", ca, 200)
        if kind == "engine":
            await until_status(port, "/readyz", ca, 200)
        else:
            # It has no engine.
            assert (await get(port, "/readyz", ca)).status_code == 503
        page = await until_shown(port, ca, {"tls_cert", "operations_tls_cert"})
        assert read_page(page).service == ("engine" if kind == "engine" else "router")
        assert expirations(page) == {"tls_cert": DAYS, "operations_tls_cert": DAYS}

        plain = await get(port, "/livez")
        assert (plain.status_code, plain.text) == (
            400,
            "the client speaks plain text, but this port speaks TLS: use https://\n",
        )
        other = made / "other"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await get(port, "/livez", other / "ca.pem")

        for name in ("server.key", "server.pem"):
            replace(live / name, other / name)
        assert (await get(port, "/livez", other / "ca.pem")).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await get(port, "/livez", ca)
        log = service.log_path.read_text()
    assert "operations client not served peer=127.0.0.1 num_unlogged=0 error=the client" in log
    assert "certificates reloaded" in log


async def test_expired_certificate_of_an_operations_port_is_refused_at_start(made, live):
    replace(live / "server.pem", made / "expired.pem")
    replace(live / "server.key", made / "expired.key")
    for kind in ("router", "workers"):
        arguments = [*SERVICES[kind], "--port=0"]
        arguments += ["--operations-port=0", f"--operations-tls-cert={live}/server.pem"]
        arguments.append(f"--operations-tls-key={live}/server.key")
        service = ServiceProcess(arguments, 0, live / f"{kind}.log")
        async with running(service):
            assert await service.wait() == 2
        said = f"--operations-tls-cert {live}/server.pem: is refused: certificate has expired\n"
        assert service.log_path.read_text().endswith(said)
