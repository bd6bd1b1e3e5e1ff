"""Bounds of requests, common to engines and routers; the contracts' comments state them."""

MAX_LABEL_CHARACTERS = 256
"""Of a request ID, a cache salt or a model name."""
MAX_LABEL_BYTES = 4 * MAX_LABEL_CHARACTERS
"""The same in UTF-8 bytes."""

MAX_SEED = 2**63 - 1

MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_STOP_TEXTS = 1024
MAX_STOP_TEXT_BYTES = 1024
MAX_STOP_CHARACTERS = 16_384
"""Of all different stop texts of a request together."""
MAX_BAD_WORDS = 512
MAX_BAD_WORD_CHARACTERS = 64
MAX_BAD_SEQUENCES = 2 * MAX_BAD_WORDS
"""Each word is forbidden with and without a space before it."""
MAX_BAD_SEQUENCE_TOKENS = 64
MAX_BAD_TOKENS = 4096
"""Of all sequences of a request together."""
MAX_ALLOWED_TOKEN_IDS = 65_536
MAX_LOGPROBS = 100
"""Per position; an engine's own limit is usually lower."""
MAX_SAMPLE_INDEX = 65_535
MAX_SAMPLES = 128

MAX_GRAMMAR_BYTES = 1 << 18
MAX_REGEX_BYTES = 1 << 16
MAX_CHOICES = 1024
MAX_CHOICE_BYTES = 1024

MAX_SEQUENCE_TOKENS = 1 << 20
"""Of a prompt, and of the tokens generated for it, whatever the model's own length."""

MAX_PROMPT_BYTES = 8 * 1024 * 1024
"""Of a text, or of all messages of a chat together; a router's default limit is lower."""
MAX_CHAT_MESSAGES = 4096
MAX_CHAT_TOOLS = 512
MAX_MESSAGE_PARTS = 512
"""Text parts, and tool calls, of one message."""
MAX_CHAT_PARTS = 4096
"""The same, of all messages."""
MAX_CHAT_JSON_BYTES = 1 << 20
"""Of all texts of a chat in JSON together, which are parsed at once."""
MAX_JSON_DEPTH = 64
MAX_TEMPLATE_KWARGS_BYTES = 1 << 16
MAX_FUNCTION_NAME_CHARACTERS = 128

MAX_TRACEPARENT_BYTES = 256
MAX_TRACESTATE_BYTES = 1024

MAX_SUBMISSIONS = 1024
MAX_CANCELLED_HANDLES = 4096
"""Per message of a router."""

MAX_STEP_REQUESTS = 8192
MAX_STEP_TOKENS = 131_072
MAX_STEP_EVENTS = 1024
MAX_STEP_FAILURES = 256
"""Per message of an engine, which splits a larger step into several: handling one message blocks a
router's event loop for at most some 20 ms."""

MAX_LOGPROB_CANDIDATES = 1 << 18
"""Per message of an engine."""

MAX_ERROR_DETAILS = 8
MAX_BLOCK_HASHES = 1 << 14
"""128 KiB of hashes, so that parsing stays short when many engines send theirs at once."""
MAX_CHUNK_BYTES = 1 << 20
MAX_EOS_TOKEN_IDS = 1024
