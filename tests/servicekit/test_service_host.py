import re

import pytest

from engine_service.config import read_config as read_engine_config
from router.config import read_config as read_router_config
from servicekit.errors import StartupError
from servicekit.service_host import is_loopback

PREFIXES = {"router": "PAGESTREAM_ROUTER_", "engine": "PAGESTREAM_ENGINE_"}
LOOPBACK = ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST"]
OTHERS = ["0.0.0.0", "::", "128.0.0.1", "10.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1", "::ffff:0:0"]
# Each of these names may lead anywhere, whatever it looks like.
OTHERS += ["host", "localhost.example.com", "127.1", "127.0.0.1.example.com", "ip6-localhost"]
TLS = ["--tls-cert", "c", "--tls-key", "k"]


@pytest.fixture(params=PREFIXES)
def service(request):
    return request.param


@pytest.fixture
def host_of(service):
    """Returns where a service with some options listens."""

    def read(*arguments, **variables):
        variables = {PREFIXES[service] + name: value for name, value in variables.items()}
        if service == "router":
            return read_router_config(["--engines=e:1", *arguments], variables).host
        return read_engine_config(["--model=m", *arguments], variables).server.host

    return read


@pytest.mark.parametrize("host", LOOPBACK)
def test_host_of_this_machine_alone_needs_no_certificate(host_of, host):
    assert is_loopback(host)
    assert host_of("--host", host) == host


@pytest.mark.parametrize("host", OTHERS)
def test_host_that_others_reach_needs_a_certificate(host_of, host):
    assert not is_loopback(host)
    with pytest.raises(StartupError) as caught:
        host_of("--host", host)
    assert caught.value.message == (
        f"--host is '{host}', which others can reach, but there is no certificate; give --tls-cert "
        f"and --tls-key, or serve there in plain text with --insecure-host {host} instead"
    )
    assert host_of("--host", host, *TLS) == host


@pytest.mark.parametrize("host", [*LOOPBACK, *OTHERS])
def test_plain_text_anywhere_if_said_in_so_many_words(host_of, host):
    assert host_of("--insecure-host", host) == host
    assert host_of(INSECURE_HOST=host) == host


def test_nothing_said_is_the_loopback(host_of):
    assert host_of() == host_of(*TLS) == "127.0.0.1"


def test_both_hosts_at_once_are_refused_by_name(service, host_of):
    with pytest.raises(StartupError, match=r"^--host and --insecure-host are given"):
        host_of("--host", "127.0.0.1", "--insecure-host", "::")
    variable = PREFIXES[service] + "HOST"
    with pytest.raises(StartupError, match=f"^{variable} and --insecure-host are given; give only"):
        host_of("--insecure-host", "::", HOST="::")


def test_plain_text_with_a_certificate_is_refused(host_of):
    message = (
        "--insecure-host is for plain text, but --tls-cert is given; write --host instead of "
        "--insecure-host, or leave the certificate"
    )
    with pytest.raises(StartupError, match=f"^{re.escape(message)}$"):
        host_of("--insecure-host", "::", *TLS)


def test_variable_that_opens_a_service_is_named(service, host_of):
    with pytest.raises(StartupError, match=f"^{PREFIXES[service]}HOST is '::', which others can"):
        host_of(HOST="::")


@pytest.mark.parametrize("host", ["", "[::]", "a:1"])
def test_what_is_no_host_is_refused(host_of, host):
    with pytest.raises(StartupError, match=r"^--insecure-host is .*, must be a name or an IP ad"):
        host_of("--insecure-host", host)
