"""A request of the Responses API, and what the pipeline makes of it."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import pydantic

from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, SamplingParams
from router.errors import InvalidRequest
from router.http.json_texts import JsonTexts
from router.http.kinds import by_type, refused
from router.http.responses.items import Input, to_messages
from router.http.responses.tools import (
    Choice,
    FunctionTools,
    to_choice,
    to_tools,
)
from router.http.sampling import Fields, JsonObject, SamplingFields, json_schema_grammar
from router.types.prompts import ChatPrompt

_NOT_STORED = "nothing is stored here; send the whole conversation as input"
_LOGPROBS = "message.output_text.logprobs"
_Key = Annotated[str, pydantic.Field(max_length=64)]
_Value = Annotated[str, pydantic.Field(max_length=512)]
_Summary = Literal["auto", "concise", "detailed"]


class PlainText(Fields):
    """The text may be anything."""

    type: Literal["text"]


class JsonText(Fields):
    """The text is an object of JSON."""

    type: Literal["json_object"]


class SchemaText(Fields):
    """The text is JSON that follows a schema."""

    type: Literal["json_schema"]
    name: str
    schema_: JsonObject = pydantic.Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


Format = Annotated[
    PlainText | JsonText | SchemaText,
    by_type({"text": PlainText, "json_object": JsonText, "json_schema": SchemaText}),
]


class TextFields(Fields):
    """What the text of the answer is like."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningFields(Fields):
    """How the model reasons."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None
    context: Annotated[
        Literal["auto"] | None,
        refused("the model's chat template decides which reasonings the model sees", "auto"),
    ] = None
    mode: Annotated[
        Literal["standard"] | None, refused("there is one mode, standard", "standard")
    ] = None

    @property
    def variables(self) -> JsonObject:
        """The variables of chat templates that say so; each knows some of them or none."""
        match self.effort:
            case None:
                return {}
            case "none":
                return {"enable_thinking": False}
            case effort:
                return {"enable_thinking": True, "reasoning_effort": effort}


class StreamOptions(Fields):
    """What a stream of events has beside them."""

    include_obfuscation: Annotated[
        Literal[False] | None, refused("events are not padded here; send it as false", False)
    ] = None
    # Not of this API, but aiperf sends it.
    include_usage: Annotated[
        Literal[True] | None, refused("the last event always has the usage", True)
    ] = None


class PromptCacheOptions(Fields):
    """How prompts are cached; here, all are, until their memory is needed."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: Annotated[
        Literal[False] | None, refused("a request is always answered here", False)
    ] = None
    comparison_response_id: Annotated[None, refused("nothing is stored here")] = None


