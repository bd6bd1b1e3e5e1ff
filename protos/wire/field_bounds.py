"""The bound of each field in the messages that our services receive; defined only here.

The comments of our own contracts state the same numbers. `message_parser` checks messages against
them before it builds anything from them. A field without an entry must be unable to grow.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from protos.wire.limits import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_SEQUENCE_TOKENS,
    MAX_BAD_SEQUENCES,
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_BLOCK_HASHES,
    MAX_CANCELLED_HANDLES,
    MAX_CHAT_JSON_BYTES,
    MAX_CHAT_MESSAGES,
    MAX_CHAT_TOOLS,
    MAX_CHOICE_BYTES,
    MAX_CHOICES,
    MAX_CHUNK_BYTES,
    MAX_EOS_TOKEN_IDS,
    MAX_ERROR_DETAILS,
    MAX_GRAMMAR_BYTES,
    MAX_LABEL_BYTES,
    MAX_LOGIT_BIASES,
    MAX_LOGPROB_CANDIDATES,
    MAX_MESSAGE_PARTS,
    MAX_PROMPT_BYTES,
    MAX_REGEX_BYTES,
    MAX_SEQUENCE_TOKENS,
    MAX_STEP_EVENTS,
    MAX_STEP_FAILURES,
    MAX_STEP_REQUESTS,
    MAX_STEP_TOKENS,
    MAX_STOP_TEXT_BYTES,
    MAX_STOP_TEXTS,
    MAX_STOP_TOKEN_IDS,
    MAX_SUBMISSIONS,
    MAX_TEMPLATE_KWARGS_BYTES,
    MAX_TRACEPARENT_BYTES,
    MAX_TRACESTATE_BYTES,
)
from protos.wire.reason import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldBound:
    """The bound of one field.

    Attributes:
        entries: The most entries of a repeated field.
        bytes: The most bytes of a string, or of each entry of a repeated one.
        reason: The error reason for a message that exceeds the bound.
    """

    entries: int = 1
    bytes: int = 0
    reason: Reason = Reason.BAD_REQUEST


_LABEL = FieldBound(bytes=MAX_LABEL_BYTES)
_TEXT = FieldBound(bytes=MAX_PROMPT_BYTES, reason=Reason.PROMPT_TOO_LONG)
_SEQUENCE = FieldBound(entries=MAX_SEQUENCE_TOKENS, reason=Reason.PROMPT_TOO_LONG)
_STOP_TOKEN_IDS = FieldBound(entries=MAX_STOP_TOKEN_IDS, reason=Reason.BAD_SAMPLING_PARAMS)
_LOGIT_BIAS = FieldBound(entries=MAX_LOGIT_BIASES, reason=Reason.BAD_SAMPLING_PARAMS)
_ALLOWED_TOKEN_IDS = FieldBound(entries=MAX_ALLOWED_TOKEN_IDS, reason=Reason.BAD_SAMPLING_PARAMS)
_GRAMMAR = FieldBound(bytes=MAX_GRAMMAR_BYTES, reason=Reason.BAD_SAMPLING_PARAMS)
_REGEX = FieldBound(bytes=MAX_REGEX_BYTES, reason=Reason.BAD_SAMPLING_PARAMS)
_CHOICE = FieldBound(entries=MAX_CHOICES, bytes=MAX_CHOICE_BYTES, reason=Reason.BAD_SAMPLING_PARAMS)
_GRAMMARS = {
    "SamplingParams.allowed_token_ids": _ALLOWED_TOKEN_IDS,
    "Grammar.json_schema": _GRAMMAR,
    "Grammar.regex": _REGEX,
    "Grammar.lark": _GRAMMAR,
    "Choice.texts": _CHOICE,
}
_CHAT_LABEL = FieldBound(bytes=MAX_LABEL_BYTES, reason=Reason.BAD_CHAT)
_CHAT_JSON = FieldBound(bytes=MAX_CHAT_JSON_BYTES, reason=Reason.BAD_CHAT)
_MESSAGE_PARTS = FieldBound(entries=MAX_MESSAGE_PARTS, reason=Reason.BAD_CHAT)
_STEP_REQUESTS = FieldBound(entries=MAX_STEP_REQUESTS)
_STEP_TOKENS = FieldBound(entries=MAX_STEP_TOKENS)
_STEP_EVENTS = FieldBound(entries=MAX_STEP_EVENTS)
_LOGPROB_CANDIDATES = FieldBound(entries=MAX_LOGPROB_CANDIDATES)
_BLOCK_HASHES = FieldBound(entries=MAX_BLOCK_HASHES)
_UNSERVED = FieldBound(entries=0, reason=Reason.UNSUPPORTED_PARAMETER)
"""Of fields that the engine does not serve and that can be large."""


def _of(prefix: str, bounds: Mapping[str, FieldBound]) -> dict[str, FieldBound]:
    return {f"{prefix}.{name}": bound for name, bound in bounds.items()}


_REFLECTION = {
    "ServerReflectionRequest.host": _LABEL,
    "ServerReflectionRequest.file_by_filename": _LABEL,
    "ServerReflectionRequest.file_containing_symbol": _LABEL,
    "ServerReflectionRequest.all_extension_numbers_of_type": _LABEL,
    "ServerReflectionRequest.list_services": _LABEL,
    "ExtensionRequest.containing_type": _LABEL,
}

FIELD_BOUNDS: Mapping[str, FieldBound] = {
    **_of(
        "pagestream.router.v1",
        {
            "GenerateRequest.request_id": _LABEL,
            "GenerateRequest.model": _LABEL,
            "GenerateRequest.text": _TEXT,
            "GenerateRequest.cache_salt": _LABEL,
            "Chat.messages": FieldBound(entries=MAX_CHAT_MESSAGES, reason=Reason.BAD_CHAT),
            "Chat.tools": FieldBound(entries=MAX_CHAT_TOOLS, reason=Reason.BAD_CHAT),
            "Chat.chat_template_kwargs": FieldBound(
                bytes=MAX_TEMPLATE_KWARGS_BYTES, reason=Reason.BAD_CHAT
            ),
            "ChatMessage.role": _CHAT_LABEL,
            "ChatMessage.content": _TEXT,
            "ChatMessage.parts": _MESSAGE_PARTS,
            "ChatMessage.tool_calls": _MESSAGE_PARTS,
            "ChatMessage.tool_call_id": _CHAT_LABEL,
            "ChatMessage.name": _CHAT_LABEL,
            "ChatMessage.reasoning": _TEXT,
            "TextPart.text": _TEXT,
            "Tool.name": _CHAT_LABEL,
            "Tool.description": _TEXT,
            "Tool.parameters": _CHAT_JSON,
            "ToolCall.id": _CHAT_LABEL,
            "ToolCall.name": _CHAT_LABEL,
            "ToolCall.arguments": _CHAT_JSON,
            "ToolChoice.function_name": _CHAT_LABEL,
            "TokenIds.ids": _SEQUENCE,
            "SamplingParams.stop_token_ids": _STOP_TOKEN_IDS,
            "SamplingParams.logit_bias": _LOGIT_BIAS,
            "SamplingParams.stop": FieldBound(
                entries=MAX_STOP_TEXTS,
                bytes=MAX_STOP_TEXT_BYTES,
                reason=Reason.BAD_SAMPLING_PARAMS,
            ),
            "SamplingParams.bad_words": FieldBound(
                entries=MAX_BAD_WORDS,
                bytes=4 * MAX_BAD_WORD_CHARACTERS,
                reason=Reason.BAD_SAMPLING_PARAMS,
            ),
            **_GRAMMARS,
            "TokenizeRequest.model": _LABEL,
            "TokenizeRequest.text": _TEXT,
            "DetokenizeRequest.model": _LABEL,
            "DetokenizeRequest.token_ids": FieldBound(entries=MAX_SEQUENCE_TOKENS),
        },
    ),
    **_of(
        "pagestream.engine.v1",
        {
            "GenerateRequest.request_id": _LABEL,
            "GenerateRequest.prompt_token_ids": _SEQUENCE,
            "GenerateRequest.resume_token_ids": _SEQUENCE,
            "GenerateRequest.cache_salt": _LABEL,
            "SamplingParams.stop_token_ids": _STOP_TOKEN_IDS,
            "SamplingParams.logit_bias": _LOGIT_BIAS,
            "SamplingParams.bad_words_token_ids": FieldBound(
                entries=MAX_BAD_SEQUENCES, reason=Reason.BAD_SAMPLING_PARAMS
            ),
            "TokenSequence.token_ids": FieldBound(
                entries=MAX_BAD_SEQUENCE_TOKENS, reason=Reason.BAD_SAMPLING_PARAMS
            ),
            **_GRAMMARS,
            "GenerateManyRequest.submissions": FieldBound(entries=MAX_SUBMISSIONS),
            "GenerateManyRequest.cancelled_handles": FieldBound(entries=MAX_CANCELLED_HANDLES),
            "Submission.traceparent": FieldBound(bytes=MAX_TRACEPARENT_BYTES),
            "Submission.tracestate": FieldBound(bytes=MAX_TRACESTATE_BYTES),
            "GenerateResponse.token_ids": _STEP_TOKENS,
            "GenerateManyResponse.handles": _STEP_REQUESTS,
            "GenerateManyResponse.token_counts": _STEP_REQUESTS,
            "GenerateManyResponse.token_ids": _STEP_TOKENS,
            "GenerateManyResponse.admissions": _STEP_EVENTS,
            "GenerateManyResponse.finishes": _STEP_EVENTS,
            "GenerateManyResponse.failures": FieldBound(entries=MAX_STEP_FAILURES),
            "GenerateManyResponse.model_fingerprint": _LABEL,
            "GenerateManyResponse.logprobs": _STEP_EVENTS,
            "GenerateManyResponse.prompt_logprobs": _STEP_EVENTS,
            "Logprobs.logprobs": _STEP_TOKENS,
            "Logprobs.top_token_ids": _LOGPROB_CANDIDATES,
            "Logprobs.top_logprobs": _LOGPROB_CANDIDATES,
            "RequestError.message": FieldBound(bytes=4096),
            "RequestError.details": FieldBound(entries=MAX_ERROR_DETAILS),
            "CacheSnapshot.block_hashes": _BLOCK_HASHES,
            "CacheDelta.stored_block_hashes": _BLOCK_HASHES,
            "CacheDelta.removed_block_hashes": _BLOCK_HASHES,
            "GetModelInfoResponse.model_name": _LABEL,
            "GetModelInfoResponse.architecture": _LABEL,
            "GetModelInfoResponse.model_fingerprint": _LABEL,
            "GetModelInfoResponse.block_hash_scheme": _LABEL,
            "GetModelInfoResponse.eos_token_ids": FieldBound(entries=MAX_EOS_TOKEN_IDS),
            "GetModelInfoResponse.dtype": _LABEL,
            "GetModelInfoResponse.tokenizer_sha256": _LABEL,
            "GetModelInfoResponse.supported_sampling_params": FieldBound(entries=64, bytes=64),
            "GetModelInfoResponse.engine_version": _LABEL,
            "GetTokenizerResponse.chunk": FieldBound(bytes=MAX_CHUNK_BYTES),
            "TokenizerFile.name": _LABEL,
            "TokenizerFile.sha256": _LABEL,
        },
    ),
    **_of(
        "vllm.grpc.engine",
        {
            "GenerateRequest.request_id": _LABEL,
            "GenerateRequest.text": _TEXT,
            "GenerateRequest.kv_transfer_params_json": _UNSERVED,
            "GenerateRequest.extra_mm_inputs": _UNSERVED,
            "TokenizedInput.original_text": _TEXT,
            # Counted in bytes, of which a token has up to five.
            "TokenizedInput.input_ids": FieldBound(
                entries=5 * MAX_SEQUENCE_TOKENS, reason=Reason.PROMPT_TOO_LONG
            ),
            # Each is looked for at each token.
            "SamplingParams.stop": FieldBound(
                entries=64, bytes=MAX_STOP_TEXT_BYTES, reason=Reason.BAD_SAMPLING_PARAMS
            ),
            "SamplingParams.stop_token_ids": FieldBound(
                entries=5 * MAX_STOP_TOKEN_IDS, reason=Reason.BAD_SAMPLING_PARAMS
            ),
            "SamplingParams.logit_bias": _LOGIT_BIAS,
            "SamplingParams.json_schema": _GRAMMAR,
            "SamplingParams.regex": _REGEX,
            "SamplingParams.grammar": _GRAMMAR,
            "SamplingParams.structural_tag": _GRAMMAR,
            "ChoiceConstraint.choices": _CHOICE,
            "KvTransferParams.remote_host": _UNSERVED,
            "MultimodalInputs.model_specific_tensors": _UNSERVED,
            "MultimodalInputs.ModelSpecificTensorsEntry.key": _UNSERVED,
            "MultimodalInputs.mm_placeholders": _UNSERVED,
            "MultimodalInputs.mm_hashes": _UNSERVED,
            "MultimodalInputs.batched_keys": _UNSERVED,
            "MultimodalInputs.flat_keys": _UNSERVED,
            "MultimodalInputs.FlatKeysEntry.key": _UNSERVED,
            "MultimodalInputs.FlatKeysEntry.value": _UNSERVED,
            "MultimodalInputs.keep_on_cpu_keys": _UNSERVED,
            "MultimodalInputs.encoder_input_key": _UNSERVED,
            "TensorData.shape": _UNSERVED,
            "TensorData.dtype": _UNSERVED,
            "TensorData.inline": _UNSERVED,
            "MediaRef.url": _UNSERVED,
            "MediaRefs.items": _UNSERVED,
            "EmbedRequest.request_id": _LABEL,
            "AbortRequest.request_ids": FieldBound(
                entries=MAX_CANCELLED_HANDLES, bytes=MAX_LABEL_BYTES
            ),
            "GetLoadsRequest.include": FieldBound(entries=64, bytes=64),
        },
    ),
    **_of(
        "smg.grpc.common",
        {
            "ShmHandle.name": _UNSERVED,
            "ShmHandle.owner_id": _UNSERVED,
            "RemoteTensorHandle.transport": _UNSERVED,
            "RemoteTensorHandle.descriptor": _UNSERVED,
            "StartProfileRequest.output_dir": _LABEL,
            "StartProfileRequest.activities": FieldBound(entries=64, bytes=64),
        },
    ),
    **_of(
        "google.protobuf",
        {"Any.type_url": _LABEL, "Any.value": FieldBound(bytes=8192)},
    ),
    **_of("grpc.health.v1", {"HealthCheckRequest.service": _LABEL}),
    **_of("grpc.reflection.v1", _REFLECTION),
    **_of("grpc.reflection.v1alpha", _REFLECTION),
}
"""Bounds by the field's full name."""
