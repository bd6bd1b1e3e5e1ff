"""Grammars of answers to chats: those that make a model call, and where a client's own begins."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from protos.wire.limits import MAX_GRAMMAR_BYTES
from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, SamplingParams
from router.errors import InvalidRequest
from router.text.answer_form import AnswerForm
from router.text.parsers.tool_format import WrittenCalls
from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatPrompt, Tool

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def chat_params(
    params: SamplingParams, chat: ChatPrompt, form: AnswerForm, tokenizer: Tokenizer
) -> SamplingParams:
    """Returns a chat's sampling parameters with the grammar that its tool choice asks for.

    A grammar begins when the reasoning ends, if the answer begins with one.

    Raises:
        InvalidRequest: The model's format of tool calls or its end of reasoning is not known, or
            the grammar is too large.
    """
    if params.grammar is None and not chat.must_call:
        return params
    start = _end_of_reasoning(form, tokenizer)
    grammar = params.grammar
    if grammar is None:
        grammar = _call_grammar(chat, form, tokenizer.tag_ids, has_reasoning=start is not None)
    return replace(params, grammar=replace(grammar, start_after_token_id=start))


def _end_of_reasoning(form: AnswerForm, tokenizer: Tokenizer) -> int | None:
    if form.reasoning is None:
        return None
    closing = form.reasoning.closing
    token_id = tokenizer.backend.token_to_id(closing)
    if token_id is None and form.is_open:
        raise InvalidRequest(
            f"a grammar begins when the model's reasoning ends, but {closing} is not one token; "
            "switch the reasoning off",
            {"field": "grammar", "value": closing, "bounds": "one token"},
            reason=Reason.UNSUPPORTED_PARAMETER,
        )
    return token_id


def _call_grammar(
    chat: ChatPrompt, form: AnswerForm, tag_ids: Mapping[str, int], *, has_reasoning: bool
) -> Grammar:
    if form.tools is None:
        wanted = chat.function_name or chat.tool_choice.value
        raise InvalidRequest(
            f"chat.tool_choice is {wanted}, but how the model writes tool calls is not known; the "
            "router's option --tool-call-parser names it",
            {"field": "chat.tool_choice", "value": wanted, "bounds": "none or auto"},
            reason=Reason.UNSUPPORTED_PARAMETER,
        )
    tools = [tool for tool in chat.tools if chat.function_name in ("", tool.name)]
    text = call_grammar(
        form.tools.written,
        tools,
        tag_ids,
        is_single=bool(chat.function_name) or not chat.parallel_calls,
        has_reasoning=has_reasoning,
    )
    if (num_bytes := len(text.encode())) > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(
            f"the grammar of chat.tools has {num_bytes} bytes, outside 1 to {MAX_GRAMMAR_BYTES}; "
            "send fewer tools or name the function",
            {
                "field": "chat.tools",
                "value": f"{num_bytes} bytes",
                "bounds": f"1 to {MAX_GRAMMAR_BYTES}",
            },
            reason=Reason.BAD_CHAT,
        )
    return Grammar(form="lark", text=text)


def call_grammar(
    written: WrittenCalls,
    tools: Sequence[Tool],
    tag_ids: Mapping[str, int],
    *,
    is_single: bool,
    has_reasoning: bool,
) -> str:
    """Returns a grammar in Lark's notation, as llguidance reads it, of one or more calls.

    Args:
        written: How the model writes calls.
        tools: The functions, at least one.
        tag_ids: The tags that are single tokens; others are plain text.
        is_single: Whether one call only is allowed.
        has_reasoning: Whether white space may come first, as it does after a reasoning.
    """
    again = ""
    if not is_single and written.between is not None:
        again = f"({_terms(written.between, tag_ids)} call)*"
    parts = [
        "SPACE?" if has_reasoning else "",
        _terms(written.before, tag_ids),
        "call",
        again,
        _terms(written.after, tag_ids),
    ]
    rules = [f"start: {' '.join(filter(None, parts))}"]
    if has_reasoning:
        rules.append(r"SPACE: /[ \n]{1,4}/")
    rules.append(f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}")
    for index, tool in enumerate(tools):
        head = _terms(written.before_name + tool.name + written.before_arguments, tag_ids)
        tail = _terms(written.after_arguments, tag_ids)
        rules.append(f"call_{index}: {head} arguments_{index} {tail}".rstrip())
        schema = {"type": "object", **(tool.parameters or _NO_PARAMETERS)}
        rules.append(f"arguments_{index}: %json {json.dumps(schema, ensure_ascii=False)}")
    return "\n".join(rules) + "\n"


def _terms(text: str, tag_ids: Mapping[str, int]) -> str:
    """Returns a text as literals, with tags that are single tokens by their IDs.

    A model writes such a tag as its token. llguidance does not take the token for the tag's text,
    even where the tokenizer does not mark it as special.
    """
    if not tag_ids:
        return json.dumps(text, ensure_ascii=False) if text else ""
    pieces = re.split("(" + "|".join(map(re.escape, tag_ids)) + ")", text)
    return " ".join(
        f"<[{tag_ids[piece]}]>" if piece in tag_ids else json.dumps(piece, ensure_ascii=False)
        for piece in pieces
        if piece
    )
