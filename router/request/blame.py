"""Decides who is to blame when an engine refuses a request: the client or the engine."""

import grpc

from protos.wire.status import Reason, code_number, error_status
from router.errors import DOMAIN, EngineError
from router.types.engine_events import TokenRequest
from router.types.engine_state import ModelInfo

_BLAMING = frozenset(
    code_number(code)
    for code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)
"""Codes that tell a client that its call is wrong as it is."""

_CHECKED = frozenset({Reason.EMPTY_PROMPT, Reason.TOKEN_OUT_OF_RANGE, Reason.UNKNOWN_MODEL})
"""Reasons that the router rules out before any engine gets the request."""

_HANDLE = "handle"
"""The only field in an engine's error that the router fills in by itself."""


def judged(
    error: EngineError, request: TokenRequest, engine: str, model: ModelInfo | None
) -> EngineError:
    """Returns an engine's refusal unchanged, or as ENGINE_FAILED if the client is not to blame.

    Args:
        error: The engine's answer.
        request: The request sent, including resumed tokens and their seed, if any.
        engine: The engine's address.
        model: The engine's model.
    """
    if not _is_unjust(error, request, model):
        return error
    message = f"engine {engine} refused what the router sent: {error.status.message}"
    metadata = {"engine": engine, "refusal": error.status.reason or str(error.status.code)}
    status = error_status(Reason.ENGINE_FAILED, message, domain=DOMAIN, metadata=metadata)
    return EngineError(status)


def _is_unjust(error: EngineError, request: TokenRequest, model: ModelInfo | None) -> bool:
    status = error.status
    if status.reason == Reason.DEADLINE_EXCEEDED:
        return request.timeout is None
    if status.code not in _BLAMING:
        return False
    if request.resume_token_ids or status.reason in _CHECKED:
        return True
    if status.reason == Reason.PROMPT_TOO_LONG and model is not None:
        max_tokens = request.sampling_params.max_tokens
        num_tokens = len(request.prompt_token_ids) + (1 if max_tokens is None else max_tokens)
        return num_tokens <= model.max_sequence_len
    if status.code != code_number(grpc.StatusCode.INVALID_ARGUMENT):
        return True
    return status.metadata.get("field") == _HANDLE
