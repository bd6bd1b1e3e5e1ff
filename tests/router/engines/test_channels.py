"""How a lost connection to an engine is explained."""

import pytest

from router.engines.channels import EngineChannels
from servicekit.tls import client_tls
from tests.fakes.certificates import make_certificates

LOST = "UNAVAILABLE: Stream removed (Socket closed)"
LEFT = "UNAVAILABLE: failed to connect to all addresses; last error: 127.0.0.1:1: Socket closed"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    return client_tls(None, None, made / "ca.pem")


def test_engine_that_dies_is_not_taken_for_one_that_refuses(tls):
    for channels in (EngineChannels(), EngineChannels(tls)):
        assert channels.explained(LOST) == LOST
        assert channels.explained(LEFT).startswith(f"{LEFT}; ")
