"""GET /v1/models, in the form of OpenAI's API, and what a load balancer asks for."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from router.errors import UnknownModel
from router.http.outlet import outlet_of
from router.http.service import Service
from router.types.engine_state import ModelInfo
from servicekit.version import software_version

Endpoint = Callable[[Request], Awaitable[Response]]

_STARTED = int(time.time())
"""OpenAI's clients want a time at which a model was made; nobody knows it."""


def model_endpoints(service: Service) -> dict[str, Endpoint]:
    """Returns the endpoints by path, all for GET."""

    async def list_models(request: Request) -> Response:
        entries = sorted(
            (_entry(info) for info in _models(service, request)),
            key=lambda entry: str(entry["id"]),
        )
        return JSONResponse({"object": "list", "data": entries})

    async def get_model(request: Request) -> Response:
        name = request.path_params["model"]
        if not name:
            return await list_models(request)
        found = [info for info in _models(service, request) if info.name == name]
        if not found:
            raise _unknown_model(name)
        return JSONResponse(_entry(found[0]))

    async def health(request: Request) -> Response:
        is_well = any(model.num_serving_engines for model in service.models())
        return JSONResponse(
            {"status": "ok" if is_well else "no engine takes requests"}, 200 if is_well else 503
        )

    async def version(request: Request) -> Response:
        return JSONResponse({"version": software_version()})

    return {
        "/v1/models": list_models,
        # Names of models have slashes.
        "/v1/models/{model:path}": get_model,
        "/health": health,
        "/version": version,
    }


def find_model(service: Service, name: str) -> ModelInfo:
    """Returns a model by its name; an empty name means the only one.

    Raises:
        UnknownModel: No engine serves it.
    """
    found = [model.info for model in service.models() if name in ("", model.info.name)]
    if len(found) == 1:
        return found[0]
    raise _unknown_model(name)


def _unknown_model(name: str) -> UnknownModel:
    return UnknownModel(f"model is {name!r:.200}, which no engine serves", {"model": name})


def _models(service: Service, request: Request) -> list[ModelInfo]:
    """Returns the models that the client may use."""
    caller = outlet_of(request.scope).caller
    infos = [model.info for model in service.models()]
    return infos if caller is None else [info for info in infos if caller.may_use(info.name)]


def _entry(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "pagestream",
        "max_model_len": model.max_model_len,
    }
