"""How models write tool calls.

The patterns say what stands around the arguments, which are a JSON object. Each has a bounded
length and ends with a definite character, so that more text does not change a match. A pattern is
matched in parts too, to find out early that something is no call.
"""

import secrets
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import regex

_SPACE = r"[ \t\r\n]{0,64}"
NAME = r"[A-Za-z0-9_.:/\-]{1,128}"
"""A function's name."""
_ID_CHARACTERS = string.ascii_letters + string.digits


class Match(Protocol):
    """A match of a pattern; the package has no types of its own."""

    partial: bool
    """Whether the text ended first."""

    def end(self) -> int:
        """Returns the position behind the match."""

    def __getitem__(self, group: str) -> str:
        """Returns the text of a group."""


class Pattern(Protocol):
    """A pattern that can also tell whether a text may still become a match."""

    def match(self, text: str, *, partial: bool) -> Match | None:
        """Returns the match at the beginning of a text, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStyle:
    """One way to write the calls that follow an opening.

    Attributes:
        head: What comes before the arguments, with the group `name`.
        tail: What comes after them; None means nothing.
        has_arguments: Whether there are any; if not, the head is the call.
        following: What comes before the arguments of a second call without an opening of its own;
            None if each call has an opening.
        closing: What comes after the last of such calls; None means nothing.
    """

    head: Pattern
    tail: Pattern | None = None
    has_arguments: bool = True
    following: Pattern | None = None
    closing: Pattern | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCalls:
    """How a model that is made to call a function writes it: the most usual way.

    Attributes:
        before: What comes before the first call.
        before_name: What comes before a call's name.
        before_arguments: What comes between name and arguments.
        after_arguments: What ends a call.
        between: What comes between two calls; None if only one may be made.
        after: What comes after the last call.
    """

    before: str = ""
    before_name: str
    before_arguments: str
    after_arguments: str = ""
    between: str | None = None
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How one family of models writes tool calls.

    Attributes:
        name: Its name in the router's options.
        opening: The tag that begins a call, or several.
        other_tags: The tags beside the opening.
        styles: The ways to write them.
        written: How a model that is made to call writes its calls.
        is_bare: Whether an answer may begin with a call without the tag. The function must then be
            one of the request's, since other JSON objects are answers.
        make_id: Makes the ID of a call.
    """

    name: str
    opening: str
    styles: tuple[CallStyle, ...]
    written: WrittenCalls
    other_tags: tuple[str, ...] = ()
    is_bare: bool = False
    make_id: Callable[[], str] = lambda: f"call_{uuid.uuid4().hex[:24]}"

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, which may be tokens of their own."""
        return self.opening, *self.other_tags


def _pattern(text: str) -> Pattern:
    compiled: Pattern = regex.compile(text.replace("~", _SPACE))
    return compiled


def _json_head(before: str = "~") -> Pattern:
    return _pattern(_json_start(before) + r'~,~"(?:arguments|parameters)"~:~(?=\{)')


def _json_start(before: str) -> str:
    return before + rf'\{{~(?:"type"~:~"function"~,~)?"name"~:~"(?P<name>{NAME})"'


def _short_id() -> str:
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))


HERMES = ToolFormat(
    name="hermes",
    opening="<tool_call>",
    styles=(
        CallStyle(head=_json_head(), tail=_pattern(r"~\}~</tool_call>")),
        CallStyle(
            head=_pattern(_json_start("~") + r"~\}"),
            tail=_pattern("~</tool_call>"),
            has_arguments=False,
        ),
    ),
    written=WrittenCalls(
        before_name='<tool_call>\n{"name": "',
        before_arguments='", "arguments": ',
        after_arguments="}\n</tool_call>",
        between="\n",
    ),
    other_tags=("</tool_call>",),
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    opening="<|python_tag|>",
    styles=(
        CallStyle(head=_json_head(), tail=_pattern(r"~\}"), following=_json_head("~;~")),
        CallStyle(
            head=_pattern(_json_start("~") + r"~\}"),
            has_arguments=False,
            following=_json_head("~;~"),
        ),
    ),
    written=WrittenCalls(
        before_name='{"name": "', before_arguments='", "parameters": ', after_arguments="}"
    ),
    is_bare=True,
)
MISTRAL = ToolFormat(
    name="mistral",
    opening="[TOOL_CALLS]",
    styles=(
        # Up to version 7 of Mistral's tokenizers: a list; from version 11 on: name and arguments.
        CallStyle(
            head=_json_head(r"~\[~"),
            tail=_pattern(r'~(?:,~"id"~:~"[A-Za-z0-9]{1,64}"~)?\}'),
            following=_json_head("~,~"),
            closing=_pattern(r"~\]"),
        ),
        CallStyle(head=_pattern(rf"~(?P<name>{NAME})(?:\[ARGS\])?~(?=\{{)")),
    ),
    written=WrittenCalls(
        before="[TOOL_CALLS][",
        before_name='{"name": "',
        before_arguments='", "arguments": ',
        after_arguments="}",
        between=", ",
        after="]",
    ),
    other_tags=("[ARGS]",),
    # Mistral's templates accept no other length.
    make_id=_short_id,
)
_DEEPSEEK_BEGIN, _DEEPSEEK_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"  # noqa: RUF001
_DEEPSEEK_SEPARATOR = "<｜tool▁sep｜>"  # noqa: RUF001
_DEEPSEEK_AFTER = "<｜tool▁calls▁end｜>"  # noqa: RUF001
_DEEPSEEK_HEAD = (
    f"~{_DEEPSEEK_BEGIN}(?:function{_DEEPSEEK_SEPARATOR}(?P<name>{NAME})~```json"
    rf"|(?P<name>{NAME}){_DEEPSEEK_SEPARATOR})~(?=\{{)"
)
DEEPSEEK = ToolFormat(
    name="deepseek",
    opening="<｜tool▁calls▁begin｜>",  # noqa: RUF001
    styles=(
        # R1 and V3 name the type and fence the arguments, V3.1 does neither.
        CallStyle(
            head=_pattern(_DEEPSEEK_HEAD),
            tail=_pattern(f"~(?:```)?~{_DEEPSEEK_END}"),
            following=_pattern(_DEEPSEEK_HEAD),
            closing=_pattern(f"~{_DEEPSEEK_AFTER}"),
        ),
    ),
    written=WrittenCalls(
        before="<｜tool▁calls▁begin｜>",  # noqa: RUF001
        before_name=f"{_DEEPSEEK_BEGIN}function{_DEEPSEEK_SEPARATOR}",
        before_arguments="\n```json\n",
        after_arguments=f"\n```{_DEEPSEEK_END}",
        between="\n",
        after=_DEEPSEEK_AFTER,
    ),
    other_tags=(_DEEPSEEK_BEGIN, _DEEPSEEK_END, _DEEPSEEK_SEPARATOR, _DEEPSEEK_AFTER),
)
TOOL_FORMATS = {form.name: form for form in (HERMES, LLAMA3_JSON, MISTRAL, DEEPSEEK)}
"""By name."""
