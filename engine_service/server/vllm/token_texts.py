"""The texts of a model's tokens, in which stop texts are looked for."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from engine_service.errors import InvalidRequest
from engine_service.grammar.tokenizer import FILE_NAME, UnusableTokenizer, read_tokenizer
from engine_service.server.replica import Replica
from engine_service.server.vllm.message import Message
from engine_service.server.vllm.request import unsupported
from engine_service.server.vllm.stop_texts import StopTexts
from protos.wire.reason import Reason

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_FIELD = "sampling_params.stop"

_logger = logging.getLogger(__name__)


class TokenTexts:
    """Texts by token.

    Args:
        tokenizer: None if the model has none that can be used.
    """

    def __init__(self, tokenizer: "LLTokenizer | None") -> None:
        self._tokenizer = tokenizer

    @classmethod
    def read(cls, replica: Replica) -> Self:
        """Reads the tokenizer of the model; takes up to two seconds and 120 MB."""
        content = replica.tokenizer.content(FILE_NAME)
        if content is None:
            return cls(None)
        info = replica.info
        try:
            return cls(read_tokenizer(content, info.vocab_size, info.eos_token_ids))
        except UnusableTokenizer as error:
            _logger.warning("stop texts are refused detail=%s", error)
            return cls(None)

    def stop_texts(self, params: Message) -> Callable[[], StopTexts | None]:
        """Returns what makes the stop texts of one sample of a request.

        Args:
            params: The client's sampling parameters.

        Raises:
            InvalidRequest: There are stop texts, but the tokens' texts are unknown; or one is
                empty.
        """
        texts = list(params.stop)
        if not texts:
            return lambda: None
        if not all(texts):
            raise InvalidRequest(
                f"{_FIELD}[{texts.index('')}] is empty, must have 1 byte or more",
                {"field": _FIELD, "value": "", "bounds": "1 byte and more"},
                reason=Reason.BAD_SAMPLING_PARAMS,
            )
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise unsupported(_FIELD, f"the model has no {FILE_NAME} that can be used")
        skips_special = params.skip_special_tokens

        def token_bytes(token_id: int) -> bytes:
            if skips_special and tokenizer.is_special_token(token_id):
                return b""
            return tokenizer.decode_bytes([token_id])

        min_tokens = params.min_tokens
        return lambda: StopTexts(texts, token_bytes, min_tokens)
