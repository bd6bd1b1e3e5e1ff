"""The fields about sampling that OpenAI's APIs have in common, and those that vLLM adds."""

import json
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core
from pydantic.fields import FieldInfo
from starlette.requests import Request

from protos.wire.limits import (
    MAX_CHOICE_BYTES,
    MAX_CHOICES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
)
from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, LogitBias, SamplingParams
from router.errors import InvalidRequest
from router.http.kinds import LIST, TEXT, text_or_list
from router.http.outlet import outlet_of
from router.http.request_id import chosen_id
from router.http.tracing import http_trace_context
from router.request.json_object import read_object
from router.types.generation import GenerationRequest
from router.types.prompts import Prompt

Int32 = Annotated[int, pydantic.Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]
TokenId = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
JsonObject = dict[str, Any]


TextOrTexts = Annotated[
    Annotated[str, pydantic.Tag(TEXT)] | Annotated[list[str], pydantic.Tag(LIST)], text_or_list
]


def bounded(most: int) -> FieldInfo:
    """Returns what keeps a list from being read beyond its bound."""
    info: FieldInfo = pydantic.Field(max_length=most)
    return info


def _fail_fast(schema: object) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for inner in schema.values():
            _fail_fast(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _fail_fast(inner)


class Fields(pydantic.BaseModel):
    """An object of a request; a field that it does not have is refused by name."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[pydantic.BaseModel], handler: pydantic.GetCoreSchemaHandler
    ) -> pydantic_core.CoreSchema:
        """Returns a schema whose lists tell their first fault only: a body may have a million."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


class JsonSchemaFormat(Fields):
    """A schema, as `response_format` has it."""

    name: str = ""
    description: str | None = None
    schema_: JsonObject | None = pydantic.Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Fields):
    """vLLM's way to say what the text must match; one of them is given."""

    json_: JsonObject | str | None = pydantic.Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Fields):
    """What a stream has beside the answer."""

    include_usage: bool | None = None
    # vLLM's
    continuous_usage_stats: bool | None = None
    # Of no effect here
    include_obfuscation: bool | None = None


class SamplingFields(Fields):
    """How tokens are chosen and when a request ends.

    None is unset: the model's own default. Bounds are those of `SamplingParams`.
    """

    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Int64 | None = None
    n: Int32 | None = None
    stop: TextOrTexts | None = None
    stream: bool | None = None
    response_format: ResponseFormat | None = None
    # vLLM's
    top_k: Int32 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int32 | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[TokenId] | None = None
    prompt_logprobs: Int32 | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    # Known, and of no effect here
    user: str | None = None
    metadata: JsonObject | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Returns the parameters, not yet checked.

        Raises:
            InvalidRequest: `logit_bias` has a key that is no token ID, or more than one form of
                text is asked for.
        """
        return SamplingParams(
            temperature=self.temperature,
            max_tokens=max_tokens,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            seed=self.seed,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            min_tokens=self.min_tokens,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            logit_bias=_biases(self.logit_bias or {}),
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            grammar=_grammar(self.response_format, self.structured_outputs),
        )

    def generation(
        self, request: Request, prompt: Prompt, params: SamplingParams, num_bytes: int
    ) -> GenerationRequest:
        """Returns the request to the pipeline, with the trace context of the HTTP request."""
        traceparent, tracestate = http_trace_context(request.scope)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return GenerationRequest(
            request_id=chosen_id(request.scope, self.request_id),
            model=self.model,
            prompt=prompt,
            sampling_params=params,
            stop=stop,
            include_stop_text=bool(self.include_stop_str_in_output),
            bad_words=tuple(self.bad_words or ()),
            n=self.n,
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
            traceparent=traceparent,
            tracestate=tracestate,
            num_bytes=num_bytes,
            caller=outlet_of(request.scope).caller,
        )


def json_schema_grammar(field: str, schema: JsonObject) -> Grammar:
    """Returns the grammar of a schema that came as JSON.

    Raises:
        InvalidRequest: It is too deep or too long, or has numbers that are none.
    """
    text = json.dumps(schema, ensure_ascii=False)
    read_object(field, text)
    return _bounded(field, Grammar(form="json_schema", text=text))


def _biases(biases: dict[str, float]) -> tuple[LogitBias, ...]:
    found = []
    for key, bias in biases.items():
        if not key.isdecimal() or len(key) > 10 or int(key) >= 2**32:
            raise _bad("logit_bias", f"has the key {key!r:.50}, which is no token ID", key[:50])
        found.append(LogitBias(int(key), bias))
    return tuple(found)


def _grammar(response: ResponseFormat | None, outputs: StructuredOutputs | None) -> Grammar | None:
    of_response = None if response is None else _response_grammar(response)
    if outputs is None:
        return of_response
    if of_response is not None:
        raise _bad("structured_outputs", "is given beside response_format; give one of them", "")
    return _outputs_grammar(outputs)


def _response_grammar(response: ResponseFormat) -> Grammar | None:
    if response.type == "text":
        return None
    if response.type == "json_object":
        return Grammar(form="json_object")
    field = "response_format.json_schema"
    if response.json_schema is None or response.json_schema.schema_ is None:
        raise _bad(f"{field}.schema", "is missing", "")
    return json_schema_grammar(f"{field}.schema", response.json_schema.schema_)


def _outputs_grammar(outputs: StructuredOutputs) -> Grammar | None:
    forms = {
        "json": outputs.json_,
        "regex": outputs.regex,
        "choice": outputs.choice,
        "grammar": outputs.grammar,
        "json_object": outputs.json_object or None,
    }
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        text = f"has {', '.join(given) or 'nothing'}; give one of {', '.join(forms)}"
        raise _bad("structured_outputs", text, "")
    if isinstance(outputs.json_, dict):
        return json_schema_grammar("structured_outputs.json", outputs.json_)
    if outputs.json_object:
        return Grammar(form="json_object")
    field = f"structured_outputs.{given[0]}"
    if outputs.choice is not None:
        return _bounded(field, Grammar(form="choice", choices=tuple(outputs.choice)))
    form = {"json": "json_schema", "regex": "regex", "grammar": "lark"}[given[0]]
    return _bounded(field, Grammar(form=form, text=str(forms[given[0]])))


def _bounded(field: str, grammar: Grammar) -> Grammar:
    """Returns a grammar that is small enough for an engine, which would refuse all of a message."""
    if len(grammar.choices) > MAX_CHOICES:
        raise _outside(field, len(grammar.choices), "entries", MAX_CHOICES)
    for index, choice in enumerate(grammar.choices):
        if (num_bytes := len(choice.encode())) > MAX_CHOICE_BYTES:
            raise _outside(f"{field}[{index}]", num_bytes, "bytes", MAX_CHOICE_BYTES)
    most = MAX_REGEX_BYTES if grammar.form == "regex" else MAX_GRAMMAR_BYTES
    if (num_bytes := len(grammar.text.encode())) > most:
        raise _outside(field, num_bytes, "bytes", most)
    return grammar


def _outside(field: str, value: int, unit: str, most: int) -> InvalidRequest:
    return InvalidRequest(
        f"{field} has {value} {unit}, outside 0 to {most}",
        {"field": field, "value": str(value), "bounds": f"0 to {most}"},
        reason=Reason.BAD_SAMPLING_PARAMS,
    )


def _bad(field: str, text: str, value: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} {text}", {"field": field, "value": value}, reason=Reason.BAD_SAMPLING_PARAMS
    )
