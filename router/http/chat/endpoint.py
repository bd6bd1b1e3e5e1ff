"""POST /v1/chat/completions, in the form of OpenAI's API with vLLM's further fields."""

from functools import partial
from typing import Annotated, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from protos.wire.limits import MAX_CHAT_MESSAGES, MAX_CHAT_TOOLS, MAX_LOGPROBS
from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams
from router.http.answers import EventStream, read_answer
from router.http.body import parse_body, read_body
from router.http.chat.answer import ChatEvents, Extras, WholeAnswer
from router.http.chat.messages import Message, to_message
from router.http.chat.tools import ToolChoiceField, ToolFields, to_choice, to_tools
from router.http.errors import must_be
from router.http.json_texts import JsonTexts
from router.http.models import Endpoint
from router.http.sampling import Int32, JsonObject, SamplingFields, StreamOptions, bounded
from router.http.service import Service
from router.types.prompts import ChatPrompt

_REFUSED = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "this server writes text only",
    "prediction": "this server does not use predictions",
    "web_search_options": "this server does not search",
    "moderation": "this server does not moderate",
}
"""Fields that are known and not served, and what to do about them."""


_wrong = partial(must_be, reason=Reason.BAD_SAMPLING_PARAMS)


class ChatFields(SamplingFields):
    """The body of a request."""

    messages: Annotated[list[Message], bounded(MAX_CHAT_MESSAGES)]
    max_tokens: Int32 | None = None
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ToolFields], bounded(MAX_CHAT_TOOLS)] | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    modalities: list[str] | None = None
    # vLLM's
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_ids: bool | None = None
    # Known, and not served
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None
    # Known, and of no effect here
    store: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: str | None = None

    def prompt(self) -> ChatPrompt:
        """Returns the conversation.

        Raises:
            InvalidRequest: Something in it cannot be served, or contradicts something else.
        """
        texts = JsonTexts()
        messages = tuple(to_message(i, message, texts) for i, message in enumerate(self.messages))
        choice = to_choice(self.tool_choice, to_tools(self.tools or [], texts))
        chat = ChatPrompt(
            messages=messages,
            tools=choice.tools,
            tool_choice=choice.mode,
            function_name=choice.function_name,
            parallel_calls=self.parallel_tool_calls is not False,
            template_kwargs=self._variables(texts),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=bool(self.continue_final_message),
            num_json_bytes=texts.num_bytes,
        )
        if chat.must_call:
            self._check_one_grammar()
        return chat

    def chat_params(self) -> SamplingParams:
        """Returns the sampling parameters.

        Raises:
            InvalidRequest: Fields contradict one another, or ask for what is not served.
        """
        self._check_served()
        if self.top_logprobs and not self.logprobs:
            raise _wrong("top_logprobs", self.top_logprobs, "unset unless logprobs is true")
        num_top = self.top_logprobs or 0
        if not 0 <= num_top <= MAX_LOGPROBS:
            raise _wrong("top_logprobs", num_top, f"0 to {MAX_LOGPROBS}")
        return self.params(
            max_tokens=self._max_tokens(), logprobs=num_top if self.logprobs else None
        )

    def extras(self) -> Extras:
        """Returns what the client wants of the answer beside its text."""
        options = self.stream_options
        return Extras(
            has_usage=options is not None and bool(options.include_usage),
            has_usage_always=options is not None and bool(options.continuous_usage_stats),
            has_logprobs=bool(self.logprobs),
            has_token_ids=bool(self.return_token_ids),
        )

    def _variables(self, texts: JsonTexts) -> JsonObject:
        """Returns the variables of the template, with those that an effort of reasoning sets."""
        variables = texts.variables(self.chat_template_kwargs or {})
        if self.reasoning_effort is None:
            return variables
        effort: JsonObject = {"reasoning_effort": self.reasoning_effort}
        if self.reasoning_effort == "none":
            effort["enable_thinking"] = False
        return {**effort, **variables}

    def _max_tokens(self) -> int | None:
        most, same = self.max_completion_tokens, self.max_tokens
        if most is None:
            return same
        if same not in (None, most):
            raise _wrong("max_completion_tokens", most, f"max_tokens, which is {same}, or unset")
        least = 1 if self.prompt_logprobs is None else 0
        if most < least:
            raise _wrong("max_completion_tokens", most, f"{least} and more")
        return most

    def _check_served(self) -> None:
        for name, why in _REFUSED.items():
            if getattr(self, name) is not None:
                raise _wrong(name, "set", f"unset; {why}")
        if any(modality != "text" for modality in self.modalities or ()):
            raise _wrong("modalities", ", ".join(self.modalities or ()), "text only")
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "set", "unset unless stream is true")
        if self.stream and self.prompt_logprobs is not None:
            raise _wrong("prompt_logprobs", self.prompt_logprobs, "unset if stream is true")

    def _check_one_grammar(self) -> None:
        for name in ("response_format", "structured_outputs"):
            value = getattr(self, name)
            if value is not None and getattr(value, "type", "") != "text":
                raise _wrong(name, "set", "unset, as tool_choice asks for a call")


def chat_endpoints(service: Service) -> dict[str, Endpoint]:
    """Returns the endpoint by its path, for POST."""

    async def complete(request: Request) -> Response:
        pipeline = service.pipeline
        body = await read_body(request, service.max_body_bytes, pipeline.request_bytes)
        fields = parse_body(ChatFields, body)
        params = fields.chat_params()
        deltas = pipeline.generate(fields.generation(request, fields.prompt(), params, len(body)))
        extras = fields.extras()
        if fields.stream:
            return EventStream(request, service, deltas, ChatEvents(extras, service.models))
        answer = WholeAnswer(extras, service.models)
        await read_answer(request, deltas, answer.read)
        return Response(answer.to_json(), media_type="application/json")

    return {"/v1/chat/completions": complete}
