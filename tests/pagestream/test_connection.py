"""What a command advises when a router cannot be reached."""

import grpc
import pytest
from grpc_status import rpc_status

from pagestream.connection import Connection, ConnectionOptions
from pagestream.router_client import describe
from protos.wire.status import Reason, error_status, to_rpc_status

LOST = "UNAVAILABLE: Stream removed (Socket closed)"
LEFT = "UNAVAILABLE: failed to connect to all addresses; last error: 127.0.0.1:1: Socket closed"
UNVERIFIED = "CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
CA = "; --tls-ca must have the CA of its certificate"
NAME = "; --tls-name says which name its certificate has"
CERT = "; it may refuse this --tls-cert, or its lack"


@pytest.mark.parametrize(
    ("reason", "is_secure", "advice"),
    [
        (LEFT, False, "; if it speaks TLS, give --tls-ca"),
        (LEFT, True, CERT),
        (LOST, False, ""),
        (LOST, True, ""),
        ("ReadError", True, CERT),
        ("Server disconnected without sending a response.", True, CERT),
        (f"{UNVERIFIED}unable to get local issuer certificate", True, CA),
        (f"{UNVERIFIED}self-signed certificate in certificate chain", True, CA),
        (f"{UNVERIFIED}certificate has expired", True, ""),
        (f"{UNVERIFIED}Hostname mismatch", True, NAME),
        ("UNAVAILABLE: Connection refused", True, ""),
    ],
)
def test_advice_fits_what_went_wrong(reason, is_secure, advice):
    connection = Connection(ConnectionOptions(), "", is_secure=is_secure)

    assert connection.advice(reason) == advice


class Failed(grpc.RpcError):
    """A call that a router has ended, as a client sees it."""

    def __init__(self, reason):
        said = error_status(reason, "engine a:1: Socket closed", domain="pagestream.router.v1")
        self._status = rpc_status.to_status(to_rpc_status(said))

    def code(self):
        return self._status.code

    def details(self):
        return self._status.details

    def trailing_metadata(self):
        return self._status.trailing_metadata


def test_what_befell_an_engine_is_not_taken_for_what_befell_the_command():
    advise = Connection(ConnectionOptions(), "", is_secure=True).advice

    said = describe("b:2", Failed(Reason.ENGINE_FAILED), advise)

    assert said == "b:2: ENGINE_FAILED: engine a:1: Socket closed"
