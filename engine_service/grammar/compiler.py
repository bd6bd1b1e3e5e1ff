"""Compiles what a text must match into the library's matcher."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from protos.wire.printable import escape
from protos.wire.sampling_params import GRAMMAR_FORMS, Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_MAX_ERROR_CHARACTERS = 500

# White space between the parts of a JSON text: nothing, one space, or a new line with its
# indentation. Without a bound, a model may generate white space until the end of its length.
_WHITE_SPACE = r"( |\n {0,40})?"

# Of the library's own, so that a schema cannot loosen itself by its field "x-guidance".
_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": _WHITE_SPACE,
    "whitespace_flexible": True,
    "lenient": False,
}

_LIMITS = LLParserLimits(
    # Work for one mask: some twenty milliseconds of one processor. A usual schema of a hundred
    # fields takes 50,000 items where any name may begin.
    step_lexer_fuel=100_000,
    step_max_items=200_000,
    # One or two kilobytes each, in each matcher.
    max_lexer_states=20_000,
    max_grammar_size=500_000,
    # Otherwise an error holds the matcher's whole state.
    verbose_errors=False,
)


class BadGrammar(Exception):
    """A grammar that cannot be used; the text is printable, on one line and of bounded length."""


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """Returns a matcher at the beginning of the text.

    Without the interpreter's lock; usually in milliseconds. Time and memory are bounded only as far
    as the library does it: `GrammarChecker` refuses a grammar of a stranger that takes too much.

    Raises:
        BadGrammar: The library refuses the grammar; the text says where and why.
    """
    write = _WRITERS.get(grammar.form)
    if write is None:
        raise BadGrammar(f"the grammar has no form; set one of {', '.join(GRAMMAR_FORMS)}")
    try:
        source = write(grammar)
    except ValueError as error:
        raise bad_grammar(str(error)) from error
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise bad_grammar(matcher.get_error())
    return matcher


def bad_grammar(text: str) -> BadGrammar:
    """Returns the error with the library's text on one line, cut to a bound."""
    text = " | ".join(line.strip() for line in text.splitlines() if line.strip())
    if len(text) > _MAX_ERROR_CHARACTERS:
        text = f"{text[:_MAX_ERROR_CHARACTERS]}…"
    return BadGrammar(escape(text))


def _write_schema(grammar: Grammar) -> str:
    if not grammar.text.lstrip().startswith("{"):
        raise ValueError("the JSON schema must be a JSON object")
    return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON_OPTIONS)


def _write_object(_: Grammar) -> str:
    return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=_JSON_OPTIONS)


def _write_regex(grammar: Grammar) -> str:
    return LLMatcher.grammar_from_regex(grammar.text)


def _write_lark(grammar: Grammar) -> str:
    return LLMatcher.grammar_from_lark(grammar.text)


def _write_choice(grammar: Grammar) -> str:
    if not grammar.choices:
        raise ValueError("choice has no texts")
    # Lark's strings are written as JSON's.
    texts = " | ".join(json.dumps(text) for text in dict.fromkeys(grammar.choices))
    return LLMatcher.grammar_from_lark(f"start: {texts}")


_WRITERS: Mapping[str, Callable[[Grammar], str]] = {
    "json_schema": _write_schema,
    "json_object": _write_object,
    "regex": _write_regex,
    "lark": _write_lark,
    "choice": _write_choice,
}
