"""The request that `pagestream serve` suggests is one that the model can answer."""

import http.server
import json
import ssl
import threading

import pytest

from pagestream.serve.first_request import (
    closed_curl_command,
    curl_command,
    is_ready,
    model_name,
)
from tests.fakes.certificates import make_certificates


class Router(http.server.BaseHTTPRequestHandler):
    """Understands some prompts; lists the models that it is told to."""

    understood = ()
    models = ()

    def do_GET(self):
        self.answer(200, {"data": [{"id": name} for name in self.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/tokenize"
        self.answer(200 if set(self.understood) & set(body) else 400, {})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def router():
    kind = type("One", (Router,), {})
    with http.server.HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        kind.server = server
        kind.address = f"127.0.0.1:{server.server_port}"
        yield kind
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("understood", "path", "prompt"),
    [
        (("messages", "prompt"), "/v1/chat/completions", '"messages": [{"role": "user", '),
        (("prompt",), "/v1/completions", '"prompt": "Introduce yourself."'),
        ((), "/v1/completions", '"prompt": [1, 2, 3]'),
    ],
)
def test_curl_line_is_a_chat_where_the_model_has_chats(router, understood, path, prompt):
    router.understood = understood
    line = curl_command(router.address)
    assert line.startswith(f"curl http://{router.address}{path} -H 'content-type: ")
    assert prompt in line
    assert "\n" not in line


def test_model_is_the_one_that_is_listed(router):
    with pytest.raises(OSError, match="lists no model"):
        model_name(router.address)
    router.models = ["demo", "other"]
    assert model_name(router.address) == "demo"


def test_nobody_is_ready_where_nothing_listens(router):
    assert is_ready(router.address)
    assert not is_ready("127.0.0.1:1")


def test_router_with_a_certificate_is_asked_with_it(router, tmp_path):
    made = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / "elsewhere.pem", made / "elsewhere.key")
    router.server.socket = context.wrap_socket(router.server.socket, server_side=True)
    router.models, router.understood = ("small",), ("messages",)
    cert = made / "elsewhere.pem"
    assert model_name(router.address, cert) == "small"
    line = curl_command(router.address, cert)
    assert line.startswith(f"curl --cacert {cert} https://{router.address}/v1/chat/completions ")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        model_name(router.address, made / "server.pem")


@pytest.mark.parametrize(
    ("needs_key", "needs_certificate", "begin"),
    [
        (True, False, "printf 'authorization: Bearer %s' \"$PAGESTREAM_API_KEY\" | curl -H @- "),
        (False, True, "curl --cert client.pem --key client.key "),
    ],
)
def test_command_for_a_closed_router_names_what_its_client_must_have(
    needs_key, needs_certificate, begin
):
    line = closed_curl_command(
        "127.0.0.1:8000", None, needs_key=needs_key, needs_certificate=needs_certificate
    )
    assert line.startswith(f"{begin}http://127.0.0.1:8000/v1/chat/completions -H 'content-type: ")
