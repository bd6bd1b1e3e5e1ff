"""The document of the HTTP APIs, and every request that it can be read to allow."""

import asyncio
import json
import logging
import re

import hypothesis
import schemathesis

from router.http import app
from router.http.service import Service
from router.types.engine_events import Admitted, Finished, FinishReason, Tokens
from tests.fakes.fake_fleet import ENGINE, FakeFleet
from tests.router.http.serving import client_of

NUM_EXAMPLES = 12
"""Of each endpoint, of which there are about a dozen."""


class ReadyFleet(FakeFleet):
    """Answers each request with two tokens."""

    async def generate(self, request):
        yield Admitted(engine=ENGINE, num_cached_tokens=0, seed=7)
        yield Tokens(token_ids=(7, 8))
        yield Finished(reason=FinishReason.LENGTH, stop_token_id=None)


def references(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for one in node:
            yield from references(one)


async def test_document_has_each_endpoint_and_schema(plain_api):
    async with client_of(FakeFleet()) as client:
        document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in references(document)} <= set(
        schemas
    )
    described = document["paths"]["/plain/whole"]["post"]
    assert references(described["requestBody"])
    assert "prompt" in schemas["PlainRequest"]["required"]
    assert {"400", "413", "429", "503"} <= set(described["responses"])
    assert document["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["name"] == "model"


def test_each_route_is_an_operation_of_the_document():
    service = Service(pipeline=None, models=None, slow_readers=None, max_body_bytes=1)
    operations = {(one.method, one.path) for one in app._OPERATIONS}
    routes = {(method, path) for method, endpoints, _ in app._APIS for path in endpoints(service)}
    assert operations == routes


async def test_page_names_what_can_be_asked_and_loads_nothing(plain_api):
    async with client_of(FakeFleet()) as client:
        page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for text in ("POST /plain/whole", "GET /v1/models/{model}", "max_tokens", "array of integer"):
        assert text in page.text
    assert not re.search(r"<script|<link|src=|https?:", page.text)


async def test_whatever_the_document_allows_is_no_failure_of_the_router(plain_api, caplog):
    caplog.set_level(logging.WARNING, "router")
    fleet = ReadyFleet()
    async with client_of(fleet, max_concurrent_requests=64) as client:
        document = (await client.get("/openapi.json")).json()
        await asyncio.to_thread(call_all, document, str(client.base_url))
        assert (await client.get("/health")).status_code == 200
    assert not [one for one in caplog.records if one.name.startswith(("router", "uvicorn"))]


def call_all(document, url):
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    for result in schema.get_all_operations():
        call_often(result.ok())


def call_often(operation):
    expected = {int(status) for status in operation.definition.raw["responses"]} - {500}

    @hypothesis.settings(
        max_examples=NUM_EXAMPLES,
        # A failure is clear enough as it was found.
        phases=[hypothesis.Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def call(case):
        response = case.call(timeout=10)
        assert response.status_code in expected, (case, response.content)
        if response.status_code >= 400:
            assert json.loads(response.content)

    call()
