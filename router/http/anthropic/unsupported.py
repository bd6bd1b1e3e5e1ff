"""Fields of Anthropic's API that ask for what there is not."""

from typing import Annotated

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
_KEEPS_ALL = {"type": "clear_thinking_20251015", "keep": "all"}
"""What agents send so that their thinking stays."""


def _refuse(value: object, info: pydantic.ValidationInfo) -> None:
    if value not in (None, [], {}):
        reason = {"reason": REASONS[info.field_name or ""]}
        raise PydanticCustomError("unsupported", "it is not supported: {reason}", reason)


def _refuse_edits(value: object, info: pydantic.ValidationInfo) -> None:
    edits = value.get("edits") if isinstance(value, dict) and value.keys() <= {"edits"} else None
    if not isinstance(edits, list) or any(edit != _KEEPS_ALL for edit in edits):
        _refuse(value, info)


NOTHING = pydantic.PlainValidator(_refuse, json_schema_input_type=None)
"""Refuses what a field holds unless that asks for nothing."""
NO_EDITS = pydantic.PlainValidator(
    _refuse_edits,
    json_schema_input_type=Annotated[
        None,
        pydantic.WithJsonSchema(
            {
                "type": ["object", "null"],
                "properties": {"edits": {"type": "array", "items": {"const": _KEEPS_ALL}}},
                "additionalProperties": False,
            }
        ),
    ],
)
"""Refuses edits of the conversation but for those that leave it as it is."""
