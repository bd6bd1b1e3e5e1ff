"""POST /tokenize and /detokenize, in the form of vLLM's API."""

from typing import Annotated, Any

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protos.wire.limits import MAX_CHAT_MESSAGES, MAX_CHAT_TOOLS
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.http.body import parse_body, read_body
from router.http.chat.messages import Message, to_message
from router.http.chat.tools import ToolFields, to_tools
from router.http.completions.prompts import TOKENS_SCHEMA, read_token_ids
from router.http.errors import must_be
from router.http.json_texts import JsonTexts
from router.http.models import Endpoint, find_model
from router.http.outlet import outlet_of
from router.http.sampling import Fields, JsonObject, bounded
from router.http.service import Service
from router.types.prompts import ChatPrompt, TextPrompt, TokenPrompt


class TokenizeFields(Fields):
    """The body of a request for tokens, of a text or of a conversation."""

    model: str = ""
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    messages: Annotated[list[Message], bounded(MAX_CHAT_MESSAGES)] | None = None
    tools: Annotated[list[ToolFields], bounded(MAX_CHAT_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: JsonObject | None = None

    def to_prompt(self) -> TextPrompt | ChatPrompt:
        """Returns what to tokenize, not yet checked.

        Raises:
            InvalidRequest: It is neither a text nor a conversation, or something of both.
        """
        if (self.prompt is None) == (self.messages is None):
            given = "neither prompt nor" if self.prompt is None else "both prompt and"
            raise InvalidRequest(
                f"{given} messages are given; send one of them",
                {"field": "prompt"},
                reason=Reason.BAD_REQUEST,
            )
        if self.prompt is not None:
            for name in _OF_CHATS:
                if getattr(self, name) is not None:
                    raise must_be(name, "set", "unset unless messages is given")
            return TextPrompt(
                text=self.prompt,
                add_special_tokens=self.add_special_tokens is not False,
                field="prompt",
            )
        if self.add_special_tokens:
            rule = "unset or false with messages, as the chat template adds all tokens"
            raise must_be("add_special_tokens", "true", rule)
        return self._chat()

    def _chat(self) -> ChatPrompt:
        texts = JsonTexts()
        messages = enumerate(self.messages or ())
        return ChatPrompt(
            messages=tuple(to_message(index, message, texts) for index, message in messages),
            tools=to_tools(self.tools or [], texts),
            template_kwargs=texts.variables(self.chat_template_kwargs or {}),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=bool(self.continue_final_message),
            num_json_bytes=texts.num_bytes,
        )


_OF_CHATS = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


class DetokenizeFields(Fields):
    """The body of a request for the text of tokens."""

    model: str = ""
    tokens: Annotated[list[Any], pydantic.WithJsonSchema(TOKENS_SCHEMA)]


def token_endpoints(service: Service) -> dict[str, Endpoint]:
    """Returns the endpoints by path, all for POST."""
    pipeline = service.pipeline

    async def tokenize(request: Request) -> Response:
        body = await read_body(request, service.max_body_bytes, pipeline.request_bytes)
        fields = parse_body(TokenizeFields, body)
        caller = outlet_of(request.scope).caller
        token_ids = await pipeline.tokenize(
            fields.model, fields.to_prompt(), num_bytes=len(body), caller=caller
        )
        names = None
        if fields.return_token_strs:
            names = await pipeline.token_names(fields.model, token_ids)
        return JSONResponse(
            {
                "count": len(token_ids),
                "max_model_len": find_model(service, fields.model).max_model_len,
                "tokens": token_ids.tolist(),
                "token_strs": names,
            }
        )

    async def detokenize(request: Request) -> Response:
        body = await read_body(request, service.max_body_bytes, pipeline.request_bytes)
        fields = parse_body(DetokenizeFields, body)
        text = await pipeline.detokenize(
            fields.model,
            TokenPrompt(token_ids=read_token_ids("tokens", fields.tokens), field="tokens"),
            skip_special_tokens=False,
            num_bytes=len(body),
            caller=outlet_of(request.scope).caller,
        )
        return JSONResponse({"prompt": text})

    return {"/tokenize": tokenize, "/detokenize": detokenize}
