"""The HTTP application: which path is answered by whom, and with which errors."""

import http
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from protos.wire.printable import shown
from router.access.keyring import Keyring
from router.http.anthropic.endpoints import anthropic_endpoints
from router.http.anthropic.errors import anthropic_error
from router.http.anthropic.request import MessagesRequest, PromptFields
from router.http.chat.answer import chat_error
from router.http.chat.endpoint import ChatFields, chat_endpoints
from router.http.completions.endpoint import CompletionFields, completion_endpoints
from router.http.errors import ErrorForm, HttpError, error_response, openai_error, refused
from router.http.models import Endpoint, model_endpoints
from router.http.openapi import Operation, document_endpoints
from router.http.outlet import outlet_of
from router.http.request_id import name_request
from router.http.responses.answer import responses_error
from router.http.responses.endpoint import responses_endpoints
from router.http.responses.request import ResponsesRequest
from router.http.service import Service
from router.http.tokens import DetokenizeFields, TokenizeFields, token_endpoints

_CLIENT_LEFT = 499
"""Nobody reads it."""


_APIS: list[tuple[str, Callable[[Service], dict[str, Endpoint]], ErrorForm]] = [
    ("GET", model_endpoints, openai_error),
    ("POST", responses_endpoints, responses_error),
    ("POST", anthropic_endpoints, anthropic_error),
    ("POST", completion_endpoints, openai_error),
    ("POST", token_endpoints, chat_error),
    ("POST", chat_endpoints, chat_error),
]
"""Their method, what makes their endpoints by path, and the form of their errors."""

_OPERATIONS = [
    Operation("GET", "/v1/models", "Lists the models that can be asked for."),
    Operation("GET", "/v1/models/{model:path}", "Describes one model."),
    Operation("GET", "/health", "Says whether an engine takes requests: 200, or 503."),
    Operation("GET", "/version", "Returns the version of the router."),
    Operation("POST", "/v1/chat/completions", "Answers a chat as OpenAI's API.", ChatFields),
    Operation("POST", "/v1/completions", "Continues prompts as OpenAI's API.", CompletionFields),
    Operation("POST", "/v1/responses", "Answers as OpenAI's Responses API.", ResponsesRequest),
    Operation("POST", "/v1/messages", "Answers as Anthropic's Messages API.", MessagesRequest),
    Operation("POST", "/v1/messages/count_tokens", "Counts a prompt's tokens.", PromptFields),
    Operation("POST", "/tokenize", "Returns the tokens of a text or a chat.", TokenizeFields),
    Operation("POST", "/detokenize", "Returns the text of tokens.", DetokenizeFields),
]
"""Each endpoint, as the OpenAPI document has it: method, path, summary and model of the body."""


_OPEN = {"/health", "/version"}
"""Paths that need no API key: load balancers have none."""


def make_app(service: Service) -> ASGIApp:
    """Returns the application."""
    endpoints = {
        (method, path): guarded(endpoint, form, None if path in _OPEN else service.keyring)
        for method, of_api, form in _APIS
        for path, endpoint in of_api(service).items()
    }
    endpoints |= {("GET", path): page for path, page in document_endpoints(_OPERATIONS).items()}
    others = _routed(endpoints)
    exact = {key: endpoint for key, endpoint in endpoints.items() if "{" not in key[1]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        name_request(scope)
        # Starlette's own way costs three coroutines for each message.
        endpoint = exact.get((scope["method"], scope["path"]))
        if endpoint is None:
            await others(scope, receive, send)
        else:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

    return app


def _routed(endpoints: dict[tuple[str, str], Endpoint]) -> Starlette:
    """Returns what answers any request: also of paths with parameters, and wrong ones."""
    routes = [
        Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()
    ]

    async def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
            methods = (error.headers or {}).get("Allow", "")
            text = (
                f"{request.method} is not a method of {shown(request.scope['path'])}; use {methods}"
            )
        else:
            text = f"{shown(request.scope['path'])} is no path of this server"
        is_anthropic = request.scope["path"].startswith("/v1/messages")
        form = anthropic_error if is_anthropic else openai_error
        refusal = refused(HttpError(http.HTTPStatus(error.status_code), text), request.scope)
        response = error_response(refusal, form)
        response.headers.update(error.headers or {})
        return response

    app = Starlette(routes=routes, exception_handlers={HTTPException: not_found})
    # It would send the client to whatever host its own headers name.
    app.router.redirect_slashes = False
    return app


def guarded(endpoint: Endpoint, form: ErrorForm, keyring: Keyring | None) -> Endpoint:
    """Returns an endpoint whose errors are answered in the form of its API.

    Args:
        endpoint: Answers those who may ask.
        form: Of the errors.
        keyring: The API keys of those who may ask; None if that is everybody.
    """

    async def answer(request: Request) -> Response:
        try:
            if keyring is not None:
                outlet_of(request.scope).caller = keyring.of_headers(request.scope["headers"])
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)
        # A failing request must not fail the service.
        except Exception as error:
            response = error_response(refused(error, request.scope), form)
            if not outlet_of(request.scope).has_whole_request:
                # The connection ends behind the answer; a client must not ask again over it.
                response.headers["connection"] = "close"
            return response

    return answer
