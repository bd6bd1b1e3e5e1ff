"""The fields of Anthropic's client: each is served, of no effect, or refused with a reason."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import anthropic.types as plain
import anthropic.types.beta as beta
import jsonschema
import pytest
from anthropic.types.beta.message_count_tokens_params import MessageCountTokensParams as BetaCount
from anthropic.types.beta.message_create_params import MessageCreateParamsStreaming as BetaCreate
from anthropic.types.message_create_params import MessageCreateParamsStreaming as Create

from router.errors import InvalidRequest
from router.http.anthropic import request as ours
from router.http.anthropic.unsupported import REASONS
from router.http.body import parse_body
from tests.router.http.anthropic.requests import BASE, TOOL

DOCUMENT = Path(__file__).parents[4] / "docs/http/anthropic.md"
HEADERS = {"betas", "user_profile_id", "workspace_id"}
"""Parameters of the client's methods that are not in bodies."""
OLD = {"temperature", "top_k", "top_p", "output_format"}
"""What the client's methods do not have any more, and older ones still send."""
BETA_ONLY = {
    "billing_policy",
    "block_binding",
    "compaction",
    "context_management",
    "fallback_credit_token",
    "fallbacks",
    "mcp_servers",
    "task_budget",
    "thread",
}
WITHOUT_EFFECT = {
    "budget_tokens",
    "cache_control",
    "eager_input_streaming",
    "metadata",
    "output_config.effort",
    "service_tier",
    "signature",
    "speed",
}


def names_of(model):
    return {field.alias or name for name, field in model.model_fields.items()}


def types_in(union):
    """Returns the types that objects of a union have."""
    hints = [get_type_hints(one)["type"] for one in get_args(union)]
    return {name for hint in hints for name in _literals(hint)}


def _literals(hint):
    if isinstance(hint, str):
        return {hint}
    return set().union(*map(_literals, get_args(hint)))


PAIRS = [
    (Create, ours.MessagesRequest),
    (BetaCreate, ours.MessagesRequest),
    (plain.MessageCountTokensParams, ours.PromptFields),
    (BetaCount, ours.PromptFields),
    *[
        (getattr(package, prefix + name), model)
        for package, prefix in ((plain, ""), (beta, "Beta"))
        for name, model in (
            ("CacheControlEphemeralParam", ours.CacheControl),
            ("TextBlockParam", ours.TextBlock),
            ("ThinkingBlockParam", ours.ThinkingBlock),
            ("RedactedThinkingBlockParam", ours.RedactedThinkingBlock),
            ("ToolUseBlockParam", ours.ToolUseBlock),
            ("ToolResultBlockParam", ours.ToolResultBlock),
            ("ToolParam", ours.CustomTool),
            ("ToolChoiceAutoParam", ours.AutoChoice),
            ("ToolChoiceAnyParam", ours.AnyChoice),
            ("ToolChoiceToolParam", ours.ToolChoice),
            ("ToolChoiceNoneParam", ours.NoChoice),
            ("ThinkingConfigEnabledParam", ours.EnabledThinking),
            ("ThinkingConfigAdaptiveParam", ours.AdaptiveThinking),
            ("ThinkingConfigDisabledParam", ours.DisabledThinking),
            ("OutputConfigParam", ours.OutputConfig),
            ("JSONOutputFormatParam", ours.OutputFormat),
            ("MetadataParam", ours.Metadata),
        )
    ],
]


@pytest.mark.parametrize(
    ("theirs", "model"), PAIRS, ids=lambda side: f"{side.__module__}.{side.__name__}"
)
def test_fields_are_those_of_the_client(theirs, model):
    known = set(theirs.__annotations__) - HEADERS

    assert known - names_of(model) == set()
    if "beta" not in theirs.__module__:
        # What else is served is of the client's beta.
        assert names_of(model) - known - OLD <= BETA_ONLY


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("kind", sorted(types_in(plain.ContentBlockParam)))
def test_blocks_that_are_not_served_are_refused_by_their_type(role, kind):
    served = {"user": ours.UserBlock, "assistant": ours.AssistantBlock}[role]
    message = {"role": role, "content": [{"type": kind}]}
    body = json.dumps({**BASE, "messages": [message]}).encode()
    with pytest.raises(InvalidRequest) as caught:
        parse_body(ours.MessagesRequest, body)

    is_refused = f"it has the type {kind}; supported are" in str(caught.value)
    assert is_refused == (kind not in types_in(served))


@pytest.mark.parametrize("kind", sorted(types_in(plain.ToolUnionParam)))
def test_tools_that_the_client_does_not_run_are_refused_by_their_type(kind):
    body = json.dumps({**BASE, "tools": [{**TOOL, "type": kind}]}).encode()
    if kind == "custom":
        parse_body(ours.MessagesRequest, body)
    else:
        with pytest.raises(InvalidRequest, match=f"it has the type {kind}; supported are custom"):
            parse_body(ours.MessagesRequest, body)


def test_choices_and_thinking_are_those_of_the_client():
    assert types_in(plain.ToolChoiceParam) == types_in(ours.Choice)
    refused = types_in(plain.ThinkingConfigParam) - types_in(ours.Thinking)
    assert refused == {"between_tools"}


def test_document_lists_what_has_no_effect_and_what_is_refused():
    text = DOCUMENT.read_text()

    without_effect, refused = text.split("## Fields without effect")[1].split("## Fields that are")
    assert [name for name in sorted(WITHOUT_EFFECT) if f"`{name}`" not in without_effect] == []
    names = {*REASONS, "caller", "allowed_callers", "defer_loading", "between_tools"}
    names = names - {"task_budget"} | {"output_config.task_budget"}
    assert [name for name in sorted(names) if f"`{name}`" not in refused] == []


@pytest.mark.parametrize("edits", [[], [{"type": "clear_thinking_20251015", "keep": "all"}]])
def test_edits_that_leave_the_conversation_as_it_is_are_no_reason_to_refuse_it(edits):
    body = {**BASE, "context_management": {"edits": edits}}

    jsonschema.validate(body, ours.MessagesRequest.model_json_schema())
    assert parse_body(ours.MessagesRequest, json.dumps(body).encode()).context_management is None


@pytest.mark.parametrize(
    "edits",
    [
        {"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 1}},
        {"type": "clear_tool_uses_20250919"},
        None,
    ],
)
def test_edits_that_change_the_conversation_are_refused(edits):
    body = {**BASE, "context_management": {"edits": [edits]}}

    with pytest.raises(InvalidRequest, match="conversations are not edited"):
        parse_body(ours.MessagesRequest, json.dumps(body).encode())
