"""The first questions to a fleet: whether it is ready, and which request it would answer."""

import http.client
import json
import shlex
from typing import Any

from servicekit import address

_SECONDS = 5.0
_HELLO = "Introduce yourself."
_MAX_TOKENS = 64


def is_ready(operations_address: str) -> bool:
    """Whether a service's readiness probe passes."""
    try:
        return _ask(operations_address, "GET", "/readyz")[0] == http.HTTPStatus.OK
    except OSError:
        return False


def model_name(http_address: str) -> str:
    """Returns the name of the model that a router serves.

    Raises:
        OSError: It does not answer, or not with a model.
    """
    content = _ask(http_address, "GET", "/v1/models")[1]
    try:
        return str(content["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise OSError(f"{http_address} lists no model") from error


def curl_command(http_address: str) -> str:
    """Returns a command that the router answers with a text: a chat, where the model has them."""
    messages = [{"role": "user", "content": _HELLO}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": _HELLO}),
    ]
    for path, body in bodies:
        # Costs no engine anything, and fails where the model has no template or no tokenizer.
        if _is_understood(http_address, body):
            return _curl(http_address, path, body)
    return _curl(http_address, "/v1/completions", {"prompt": [1, 2, 3]})


def _is_understood(http_address: str, body: dict[str, Any]) -> bool:
    try:
        return _ask(http_address, "POST", "/tokenize", body)[0] == http.HTTPStatus.OK
    except OSError:
        return False


def _curl(http_address: str, path: str, body: dict[str, Any]) -> str:
    content = json.dumps({**body, "max_tokens": _MAX_TOKENS})
    # The brackets of an IPv6 address mean something to some shells.
    url = shlex.quote(f"http://{http_address}{path}")
    return f"curl {url} -H 'content-type: application/json' -d '{content}'"


def _ask(at: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Returns the status and the content of an answer; JSON where it is that.

    Raises:
        OSError: There is no answer.
    """
    host, port = address.split(at)
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
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