class ResponsesRequest(SamplingFields):
    """The body of POST /v1/responses."""

    input: Input = pydantic.Field(default_factory=list)
    instructions: str | None = None
    max_output_tokens: Annotated[int, pydantic.Field(ge=1, lt=2**31)] | None = None
    top_logprobs: Annotated[int, pydantic.Field(ge=0, le=20)] | None = None
    include: (
        list[
            Literal[
                "message.output_text.logprobs",
                "reasoning.encrypted_content",
                "file_search_call.results",
                "web_search_call.results",
                "web_search_call.action.sources",
                "message.input_image.image_url",
                "computer_call_output.output.image_url",
                "code_interpreter_call.outputs",
            ]
        ]
        | None
    ) = None
    tools: FunctionTools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[_Key, _Value], pydantic.Field(max_length=16)] | None = None
    # vLLM's
    chat_template_kwargs: JsonObject | None = None
    # Known, and of no effect here
    store: bool | None = None
    max_tool_calls: Annotated[int, pydantic.Field(ge=0, lt=2**31)] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    # Refused
    previous_response_id: Annotated[None, refused(_NOT_STORED)] = None
    conversation: Annotated[None, refused(_NOT_STORED)] = None
    prompt: Annotated[None, refused("nothing is stored here; send instructions and input")] = None
    background: Annotated[
        Literal[False] | None, refused("nothing is stored here; wait for the answer", False)
    ] = None
    background_options: Annotated[None, refused("no request runs in the background")] = None
    context_management: Annotated[None, refused("nothing of a conversation is left out here")] = (
        None
    )
    moderation: Annotated[None, refused("there is no moderation here")] = None
    access_programs: Annotated[None, refused("there are no access programs here")] = None
    image: Annotated[None, refused("the models here read text only")] = None
    n: Annotated[Literal[1] | None, refused("this API has one answer; send n as 1", 1)] = None
    response_format: Annotated[None, refused("in this API it is text.format")] = None
    prompt_logprobs: Annotated[None, refused("an answer of this API has no place for them")] = None

    @property
    def num_logprobs(self) -> int | None:
        """The likeliest tokens to report at each position; None means no logprobs at all."""
        if self.top_logprobs or _LOGPROBS in (self.include or ()):
            return self.top_logprobs or 0
        return None

    def chat(self) -> ChatPrompt:
        """Returns the conversation.

        Raises:
            InvalidRequest: Something in it is wrong that the types of the fields do not show.
        """
        variables = {
            **(self.reasoning.variables if self.reasoning else {}),
            **(self.chat_template_kwargs or {}),
        }
        texts = JsonTexts()
        messages = to_messages(self.instructions, self.input, texts)
        if not messages:
            raise InvalidRequest(
                "input has nothing that a model could answer to; send a text or items",
                {"field": "input"},
                reason=Reason.BAD_CHAT,
            )
        tool_choice, function_name = to_choice(self.tool_choice)
        return ChatPrompt(
            messages=messages,
            tools=to_tools(self.tools or [], self.tool_choice, texts),
            tool_choice=tool_choice,
            function_name=function_name,
            parallel_calls=self.parallel_tool_calls is not False,
            template_kwargs=texts.variables(variables),
            # All of it has been read now.
            num_json_bytes=texts.num_bytes,
        )

    def sampling(self) -> SamplingParams:
        """Returns the parameters, not yet checked.

        Raises:
            InvalidRequest: More than one form of text is asked for, or one that cannot be read.
        """
        params = self.params(max_tokens=self.max_output_tokens, logprobs=self.num_logprobs)
        grammar = self._grammar()
        if grammar is None:
            return params
        if params.grammar is not None:
            raise InvalidRequest(
                "structured_outputs is given beside text.format; give one of them",
                {"field": "structured_outputs"},
                reason=Reason.BAD_SAMPLING_PARAMS,
            )
        return replace(params, grammar=grammar)

    def _grammar(self) -> Grammar | None:
        match self.text.format if self.text else None:
            case JsonText():
                return Grammar(form="json_object")
            case SchemaText(schema_=schema):
                return json_schema_grammar("text.format.schema", schema)
        return None

    def settings(self) -> dict[str, Any]:
        """Returns what an answer repeats of its request."""
        text: JsonObject = {"format": {"type": "text"}}
        reasoning: JsonObject = {"effort": None, "summary": None}
        choice = self.tool_choice or "auto"
        return {
            "background": False,
            "conversation": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt": None,
            "prompt_cache_key": self.prompt_cache_key,
            "prompt_cache_retention": None,
            "reasoning": reasoning | _sent(self.reasoning),
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": self.temperature,
            "text": text | _sent(self.text),
            "tool_choice": choice if isinstance(choice, str) else _sent(choice),
            "tools": [
                {"description": None, "parameters": None, "strict": None} | _sent(tool)
                for tool in self.tools or ()
            ],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
        }


def _sent(fields: Fields | None) -> JsonObject:
    """Returns what was sent of an object."""
    if fields is None:
        return {}
    # It would warn of what `by_type` has read, whose type it does not know.
    return fields.model_dump(by_alias=True, exclude_none=True, warnings=False)
