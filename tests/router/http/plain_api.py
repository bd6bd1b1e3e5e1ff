"""An API of two endpoints for tests of what all share: a stream of tokens, and all at once."""

from array import array
from typing import Annotated

import pydantic
from starlette.responses import JSONResponse

from protos.wire.sampling_params import SamplingParams
from router.http.answers import COMMENT, EventStream, event, read_answer
from router.http.body import parse_body, read_body
from router.http.errors import openai_error
from router.http.openapi import Operation
from router.http.sampling import Fields
from router.types.generation import GenerationRequest
from router.types.prompts import TokenPrompt


class PlainRequest(Fields):
    """Token IDs to go on from."""

    prompt: list[Annotated[int, pydantic.Field(ge=0, lt=1 << 32)]] = pydantic.Field(
        min_length=1, max_length=64
    )
    max_tokens: int = pydantic.Field(default=16, ge=1, le=4096)
    padding: str = ""


class _Writer:
    error_form = staticmethod(openai_error)
    keep_alive = COMMENT

    def begin(self):
        return b""

    def delta(self, delta):
        if not delta.token_ids:
            return b""
        return event({"token_ids": list(delta.token_ids), "text": delta.text})

    def end(self):
        return b"data: [DONE]\n\n"

    def error(self, refusal):
        return event(openai_error(refusal))


def plain_endpoints(service):
    async def read(request):
        body = await read_body(request, service.max_body_bytes, service.pipeline.request_bytes)
        fields = parse_body(PlainRequest, body)
        return service.pipeline.generate(
            GenerationRequest(
                request_id="",
                model="",
                prompt=TokenPrompt(token_ids=array("I", fields.prompt)),
                sampling_params=SamplingParams(max_tokens=fields.max_tokens, temperature=0.0),
                num_bytes=len(body),
            )
        )

    async def stream(request):
        return EventStream(request, service, await read(request), _Writer())

    async def whole(request):
        token_ids = []
        await read_answer(
            request, await read(request), lambda delta: token_ids.extend(delta.token_ids)
        )
        return JSONResponse({"token_ids": token_ids})

    async def large(request):
        return JSONResponse({"text": "x" * (32 << 20)})

    async def stuck(request):
        """Does not mind that its client leaves."""
        async for _ in await read(request):
            pass
        return JSONResponse({})

    return {
        "/plain/stream": stream,
        "/plain/whole": whole,
        "/plain/large": large,
        "/plain/stuck": stuck,
    }


PLAIN_OPERATIONS = [
    Operation("POST", "/plain/stream", "Streams tokens.", PlainRequest),
    Operation("POST", "/plain/whole", "Returns tokens.", PlainRequest),
    Operation("POST", "/plain/large", "Returns much."),
    Operation("POST", "/plain/stuck", "Returns nothing.", PlainRequest),
]
PLAIN_API = ("POST", plain_endpoints, openai_error)
