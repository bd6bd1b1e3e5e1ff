"""A server of OpenAI's completions by HTTP, such as a router's HTTP port."""

import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx

from pagestream.bench.options import WorkloadOptions
from pagestream.bench.results import Usage
from pagestream.bench.target import Model, RequestFailed
from pagestream.bench.workload import Request
from pagestream.connection import Connection
from pagestream.errors import CommandFailed
from pagestream.router_client import CALL_SECONDS
from protos.wire.printable import shown

_MAX_LINE_BYTES = 1 << 20
"""Of an event."""
_MAX_ERROR_BYTES = 1 << 16
_MAX_MODELS_BYTES = 1 << 20
_DATA = b"data:"
_END = b"[DONE]"
_NO_HTTP1 = "illegal request line"
"""What httpx says of the first bytes of HTTP/2, which a gRPC port sends unasked."""


class HttpTarget:
    """A server by HTTP, over as many connections as there are requests under way."""

    def __init__(
        self, address: str, connection: Connection, max_open: int, options: WorkloadOptions
    ) -> None:
        self._url = f"{'https' if connection.is_tls else 'http'}://{address}"
        self._connection = connection
        self._options = options
        # No proxy of the environment: the server is reached by its address.
        self._client = httpx.AsyncClient(
            base_url=f"{self._url}/v1",
            verify=connection.http_context() or False,
            trust_env=False,
            timeout=None,
            headers={"accept-encoding": "identity", **connection.headers},
            limits=httpx.Limits(max_connections=max_open, max_keepalive_connections=max_open),
        )

    async def __aenter__(self) -> "HttpTarget":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def models(self) -> list[Model]:
        """Returns the models."""
        connection = self._connection
        try:
            async with self._client.stream(
                "GET", "/models", timeout=CALL_SECONDS, extensions=connection.extensions
            ) as response:
                content = await _read(response, _MAX_MODELS_BYTES)
            if response.status_code != httpx.codes.OK:
                advice = ""
                if response.status_code == httpx.codes.UNAUTHORIZED:
                    # Not what it says: that may repeat the key.
                    advice = connection.advice("UNAUTHENTICATED") or ": the API key is not known"
                raise CommandFailed(
                    f"{self._url} answers GET /v1/models with {response.status_code}{advice}"
                )
            entries = json.loads(content)["data"]
            return [Model(str(one["id"]), _count(one, "max_model_len")) for one in entries]
        except httpx.HTTPError as error:
            text = str(error).rstrip(".") or type(error).__name__
            if _NO_HTTP1 in text:
                raise CommandFailed(
                    f"what answers at {self._url} does not speak HTTP/1: if it is the router's "
                    "gRPC port, leave out http://"
                ) from None
            raise CommandFailed(
                f"no router answers at {self._url}: {shown(text)}{connection.advice(text)}"
            ) from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CommandFailed(
                f"what answers at {self._url} lists no models as OpenAI's API does"
            ) from None

    async def ask(self, model: str, request: Request, usage: Usage) -> AsyncGenerator[int, None]:
        """Sends a request and yields the new tokens of each event."""
        body = {
            "model": model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": self._options.temperature,
            "seed": request.seed,
            "ignore_eos": self._options.ignore_eos,
            "stream": True,
            # vLLM's and ours; without it, each event is taken for one token.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        try:
            async with self._client.stream(
                "POST", "/completions", json=body, extensions=self._connection.extensions
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise RequestFailed(await _refusal(response))
                async for count in _new_tokens(response, usage):
                    yield count
        except httpx.HTTPError as error:
            raise RequestFailed(type(error).__name__) from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise RequestFailed("BAD_EVENT") from None


async def _new_tokens(response: httpx.Response, usage: Usage) -> AsyncIterator[int]:
    """Yields the new tokens of the events that came together."""
    num_tokens = 0
    async for events in _events(response):
        so_far = num_tokens
        for data in itertools.takewhile(lambda one: one != _END, events):
            so_far = _read_event(json.loads(data), so_far, usage)
        if so_far > num_tokens:
            yield so_far - num_tokens
            num_tokens = so_far
        if _END in events:
            return
    raise RequestFailed("NO_FINISH")


def _read_event(event: dict[str, Any], num_tokens: int, usage: Usage) -> int:
    """Returns the tokens so far, given those before the event."""
    if error := event.get("error"):
        raise RequestFailed(_reason(error))
    if counts := event.get("usage"):
        usage.num_prompt_tokens = _count(counts, "prompt_tokens")
        details = counts.get("prompt_tokens_details") or {}
        usage.num_cached_tokens = _count(details, "cached_tokens")
        return _count(counts, "completion_tokens")
    return num_tokens + any(choice.get("text") for choice in event.get("choices") or ())


async def _events(response: httpx.Response) -> AsyncIterator[list[bytes]]:
    """Yields the data of server-sent events, of those together that were read at once."""
    rest = b""
    # Raw: what is compressed could become too much in one piece.
    async for chunk in response.aiter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        yield [line.removeprefix(_DATA).strip() for line in lines if line.startswith(_DATA)]
        if len(rest) > _MAX_LINE_BYTES:
            raise RequestFailed("EVENT_TOO_LONG")


async def _refusal(response: httpx.Response) -> str:
    """Returns why a request was refused."""
    try:
        return _reason(json.loads(await _read(response, _MAX_ERROR_BYTES))["error"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"HTTP_{response.status_code}"


def _reason(error: dict[str, Any]) -> str:
    return str(error.get("code") or error.get("type") or "ERROR").upper()


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    content = b""
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(f"the answer has more than {max_bytes} bytes")
    return content


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0
