"""The first questions to a fleet: whether it is ready, and which request it would answer."""

import http.client
import json
import shlex
import ssl
from pathlib import Path
from typing import Any

from pagestream.environment import API_KEY
from servicekit import address

_SECONDS = 5.0
_HELLO = "Introduce yourself."
_MAX_TOKENS = 64


def is_ready(operations_address: str, cert: Path | None = None) -> bool:
    """Whether a service's readiness probe passes.

    Args:
        operations_address: Where it answers, "host:port".
        cert: The certificate of that port; None if it speaks plain text.
    """
    try:
        return _ask(operations_address, "GET", "/readyz", cert=cert)[0] == http.HTTPStatus.OK
    except OSError:
        return False


def model_name(http_address: str, cert: Path | None = None) -> str:
    """Returns the name of the model that a router serves.

    Args:
        http_address: Where it serves HTTP, "host:port".
        cert: Its certificate; None if it speaks plain text.

    Raises:
        OSError: It does not answer, or not with a model.
    """
    content = _ask(http_address, "GET", "/v1/models", cert=cert)[1]
    try:
        return str(content["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise OSError(f"{http_address} lists no model") from error


def curl_command(http_address: str, cert: Path | None = None) -> str:
    """Returns a command that the router answers with a text: a chat, where the model has them.

    Args:
        http_address: Where it serves HTTP, "host:port".
        cert: Its certificate; None if it speaks plain text.
    """
    messages = [{"role": "user", "content": _HELLO}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": _HELLO}),
    ]
    for path, body in bodies:
        # Costs no engine anything, and fails where the model has no template or no tokenizer.
        if _is_understood(http_address, body, cert):
            return _curl(http_address, path, body, cert)
    return _curl(http_address, "/v1/completions", {"prompt": [1, 2, 3]}, cert)


def closed_curl_command(
    http_address: str, cert: Path | None, *, needs_key: bool, needs_certificate: bool
) -> str:
    """Returns a command for a router that does not answer everybody: a chat.

    It names the client's key and certificate as the client may have them.

    Args:
        http_address: Where it serves HTTP, "host:port".
        cert: Its certificate; None if it speaks plain text.
        needs_key: Whether clients need an API key.
        needs_certificate: Whether clients need a certificate.
    """
    options = " --cert client.pem --key client.key" if needs_certificate else ""
    if needs_key:
        options += " -H @-"
    body = {"messages": [{"role": "user", "content": _HELLO}]}
    curl = _curl(http_address, "/v1/chat/completions", body, cert, options)
    # By a pipe, as everybody on the machine can see the arguments of curl.
    key = f"printf 'authorization: Bearer %s' \"${API_KEY}\" | "
    return f"{key if needs_key else ''}{curl}"


def _is_understood(http_address: str, body: dict[str, Any], cert: Path | None) -> bool:
    try:
        return _ask(http_address, "POST", "/tokenize", body, cert=cert)[0] == http.HTTPStatus.OK
    except OSError:
        return False


def _curl(
    http_address: str, path: str, body: dict[str, Any], cert: Path | None, options: str = ""
) -> str:
    content = json.dumps({**body, "max_tokens": _MAX_TOKENS})
    # The brackets of an IPv6 address mean something to some shells.
    url = shlex.quote(f"{'https' if cert else 'http'}://{http_address}{path}")
    # Whoever the certificate is of, it is the right one.
    trust = f" --cacert {shlex.quote(str(cert))}" if cert else ""
    return f"curl{trust}{options} {url} -H 'content-type: application/json' -d '{content}'"


def _connection(at: str, cert: Path | None) -> http.client.HTTPConnection:
    host, port = address.split(at)
    if cert is None:
        return http.client.HTTPConnection(host, port, timeout=_SECONDS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It trusts this certificate alone, which may have any name.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cert)
    return http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)


def _ask(
    at: str, method: str, path: str, body: object = None, *, cert: Path | None = None
) -> tuple[int, Any]:
    """Returns the status and the content of an answer; JSON where it is that.

    Raises:
        OSError: There is no answer.
    """
    connection = _connection(at, cert)
    try:
        headers = {"content-type": "application/json"} if body is not None else {}
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        text = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{at}{path} gave no whole answer: {error!r}") from error
    finally:
        connection.close()
