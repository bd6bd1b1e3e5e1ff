"""GET /openapi.json and /docs: what can be asked, made from the models that check it."""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from router.http.models import Endpoint
from servicekit.version import software_version

_SCHEMAS = "#/components/schemas/"
_ERROR = {
    "type": "object",
    "description": "An error, in the form of the API that was asked.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_ERRORS = {
    "400": "The request is wrong; the message names the field, its value and the bound.",
    "401": "No API key, or one that is not known, where the router needs one.",
    "404": "There is no such model.",
    "500": "The router failed; its log says why.",
    "503": "No engine takes requests, or the router is shutting down.",
}
_ERRORS_OF_BODIES = {
    "403": "The API key does not allow this.",
    "408": "The body did not come in time.",
    "413": "The body is too long.",
    "415": "The body is compressed.",
    "429": "Too many requests are in progress; Retry-After says when to try again.",
    "501": "The model or its engines cannot do what is asked.",
    "504": "The deadline of the request is over.",
}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Pagestream</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
code {{ font-size: 0.9em }}
td {{ padding: 0.1rem 1rem 0.1rem 0; vertical-align: top }}
</style>
<h1>Pagestream {version}</h1>
<p>The same for programs: <a href="openapi.json">openapi.json</a></p>
{operations}
</html>
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked.

    Attributes:
        method: The HTTP method.
        path: As its route has it.
        summary: One sentence.
        request: The model of its body, or None.
    """

    method: str
    path: str
    summary: str
    request: type[pydantic.BaseModel] | None = None


def document_endpoints(operations: Sequence[Operation]) -> dict[str, Endpoint]:
    """Returns the endpoints by path, both for GET."""
    content, page = _written(tuple(operations))

    async def get_document(request: Request) -> Response:
        return Response(content, media_type="application/json")

    async def get_page(request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return Response(page, media_type="text/html", headers={"content-security-policy": policy})

    return {"/openapi.json": get_document, "/docs": get_page}


@cache
def _written(operations: tuple[Operation, ...]) -> tuple[bytes, str]:
    """Returns the document and its page; made once, as that takes 0.1 s."""
    document = openapi_document(operations)
    return json.dumps(document).encode(), _page(document)


def openapi_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Returns a document of OpenAPI 3.1."""
    models = list(dict.fromkeys(one.request for one in operations if one.request))
    names, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_SCHEMAS + "{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        schema = names[one.request, "validation"] if one.request else None
        path = _PARAMETER.sub(r"{\1}", one.path)
        paths.setdefault(path, {})[one.method.lower()] = _described(one, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pagestream", "version": software_version()},
        "paths": paths,
        "components": {"schemas": {**definitions.get("$defs", {}), "Error": _ERROR}},
    }


def _described(operation: Operation, schema: dict[str, Any] | None) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "The answer."}}
    errors = _ERRORS if schema is None else _ERRORS | _ERRORS_OF_BODIES
    for status, text in sorted(errors.items()):
        answers[status] = {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Error"}}},
        }
    described: dict[str, Any] = {"summary": operation.summary, "responses": answers}
    if names := _PARAMETER.findall(operation.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if schema is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return described


def _page(document: dict[str, Any]) -> str:
    parts = []
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(described['summary'])}</p>")
            if "requestBody" in described:
                schema = described["requestBody"]["content"]["application/json"]["schema"]
                parts.append(_fields(schema, document["components"]["schemas"]))
    return _PAGE.format(
        version=html.escape(document["info"]["version"]), operations="\n".join(parts)
    )


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    schema = schemas[_name(schema)] if "$ref" in schema else schema
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{html.escape(name)}</code>"
        f"<td>{html.escape(_kind(field))}{', required' if name in required else ''}"
        f"<td>{html.escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    ]
    return "<table>" + "\n".join(rows) + "</table>"


def _kind(field: dict[str, Any]) -> str:
    """Returns the type of a field in a few words."""
    if "$ref" in field:
        return _name(field)
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(map(_kind, field[key])))
    if "enum" in field or "const" in field:
        return " or ".join(map(json.dumps, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        return f"array of {_kind(field.get('items', {}))}"
    return str(field.get("type", "any"))


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).removeprefix(_SCHEMAS)
