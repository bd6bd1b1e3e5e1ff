"""POST /v1/responses."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from router.http.answers import EventStream, read_answer
from router.http.body import parse_body, read_body
from router.http.models import Endpoint
from router.http.responses.answer import Answer
from router.http.responses.events import ResponseEvents
from router.http.responses.request import ResponsesRequest
from router.http.service import Service


def responses_endpoints(service: Service) -> dict[str, Endpoint]:
    """Returns the endpoints by path, all for POST."""

    async def create(request: Request) -> Response:
        pipeline = service.pipeline
        body = await read_body(request, service.max_body_bytes, pipeline.request_bytes)
        fields = parse_body(ResponsesRequest, body)
        deltas = pipeline.generate(
            fields.generation(request, fields.chat(), fields.sampling(), len(body))
        )
        answer = Answer(fields)
        if fields.stream:
            return EventStream(request, service, deltas, ResponseEvents(answer))
        await read_answer(request, deltas, answer.push)
        answer.end()
        return JSONResponse(answer.ended())

    return {"/v1/responses": create}
