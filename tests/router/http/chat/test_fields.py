"""The fields of requests: all that OpenAI's client knows are known here, and told in the docs."""

from pathlib import Path
from typing import get_type_hints

import pytest
from openai.types import chat, shared_params
from openai.types.chat import completion_create_params

from router.http.chat import messages as chat_messages
from router.http.chat import tools as chat_tools
from router.http.chat.endpoint import _REFUSED, ChatFields
from router.http.sampling import StreamOptions

DOCS = Path(__file__).parents[4] / "docs/http/chat.md"
VLLM = {
    "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "bad_words", "allowed_token_ids",
    "prompt_logprobs", "structured_outputs", "priority", "cache_salt", "request_id",
    "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
    "return_token_ids",
}  # fmt: skip
NO_EFFECT = {
    "metadata", "moderation", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user", "verbosity",
} - _REFUSED.keys()  # fmt: skip


def fields_of(*types):
    return {name for one in types for name in get_type_hints(one)}


def test_fields_of_a_request_are_those_of_the_clients():
    known = fields_of(
        completion_create_params.CompletionCreateParamsStreaming,
        completion_create_params.CompletionCreateParamsNonStreaming,
    )
    assert ChatFields.model_fields.keys() == known | VLLM


@pytest.mark.parametrize(
    ("model", "types", "further"),
    [
        (
            chat_messages.Message,
            [
                chat.ChatCompletionAssistantMessageParam,
                chat.ChatCompletionDeveloperMessageParam,
                chat.ChatCompletionFunctionMessageParam,
                chat.ChatCompletionSystemMessageParam,
                chat.ChatCompletionToolMessageParam,
                chat.ChatCompletionUserMessageParam,
            ],
            {"reasoning", "reasoning_content", "type"}
            | chat.ChatCompletionMessage.model_fields.keys(),
        ),
        (
            chat_messages.ContentPart,
            [
                chat.ChatCompletionContentPartTextParam,
                chat.ChatCompletionContentPartRefusalParam,
                chat.ChatCompletionContentPartImageParam,
                chat.ChatCompletionContentPartInputAudioParam,
                chat.chat_completion_content_part_param.File,
            ],
            {"video_url", "audio_url", "cache_control"},
        ),
        (
            chat_messages.CalledTool,
            [
                chat.ChatCompletionMessageFunctionToolCallParam,
                chat.ChatCompletionMessageCustomToolCallParam,
            ],
            {"index"},
        ),
        (
            chat_tools.ToolFields,
            [chat.ChatCompletionFunctionToolParam, chat.ChatCompletionCustomToolParam],
            set(),
        ),
        (chat_tools.FunctionFields, [shared_params.FunctionDefinition], set()),
        (
            chat_tools.ChoiceFields,
            [
                chat.ChatCompletionNamedToolChoiceParam,
                chat.ChatCompletionNamedToolChoiceCustomParam,
                chat.ChatCompletionAllowedToolChoiceParam,
            ],
            set(),
        ),
        (chat_tools.AllowedTools, [chat.ChatCompletionAllowedToolsParam], set()),
        (StreamOptions, [chat.ChatCompletionStreamOptionsParam], {"continuous_usage_stats"}),
    ],
)
def test_fields_within_a_request_are_those_of_the_clients(model, types, further):
    own = {getattr(field, "alias", None) or name for name, field in model.model_fields.items()}
    assert own == fields_of(*types) | further


def test_docs_say_which_fields_have_no_effect_and_which_are_refused():
    text = DOCS.read_text()
    of_none, refused = text.split("### Of no effect")[1].split("### Refused")
    assert all(f"`{name}`" in of_none for name in NO_EFFECT)
    assert all(f"`{name}`" in refused for name in _REFUSED)
    assert all(f"`{name}`" in text for name in VLLM)
