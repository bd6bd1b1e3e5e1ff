"""The error reasons, in a module without gRPC so that the engine core can import it."""

import enum


class Reason(enum.StrEnum):
    """Names an error on the wire, as ErrorInfo.reason. A released name never changes."""

    BAD_REQUEST = "BAD_REQUEST"
    EMPTY_PROMPT = "EMPTY_PROMPT"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    TOKEN_OUT_OF_RANGE = "TOKEN_OUT_OF_RANGE"
    BAD_SAMPLING_PARAMS = "BAD_SAMPLING_PARAMS"
    UNSUPPORTED_PARAMETER = "UNSUPPORTED_PARAMETER"
    BAD_CHAT = "BAD_CHAT"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    NO_TOKENIZER = "NO_TOKENIZER"
    QUEUE_FULL = "QUEUE_FULL"
    SLOW_READER = "SLOW_READER"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    STARTING = "STARTING"
    DRAINING = "DRAINING"
    EPOCH_MISMATCH = "EPOCH_MISMATCH"
    NO_ENGINE = "NO_ENGINE"
    ENGINE_FAILED = "ENGINE_FAILED"
    INTERNAL = "INTERNAL"
