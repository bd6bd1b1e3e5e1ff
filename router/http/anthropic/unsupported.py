"""Fields of Anthropic's API that ask for what there is not."""

import pydantic
from pydantic_core import PydanticCustomError

REASONS = {
    "billing_policy": "nobody is billed",
    "block_binding": "thinking blocks are bound to no conversation",
    "citations": "there are no documents to cite",
    "compaction": "conversations are not compacted",
    "container": "there are no containers",
    "context_management": "conversations are not edited",
    "diagnostics": "there are no diagnostics of caches",
    "fallback_credit_token": "nobody is billed",
    "fallbacks": "no other model is asked",
    "inference_geo": "it is not known where an engine is",
    "mcp_servers": "no servers of tools are called",
    "task_budget": "the only budget is max_tokens",
    "thread": "conversations are not kept; send all messages each time",
    "toolset_name": "there are no toolsets",
}
"""Why a field is refused."""


def _refuse(value: object, info: pydantic.ValidationInfo) -> None:
    if value not in (None, [], {}):
        reason = {"reason": REASONS[info.field_name or ""]}
        raise PydanticCustomError("unsupported", "it is not supported: {reason}", reason)


NOTHING = pydantic.PlainValidator(_refuse, json_schema_input_type=None)
"""Refuses what a field holds unless that asks for nothing."""
