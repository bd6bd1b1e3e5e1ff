"""What the grammar of a tool choice says, and where a grammar begins."""

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, SamplingParams
from router.errors import InvalidRequest
from router.request.chat_grammar import call_grammar, chat_params
from router.text.answer_form import answer_form
from router.text.chat_template import TemplateSettings
from router.text.parsers.tool_format import TOOL_FORMATS
from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatMessage, ChatPrompt, Tool, ToolChoice
from tests.fakes import small_tokenizer
from tests.router.text.parsers.split import parse
from tests.router.text.tool_templates import QWEN3

SCHEMA = {"type": "object", "properties": {"é": {"type": "string"}}}
F = Tool(name="f", parameters=SCHEMA)
G = Tool(name="g")
OBJECT = '{"type": "object", "properties": {"é": {"type": "string"}}}'
NOTHING = '{"type": "object", "properties": {}, "additionalProperties": false}'
MESSAGES = (ChatMessage(role="user", content="hi"),)
PROMPT = "<|im_start|>assistant\n"
MUST = ChatPrompt(messages=MESSAGES, tools=(F, G), tool_choice=ToolChoice.REQUIRED)
NAMED = ChatPrompt(messages=MESSAGES, tools=(F, G), function_name="g")


def tokenizer_of(*tokens, **settings):
    files = dict(small_tokenizer.files(chat_template=QWEN3))
    backend = Backend.from_str(files["tokenizer.json"].decode())
    backend.add_tokens([AddedToken(text, special=special) for text, special in tokens])
    files["tokenizer.json"] = backend.to_str().encode()
    return Tokenizer.from_files(files, TemplateSettings(**settings))


def test_required_calls_are_one_or_more_in_the_models_format():
    text = call_grammar(
        TOOL_FORMATS["hermes"].written, [F, G], {}, is_single=False, has_reasoning=False
    )

    assert text == (
        'start: call ("\\n" call)*\n'
        "call: call_0 | call_1\n"
        'call_0: "<tool_call>\\n{\\"name\\": \\"f\\", \\"arguments\\": " arguments_0 '
        '"}\\n</tool_call>"\n'
        f"arguments_0: %json {OBJECT}\n"
        'call_1: "<tool_call>\\n{\\"name\\": \\"g\\", \\"arguments\\": " arguments_1 '
        '"}\\n</tool_call>"\n'
        f"arguments_1: %json {NOTHING}\n"
    )


def test_named_function_is_called_once_after_white_space_if_reasoning_comes_first():
    text = call_grammar(TOOL_FORMATS["hermes"].written, [G], {}, is_single=True, has_reasoning=True)

    assert text.splitlines()[:2] == ["start: SPACE? call", r"SPACE: /[ \n]{1,4}/"]
    assert text.count("%json") == 1


def test_tags_that_are_single_tokens_are_written_by_their_ids():
    form = TOOL_FORMATS["mistral"]
    text = call_grammar(
        form.written, [G], {"[TOOL_CALLS]": 5}, is_single=False, has_reasoning=False
    )

    assert text.splitlines()[0] == 'start: <[5]> "[" call (", " call)* "]"'
    # And by their IDs within a text.
    form = TOOL_FORMATS["hermes"]
    tags = {"<tool_call>": 7, "</tool_call>": 8}
    text = call_grammar(form.written, [G], tags, is_single=True, has_reasoning=False)
    assert (
        'call_0: <[7]> "\\n{\\"name\\": \\"g\\", \\"arguments\\": " arguments_0 "}\\n" <[8]>'
        in (text)
    )


def test_tags_that_are_tokens_are_written_by_their_ids_also_if_they_are_not_special():
    tokenizer = tokenizer_of(("<tool_call>", False), ("</tool_call>", False))
    opening, closing = map(tokenizer.backend.token_to_id, ("<tool_call>", "</tool_call>"))

    text = params_of(tokenizer, NAMED, SamplingParams()).grammar.text

    assert f'call_0: <[{opening}]> "\\n' in text
    assert text.count(f"<[{closing}]>") == 1
    assert "tool_call" not in text


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_what_a_grammar_asks_for_is_what_the_parser_reads(form):
    written = TOOL_FORMATS[form].written
    call = f"{written.before_name}f{written.before_arguments}{{}}{written.after_arguments}"
    calls = [call] if written.between is None else [call, call]
    answer = parse(written.before + (written.between or "").join(calls) + written.after, form)

    assert answer.calls == [["f", "{}"]] * len(calls)
    assert (answer.content, answer.has_calls) == ("", True)


def params_of(tokenizer, chat, params, prompt=PROMPT):
    return chat_params(params, chat, answer_form(tokenizer.formats, chat, prompt), tokenizer)


def test_grammar_begins_after_the_reasoning_if_the_chat_reasons():
    tokenizer = tokenizer_of(("</think>", False))
    end = tokenizer.backend.token_to_id("</think>")
    own = SamplingParams(grammar=Grammar(form="json_object"))
    chat = ChatPrompt(messages=MESSAGES)
    closed = PROMPT + "<think>\n\n</think>\n\n"

    assert params_of(tokenizer, chat, own).grammar == Grammar(
        form="json_object", start_after_token_id=end
    )
    assert params_of(tokenizer, MUST, SamplingParams()).grammar.start_after_token_id == end
    assert params_of(tokenizer, chat, own, closed) == own
    grammar = params_of(tokenizer, MUST, SamplingParams(), closed).grammar
    assert grammar.start_after_token_id is None
    assert "SPACE" not in grammar.text
    assert params_of(tokenizer, chat, SamplingParams()) == SamplingParams()
    named = params_of(tokenizer, NAMED, SamplingParams(), closed).grammar.text
    assert '\\"g\\"' in named
    assert '\\"f\\"' not in named


def test_reasoning_whose_end_is_no_token_cannot_come_before_a_grammar():
    tokenizer = tokenizer_of()

    with pytest.raises(InvalidRequest, match="</think> is not one token") as caught:
        params_of(tokenizer, MUST, SamplingParams(), PROMPT + "<think>\n")

    assert caught.value.status.reason == Reason.UNSUPPORTED_PARAMETER


def test_model_without_a_known_format_cannot_be_made_to_call():
    tokenizer = tokenizer_of(tool_call_parser="none")

    with pytest.raises(InvalidRequest, match=r"tool_choice is g, but how .* --tool-call-parser"):
        params_of(tokenizer, NAMED, SamplingParams())


def test_grammar_of_too_many_tools_is_refused_by_its_size():
    tools = tuple(
        Tool(name=f"f{index}", parameters={"description": "x" * 1000}) for index in range(300)
    )
    chat = ChatPrompt(messages=MESSAGES, tools=tools, tool_choice=ToolChoice.REQUIRED)

    with pytest.raises(InvalidRequest, match=r"chat.tools has 3\d{5} bytes, outside 1 to 262144"):
        params_of(tokenizer_of(), chat, SamplingParams())
