"""What comes out does not depend on how tokens split the text, and nothing gets lost."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.text.parsers.registry import REASONING_FORMATS
from router.text.parsers.tag_search import MAX_SPACE
from router.text.parsers.tool_format import TOOL_FORMATS
from tests.router.text.parsers.split import THINK, Answer, parse, parser_of, visible

SEP, BEGIN, END = "<｜tool▁sep｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"  # noqa: RUF001
ALL_BEGIN, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001
ONE, TWO = '{"city": "Köln \\"}\\u00e9", "days": [1, -2.5e3, null, {"a": {}}]}', "{}"
BOTH = [["get_weather", ONE], ["f", TWO]]
CALLS = {
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {ONE}}}\n</tool_call>\n'
    f'<tool_call>\n{{"name": "f", "arguments": {TWO}}}\n</tool_call>',
    "llama3_json": f'{{"name": "get_weather", "parameters": {ONE}}}; '
    f'{{"name": "f", "parameters": {TWO}}}',
    "mistral": f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {ONE}}}, '
    f'{{"name": "f", "arguments": {TWO}, "id": "abcdefghi"}}]',
    "deepseek": f"{ALL_BEGIN}{BEGIN}function{SEP}get_weather\n```json\n{ONE}\n```{END}\n"
    f"{BEGIN}function{SEP}f\n```json\n{TWO}\n```{END}{ALL_END}",
}
NEWER = {
    "mistral": f"[TOOL_CALLS]get_weather{ONE}[TOOL_CALLS]f[ARGS]{TWO}",
    "deepseek": f"{ALL_BEGIN}{BEGIN}get_weather{SEP}{ONE}{END}{BEGIN}f{SEP}{TWO}{END}{ALL_END}",
    "llama3_json": '<|python_tag|>{"type": "function", "name": "get_weather", '
    f'"parameters": {ONE}}}'
    f' ; {{"name": "f", "parameters": {TWO}}}',
    "hermes": f'<tool_call>{{"name":"get_weather","arguments":{ONE}}}</tool_call>'
    '<tool_call>\n{"name": "f"}\n</tool_call>\n',
}
FRAGMENTS = {
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": ', '{"name": "f"}'],
    "llama3_json": ["<|python_tag|>", '{"name": "f", "parameters": ', ";", '{"name": "g"'],
    "mistral": ["[TOOL_CALLS]", "[", "]", '{"name": "f", "arguments": ', "f", "[ARGS]", ", "],
    "deepseek": [ALL_BEGIN, ALL_END, BEGIN, SEP, END, "function", "f", "\n```json\n", "```"],
}
COMMON = [
    "{",
    "}",
    '"',
    "\\",
    " ",
    "\n",
    "a",
    "<",
    "</",
    "1",
    ",",
    ":",
    '"k": ',
    "é",
    "[",
    "]",
    "{}",
]
THINKING = ["<think>", "</think>", "<thi", "nk>", "</th", "ink>", "\n", " ", "hm", "<", "é"]


@pytest.mark.parametrize("calls", [CALLS, NEWER])
@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_calls_of_every_format_are_found_however_the_text_is_split(form, calls):
    answer = parse(calls[form], form)

    assert answer.calls == BOTH
    assert answer.content == ""
    assert answer.has_calls
    assert len(set(answer.ids)) == 2
    assert all(json.loads(arguments) is not None for _, arguments in answer.calls)


@pytest.mark.parametrize("form", ["hermes", "mistral", "deepseek"])
def test_content_before_and_behind_calls_is_kept_and_white_space_between_is_not(form):
    answer = parse(f"I look.\n\n{CALLS[form]}\n\nDone, < and [T.", form)

    assert answer.calls == BOTH
    assert answer.content == "I look.Done, < and [T."


def test_arguments_come_as_they_are_written():
    parser = parser_of("hermes")
    parser.push('<tool_call>{"name": "f", "arguments": ')

    assert [d.name for d in parser.push('{"a').tool_calls] == ["f", ""]
    assert [d.arguments for d in parser.push('": [1').tool_calls] == ['": [1']
    assert not parser.has_calls
    assert [d.arguments for d in parser.push("]}}</tool").tool_calls] == ["]}"]
    assert parser.has_calls
    assert parser.finish() == ("", "", ())


UNFINISHED = {
    "opening": "Hm <tool_call>",
    "name": '<tool_call>\n{"name": "f',
    "no object": '<tool_call>\n{"name": "f", "arguments": "x"}\n</tool_call>',
    "other key": '<tool_call>{"function": "f"}</tool_call>',
    "no JSON": "<tool_call>call f now</tool_call>",
    "twice": "<tool_call><tool_call>",
    "part of a tag": "a <tool_cal",
    "unknown name": '<tool_call>{"name": "f g", "arguments": {}}</tool_call>',
    "endless name": '<tool_call>{"name": "' + "f" * 200,
    "end only": "</tool_call>",
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_what_is_no_call_is_content_to_the_last_character(name):
    answer = parse(UNFINISHED[name], "hermes")

    assert answer.calls == []
    assert answer.content == UNFINISHED[name]
    assert not answer.has_calls


def test_second_call_that_is_unfinished_is_content():
    text = f'[TOOL_CALLS][{{"name": "f", "arguments": {TWO}}}, {{"name": "get'
    answer = parse(text, "mistral")

    assert (answer.calls, answer.content) == ([["f", TWO]], ', {"name": "get')


def test_broken_arguments_go_on_as_content():
    answer = parse('<tool_call>{"name": "f", "arguments": {"a": b}}</tool_call> ok', "hermes")

    assert answer.calls == [["f", '{"a": ']]
    assert answer.content == "b}}</tool_call> ok"
    assert not answer.has_calls


def test_cut_arguments_are_a_call_that_is_not_complete():
    answer = parse('<tool_call>{"name": "f", "arguments": {"a": [1', "hermes")

    assert (answer.calls, answer.content, answer.has_calls) == ([["f", '{"a": [1']], "", False)


def test_call_without_its_last_tag_is_complete():
    answer = parse('<tool_call>\n{"name": "f", "arguments": {}}\n', "hermes")

    assert (answer.calls, answer.content, answer.has_calls) == ([["f", "{}"]], "", True)


@pytest.mark.parametrize(
    "text",
    ['{"name": "other", "parameters": {}}', '{"answer": 1}', "  Hello", '{"name": "f"', "{", ""],
)
def test_json_answer_that_names_no_function_of_the_request_is_content(text):
    answer = parse(text, "llama3_json")

    assert (answer.calls, answer.content) == ([], text)


def test_mistrals_ids_have_nine_letters_or_digits():
    answer = parse(CALLS["mistral"], "mistral")

    assert all(len(one) == 9 and one.isalnum() for one in answer.ids)


REASONED = {
    "opened by the model": ("<think>\nhm, <b>\n</think>\n\nYes\n", False, ("hm, <b>", "Yes\n")),
    "opened by the prompt": ("\nhm</think>Yes", True, ("hm", "Yes")),
    "empty": ("<think>\n\n</think>\n\nYes", False, ("", "Yes")),
    "none": ("Yes <think>a</think>", False, ("", "Yes <think>a</think>")),
    "unfinished": ("<think>hm </thin", False, ("hm </thin", "")),
    "only a part of the tag": (" \n<thi", False, ("", " \n<thi")),
    "only the tag": ("<think>", False, ("", "")),
    "nothing": ("", False, ("", "")),
}


@pytest.mark.parametrize("name", REASONED)
def test_reasoning_is_told_from_content(name):
    text, is_open, expected = REASONED[name]
    answer = parse(text, reasoning=THINK, is_open=is_open)

    assert (answer.reasoning, answer.content) == expected


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_more_white_space_than_is_held_back_is_text(size):
    text, space = "a" + " " * 2000 + "</think>b", " " * (2000 - MAX_SPACE)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    answer = Answer(parser_of(None, THINK, is_open=True), pieces)
    assert (answer.reasoning, answer.content) == ("a" + space, "b")

    text = " " * 2000 + "<think>a"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    answer = Answer(parser_of(None, THINK), pieces)
    assert (answer.reasoning, answer.content) == ("", text)


def test_calls_in_the_reasoning_are_reasoning():
    call = CALLS["hermes"]
    answer = parse(f"<think>\nmaybe {call}\n</think>\n\n{call}", "hermes", THINK)

    assert answer.reasoning == f"maybe {call}"
    assert (answer.content, answer.calls) == ("", BOTH)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_split_changes_the_result_and_no_character_is_lost(data):
    form = data.draw(st.sampled_from(sorted(TOOL_FORMATS)))
    fragments = st.sampled_from(FRAGMENTS[form] * 3 + COMMON + THINKING)
    text = "".join(data.draw(st.lists(fragments, max_size=30)))
    reasoning = data.draw(st.sampled_from([None, THINK]))
    is_open = data.draw(st.booleans())
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))

    whole = Answer(parser_of(form, reasoning, is_open=is_open), [text])
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    split = Answer(parser_of(form, reasoning, is_open=is_open), pieces)
    singly = Answer(parser_of(form, reasoning, is_open=is_open), text)

    assert split.parts == singly.parts == whole.parts
    # Everything that is delivered stands in the text, in this order within its kind.
    for part in (whole.reasoning, whole.content):
        rest = iter(text)
        assert all(character in rest for character in part)
    if not whole.calls:
        tags = [THINK.opening, THINK.closing] if reasoning else []
        lost = len(visible(text)) - len(visible(whole.reasoning + whole.content))
        assert lost in {0, *(len(tag) for tag in tags), sum(map(len, tags))}


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    st.sampled_from(sorted(TOOL_FORMATS)),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_any_arguments_come_through(value, form, indent, is_ascii):
    arguments = json.dumps({"x": value}, indent=indent, ensure_ascii=is_ascii)
    text = CALLS[form].replace(ONE, arguments)

    answer = Answer(parser_of(form), text)

    assert answer.calls == [["get_weather", arguments], ["f", TWO]]
    assert answer.content == ""


HOSTILE = {
    "openings": "<tool_call>",
    "deep": '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 99,
    "spaces": " ",
    "half tags": "<tool_call",
    "calls": '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "digits": '<tool_call>{"name": "f", "arguments": {"a": ' + "1" * 999,
    "long names": '<tool_call>{"name": "' + "f" * 120,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_costs_little_time_and_memory(name):
    text = HOSTILE[name] * (20_000 // len(HOSTILE[name]))
    parser = parser_of("hermes", THINK)
    started = time.process_time()
    for character in text:
        parser.push(character)
        assert len(parser._tools._buffer) + len(parser._tools._search._held) < 1000
    # Some microseconds per character; the bound is generous.
    assert time.process_time() - started < 10


def test_calls_beyond_the_most_are_content():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    answer = Answer(parser_of("hermes"), [call * 130])

    assert len(answer.calls) == 128
    assert answer.content == call * 2


def test_names_of_reasoning_formats_have_their_tags():
    for form in REASONING_FORMATS.values():
        answer = parse(f"{form.opening}a{form.closing}b", reasoning=form)
        assert (answer.reasoning, answer.content) == ("a", "b")
