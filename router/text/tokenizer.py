"""Converts text and conversations to token IDs, with the tokenizer that the engine holds.

Text becomes `tokenizer(text).input_ids` of transformers: special tokens written in the text are
recognised, and the tokenizer adds its usual ones (Qwen's adds none). A conversation becomes
`apply_chat_template(messages, tools=tools, ...)`, rendered in another process, with one difference:
what a client says never becomes special tokens, only the letters of their names. No tokens are
added to the rendered text.
"""

import logging
import tempfile
from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import tokenizers

# The router needs no torch; transformers warns that it is missing.
logging.getLogger("transformers").addFilter(
    lambda record: "PyTorch was not found" not in record.getMessage()
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

from router.errors import NoTokenizer, RequestError  # noqa: E402
from router.text.added_tokens import cutting_tokens  # noqa: E402
from router.text.chat_template import ChatTemplate, TemplateSettings  # noqa: E402
from router.text.parsers.registry import find_formats  # noqa: E402
from router.text.pieces import Pieces  # noqa: E402
from router.text.special_tokens import SpecialTokens  # noqa: E402
from router.text.text_pieces import TextPieces  # noqa: E402
from router.text.threads import Threads  # noqa: E402
from router.text.token_budget import TokenBudget  # noqa: E402
from router.text.token_length import part_settings  # noqa: E402
from router.text.token_texts import TokenTexts  # noqa: E402
from router.text.tokenization_cache import TokenizationCache  # noqa: E402
from router.types.prompts import ChatPrompt  # noqa: E402


class TokenBytes(dict[int, bytes]):
    """Bytes of each token of a byte-level vocabulary, b"" for special ones; filled on demand."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend
        self._special_ids = {
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }

    def __missing__(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            value = b""
        else:
            try:
                value = bytes(_BYTE_OF_CHARACTER[character] for character in token)
            except KeyError:
                # An added token holds plain text.
                value = token.encode()
        self[token_id] = value
        return value


def _byte_of_character() -> dict[str, int]:
    # Byte-level BPE (GPT-2) writes each byte as one visible character: printable Latin-1 as
    # itself, the others in order from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _byte_of_character()


def _is_byte_level(decoder: Mapping[str, Any]) -> bool:
    """Whether a decoder does no more than write the bytes of tokens one behind the other."""
    kinds = [part.get("type") for part in decoder.get("decoders", [decoder])]
    return kinds[:1] == ["ByteLevel"] and set(kinds[1:]) <= {"Fuse"}


class Tokenizer:
    """One model's tokenizer and chat template. Its own methods block and are thread-safe.

    Attributes:
        backend: The tokenizer of the tokenizers library.
        token_bytes: Bytes of each token, or None if the vocabulary is not byte-level.
        pieces: The pieces of all tokens, or None if the vocabulary is byte-level.
        token_texts: Text and bytes of each token by itself.
        chat_template: Renders conversations, one at a time; not yet started.
        formats: How the model writes reasoning and tool calls.
        tag_texts: The tags of these formats that are special tokens, which else have no text.
        tag_ids: Those that are single tokens, special or not.
        chat_thread: The thread that waits for it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, settings: TemplateSettings | None = None
    ) -> None:
        # The wrapper holds vocabulary and merges a second time as Python objects, 60 MB for Qwen3,
        # so keep no reference to it.
        self.backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        settings = settings or TemplateSettings()
        source = tokenizer.chat_template if settings.source is None else settings.source
        self.chat_template = ChatTemplate(source, tokenizer.special_tokens_map, settings)
        self.chat_thread = Threads(1, "chat-template")
        # A tokenizer.json may hold settings of its training; transformers resets them per call.
        self.backend.no_truncation()
        self.backend.no_padding()
        is_byte_level = _is_byte_level(part_settings(self.backend.decoder))
        self.token_bytes = TokenBytes(self.backend) if is_byte_level else None
        self.pieces = None if is_byte_level else Pieces(self.backend)
        self.token_texts = TokenTexts(self.backend, self.token_bytes, self.pieces)
        self._ends = _take_ends(self.backend)
        self._text_pieces = TextPieces(self.backend)
        cutting = cutting_tokens(self.backend)
        self._special_tokens = SpecialTokens(self.backend, cutting, self.chat_template.text)
        tokens = self.backend.get_added_tokens_decoder()
        self.formats = find_formats(
            settings.tool_call_parser,
            settings.reasoning_parser,
            self.chat_template.text,
            {token.content for token in tokens.values()},
        )
        self.tag_texts = {
            token_id: token.content
            for token_id, token in tokens.items()
            if token.special and token.content in self.formats.tags
        }
        self.tag_ids = {
            token.content: token_id
            for token_id, token in tokens.items()
            if token.content in self.formats.tags
        }
        # A bound method would make a reference cycle, and keep this object, its thread and its
        # cache alive until the next garbage collection, which is rare.
        encode = partial(_encode_part, self._special_tokens, self._text_pieces)
        self._conversations = TokenizationCache(encode, cutting)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], settings: TemplateSettings | None = None
    ) -> Self:
        """Loads a tokenizer from the contents of its files, by name.

        Args:
            files: The contents.
            settings: Limits of its chat template; None means the defaults.

        Raises:
            NoTokenizer: The files hold no tokenizer that transformers loads without remote code.
            RequestError: The files cannot be written to a temporary folder.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="pagestream-tokenizer-") as folder:
                return cls._from_folder(files, Path(folder), settings)
        except OSError as error:
            num_bytes = sum(map(len, files.values()))
            raise RequestError(
                f"the tokenizer's {num_bytes} bytes cannot be written to a temporary folder "
                f"({error}); set TMPDIR to a folder with enough space"
            ) from error

    @classmethod
    def _from_folder(
        cls, files: Mapping[str, bytes], folder: Path, settings: TemplateSettings | None
    ) -> Self:
        for name, content in files.items():
            if Path(name).name != name:
                raise NoTokenizer(f"tokenizer file {name!r} is not a plain file name")
            (folder / name).write_bytes(content)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if not isinstance(tokenizer, PreTrainedTokenizerFast):
                raise TypeError(f"{type(tokenizer).__name__} has no fast backend")
            return cls(tokenizer, settings)
        # Files from elsewhere may fail in any way; the router must go on.
        except Exception as error:
            message = f"the files {sorted(files)} hold no usable tokenizer: {error!r:.500}"
            raise NoTokenizer(message) from error

    @property
    def has_known_split(self) -> bool:
        """Whether it splits texts in a known way, so that a short text cannot take long.

        With any other, which comes from an engine, too, the patterns may be such that a few
        characters take minutes.
        """
        return self._ends is not None and self._text_pieces.is_cut

    def encode_text(
        self,
        text: str,
        max_tokens: int | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        *,
        add_special_tokens: bool = True,
    ) -> "array[int]":
        """Returns the token IDs of a text, typecode "i".

        Args:
            text: What to encode.
            max_tokens: A long text is given up once it has more; a short one is encoded whole.
            is_cancelled: Called between the pieces of a long text; true gives it up.
            add_special_tokens: Whether to add what the tokenizer adds around a text.

        Raises:
            InvalidRequest: There are more tokens, or a word is too long.
            Abandoned: It was cancelled.
        """
        budget = TokenBudget(max_tokens, is_cancelled)
        if self._ends is None:
            (encoding,) = self.backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
            return array("i", encoding.ids)
        token_ids = self._text_pieces.encode(text, budget)
        if not add_special_tokens:
            return token_ids
        before, behind = self._ends
        return before + token_ids + behind

    def encode_word(self, word: str) -> list[tuple[int, ...]]:
        """Returns the tokens of a text inside a word and those at the beginning of one.

        One that the other ends with is left out: whatever has the other has both.
        """
        word = word.lstrip()
        inside, after_space = self._encode_behind("", word)
        if self.pieces is not None:
            # Such a vocabulary may put a space before a text: see the word within one.
            inside, after_space = self._encode_behind("\n", word) or (inside, after_space)
        if after_space[len(after_space) - len(inside) :] == inside:
            return [inside]
        if inside[len(inside) - len(after_space) :] == after_space:
            return [after_space]
        return [inside, after_space]

    def _encode_behind(self, head: str, word: str) -> list[tuple[int, ...]]:
        """Returns the tokens of a word and those of a space and the word, both behind a text.

        None are returned if the text's own tokens are others then.
        """
        texts = [head, f"{head}{word}", f"{head} {word}"]
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        before, *both = (tuple(encoding.ids) for encoding in encodings)
        size = len(before)
        if any(token_ids[:size] != before for token_ids in both):
            return []
        return [token_ids[size:] for token_ids in both]

    def protect(self, chat: ChatPrompt) -> tuple[ChatPrompt, str]:
        """Marks the special tokens in a client's texts, so that `encode_rendered` makes none.

        Returns:
            The chat for the chat template, and the marker: "" if it is the given one unchanged.

        Raises:
            InvalidRequest: No character is left to mark with.
        """
        return self._special_tokens.protect(chat)

    def encode_rendered(
        self,
        text: str,
        marker: str,
        max_tokens: int | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> "array[int]":
        """Returns the token IDs of what a chat template rendered from protected messages.

        Args:
            text: The template's output.
            marker: As returned by `protect`; "" recognises special tokens everywhere.
            max_tokens: As in `encode_text`.
            is_cancelled: As in `encode_text`.

        Raises:
            InvalidRequest: As `encode_text`.
            Abandoned: It was cancelled.
        """
        if marker:
            # A template may write messages as JSON with escapes.
            text = text.replace(f"\\u{ord(marker):04x}", marker)
        return self._conversations.encode(text, marker, TokenBudget(max_tokens, is_cancelled))

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Returns the text of token IDs; incomplete characters become U+FFFD."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def names(self, token_ids: Iterable[int]) -> list[str]:
        """Returns tokens as the vocabulary writes them; an unknown one is empty."""
        return [self.backend.id_to_token(token_id) or "" for token_id in token_ids]

    def close(self) -> None:
        """Ends the chat template, even if it is busy; all else can still be used."""
        self.chat_thread.shut_down()
        self.chat_template.close()


def _encode_part(
    special_tokens: SpecialTokens,
    text_pieces: TextPieces,
    text: str,
    marker: str,
    budget: TokenBudget,
) -> "array[int]":
    if marker and marker in text:
        return special_tokens.encode(text, marker, budget)
    return text_pieces.encode(text, budget)


def _take_ends(backend: tokenizers.Tokenizer) -> "tuple[array[int], array[int]] | None":
    """Removes what a tokenizer adds around a text, and returns it: tokens before and after.

    Returns None, and removes nothing, if the tokenizer does more than that.
    """
    outer, nothing = (encoding.ids for encoding in backend.encode_batch_fast(["word", ""]))
    processor, backend.post_processor = backend.post_processor, None
    (inner,) = (encoding.ids for encoding in backend.encode_batch_fast(["word"]))
    for start in range(len(nothing) + 1):
        before, behind = nothing[:start], nothing[start:]
        if inner and outer == before + inner + behind:
            return array("i", before), array("i", behind)
    backend.post_processor = processor
    return None
