"""The HTTP application: which path is answered by whom, and with which errors."""

import http
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from protos.wire.printable import shown
from router.http.errors import ErrorForm, HttpError, error_response, log_error, openai_error
from router.http.models import Endpoint, model_endpoints
from router.http.service import Service

_CLIENT_LEFT = 499
"""Nobody reads it."""


_APIS: list[tuple[str, Callable[[Service], dict[str, Endpoint]], ErrorForm]] = [
    ("GET", model_endpoints, openai_error),
]
"""Their method, what makes their endpoints by path, and the form of their errors."""


def make_app(service: Service) -> Starlette:
    """Returns the application."""
    routes = [
        Route(path, guarded(endpoint, form), methods=[method])
        for method, endpoints, form in _APIS
        for path, endpoint in endpoints(service).items()
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
        return error_response(HttpError(http.HTTPStatus(error.status_code), text), openai_error)

    app = Starlette(routes=routes, exception_handlers={HTTPException: not_found})
    # It would send the client to whatever host its own headers name.
    app.router.redirect_slashes = False
    return app


def guarded(endpoint: Endpoint, form: ErrorForm) -> Endpoint:
    """Returns an endpoint whose errors are answered in the form of its API."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)
        # A failing request must not fail the service.
        except Exception as error:
            log_error(error, request.scope["path"])
            return error_response(error, form)

    return answer
