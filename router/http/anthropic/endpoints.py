"""POST /v1/messages and /v1/messages/count_tokens, in the form of Anthropic's API."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protos.wire.sampling_params import Grammar, SamplingParams
from router.errors import InvalidRequest
from router.http.answers import EventStream, read_answer
from router.http.anthropic.errors import bad
from router.http.anthropic.message import MessageReader
from router.http.anthropic.prompt import to_chat_prompt
from router.http.anthropic.request import DisabledThinking, MessagesRequest, PromptFields
from router.http.anthropic.writer import MessageWriter
from router.http.body import parse_body, read_body
from router.http.models import Endpoint
from router.http.outlet import outlet_of
from router.http.request_id import request_id
from router.http.sampling import json_schema_grammar
from router.http.service import Service
from router.http.tracing import http_trace_context
from router.types.generation import GenerationRequest


def anthropic_endpoints(service: Service) -> dict[str, Endpoint]:
    """Returns the endpoints by path, all for POST."""
    pipeline = service.pipeline

    async def create_message(request: Request) -> Response:
        body = await read_body(request, service.max_body_bytes, pipeline.request_bytes)
        fields = parse_body(MessagesRequest, body)
        deltas = pipeline.generate(to_generation_request(fields, request, len(body)))
        most, shows = fields.max_tokens, _shows_thinking(fields)
        if fields.stream:
            writer = MessageWriter(max_tokens=most, shows_thinking=shows)
            return EventStream(request, service, deltas, writer)
        reader = MessageReader(max_tokens=most, shows_thinking=shows)
        await read_answer(request, deltas, reader.read)
        return JSONResponse(reader.message())

    async def count_tokens(request: Request) -> Response:
        body = await read_body(request, service.max_body_bytes, pipeline.request_bytes)
        fields = parse_body(PromptFields, body)
        token_ids = await pipeline.tokenize(
            fields.model,
            to_chat_prompt(fields),
            num_bytes=len(body),
            caller=outlet_of(request.scope).caller,
        )
        return JSONResponse({"input_tokens": len(token_ids)})

    return {"/v1/messages": create_message, "/v1/messages/count_tokens": count_tokens}


def to_generation_request(
    fields: MessagesRequest, request: Request, num_bytes: int
) -> GenerationRequest:
    """Returns the request to the pipeline, with the trace context of the HTTP request.

    Raises:
        InvalidRequest: As `to_chat_prompt`, or the form of the answer cannot be read.
    """
    chat, grammar = to_chat_prompt(fields), _grammar(fields)
    if grammar is not None and chat.must_call:
        raise _two("tool_choice.type", "output_config.format")
    traceparent, tracestate = http_trace_context(request.scope)
    return GenerationRequest(
        request_id=request_id(request.scope),
        model=fields.model,
        prompt=chat,
        sampling_params=SamplingParams(
            temperature=fields.temperature,
            max_tokens=fields.max_tokens,
            top_k=fields.top_k,
            top_p=fields.top_p,
            grammar=grammar,
        ),
        stop=tuple(fields.stop_sequences or ()),
        # Clients must send it, and most ask for as much as they know of.
        fits_max_tokens=True,
        traceparent=traceparent,
        tracestate=tracestate,
        num_bytes=num_bytes,
        caller=outlet_of(request.scope).caller,
    )


def _grammar(fields: PromptFields) -> Grammar | None:
    config = fields.output_config
    new, old = None if config is None else config.format, fields.output_format
    if new is not None and old is not None:
        raise _two("output_format", "output_config.format")
    for name, form in (("output_config.format", new), ("output_format", old)):
        if form is not None:
            return json_schema_grammar(f"{name}.schema", form.schema_)
    return None


def _two(name: str, other: str) -> InvalidRequest:
    return bad(name, "", f"asks for another answer than {other}; leave out one of them")


def _shows_thinking(fields: MessagesRequest) -> bool:
    thinking = fields.thinking
    if thinking is None or isinstance(thinking, DisabledThinking):
        return True
    return thinking.display != "omitted"
