"""From a client's prompt to tokens, on the event loop or in a thread."""

import threading
import time
from array import array
from collections.abc import Callable
from functools import partial

from router.request.progress import Observers
from router.text.answer_form import AnswerForm, answer_form
from router.text.token_budget import Abandoned
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_state import ModelInfo
from router.types.prompts import ChatPrompt, Prompt, TextPrompt, TokenPrompt

_MAX_SHORT_CHAT = 1 << 13
"""Characters up to which a chat is tokenized in the thread that rendered it, in some 12 ms at
worst: the model's next chat waits that long, but a switch of threads would delay this one."""
_MAX_SHORT_TEXT = 1 << 10
"""Characters up to which a text is tokenized on the event loop, if its tokenizer allows that.

That takes a millisecond or two at worst, and mostly less than a switch to a thread and back."""


class PromptEncoder:
    """Makes the tokens of prompts.

    Args:
        tokenizers: Whose threads do it.
        observers: Are told how long it took.
        allow_special_tokens_in_content: Whether texts in a chat may hold special tokens.
    """

    def __init__(
        self,
        tokenizers: TokenizerPool,
        observers: Observers,
        *,
        allow_special_tokens_in_content: bool,
    ) -> None:
        self._tokenizers = tokenizers
        self._observers = observers
        self._allows_special_tokens = allow_special_tokens_in_content

    async def encode(
        self, tokenizer: Tokenizer | None, prompt: Prompt, model: ModelInfo
    ) -> "tuple[array[int], AnswerForm | None]":
        """Returns the tokens of a prompt, and what the answer to a chat will look like.

        Args:
            tokenizer: The model's; None only for a prompt of tokens.
            prompt: The prompt; a chat is laid out by the model's template first.
            model: Its model.

        Raises:
            RequestError: There are more tokens than the model holds, the chat template failed or
                was too slow, or the tokenizer failed.
        """
        if isinstance(prompt, TokenPrompt):
            return array("i", prompt.token_ids.tobytes()), None
        assert tokenizer is not None, "only token prompts go without one"
        started = time.monotonic()
        form = None
        if isinstance(prompt, TextPrompt) and _is_short(prompt.text, tokenizer):
            encode = partial(tokenizer.encode_text, add_special_tokens=prompt.add_special_tokens)
            token_ids = self._tokenizers.run_at_once(encode, prompt.text)
        else:
            token_ids, form = await self._encode_in_thread(tokenizer, prompt, model.max_model_len)
        self._observers.of_model(model.name).tokenized(time.monotonic() - started)
        return token_ids, form

    async def _encode_in_thread(
        self, tokenizer: Tokenizer, prompt: TextPrompt | ChatPrompt, max_tokens: int
    ) -> "tuple[array[int], AnswerForm | None]":
        is_over = threading.Event()
        try:
            if isinstance(prompt, ChatPrompt):
                return await self._encode_chat(tokenizer, prompt, max_tokens, is_over.is_set)
            encode = partial(tokenizer.encode_text, add_special_tokens=prompt.add_special_tokens)
            arguments = prompt.text, max_tokens, is_over.is_set
            return await self._tokenizers.run(encode, *arguments), None
        finally:
            # Stops the thread's work if the client has left.
            is_over.set()

    async def _encode_chat(
        self,
        tokenizer: Tokenizer,
        chat: ChatPrompt,
        max_tokens: int,
        is_cancelled: Callable[[], bool],
    ) -> "tuple[array[int], AnswerForm]":
        def encode(text: str, marker: str) -> "array[int]":
            return tokenizer.encode_rendered(text, marker, max_tokens, is_cancelled)

        def lay_out() -> "tuple[str, str, array[int] | None]":
            protected, marker = chat, ""
            if not self._allows_special_tokens:
                protected, marker = tokenizer.protect(chat)
            if is_cancelled():
                raise Abandoned
            text = tokenizer.chat_template.render(protected)
            is_short = len(text) <= _MAX_SHORT_CHAT
            return text, marker, encode(text, marker) if is_short else None

        text, marker, token_ids = await self._tokenizers.run_chat(tokenizer, lay_out)
        if token_ids is None:
            token_ids = await self._tokenizers.run(encode, text, marker)
        return token_ids, answer_form(tokenizer.formats, chat, text)


def _is_short(text: str, tokenizer: Tokenizer) -> bool:
    """Whether a text is tokenized on the event loop; one that short is never given up."""
    return tokenizer.has_known_split and len(text) <= _MAX_SHORT_TEXT
