import json
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from protos.wire.reason import Reason
from router.errors import Draining, InvalidRequest, RequestError
from router.text import template_worker
from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatMessage
from tests.fakes import small_tokenizer
from tests.router.text.templates import (
    FOREVER,
    HASTY,
    HI,
    LOOPS_IF_TOLD,
    SPECIAL_TOKENS,
    chats_of,
    is_there,
    pid_of,
    prompt_of,
    says,
)

ROOT = Path(__file__).parents[3]
QWEN = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
  {%- if message.role == "user" and not message.content.startswith('<tool_response>') %}
    {%- set ns.last = messages|length - 1 - loop.index0 %}{%- break %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message.content if message.content is string else '' %}
  {%- if '</think>' in content %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
  {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
FAITHFUL = {
    "chatml": small_tokenizer.CHAT_TEMPLATE,
    "qwen": QWEN,
    "special tokens": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}",
    "unset": "{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}",
    "tojson": "{{ messages|tojson(indent=2) }}{{ {'b': '<é>', 'a': 1}|tojson(sort_keys=true) }}",
    "date": "{{ strftime_now('%Y')|length }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys('ab') }}{{ dict is callable }}",
    "namespace": "{% set n = namespace({'b': 2}, self=1) %}{% set n.c = 3 %}{{ n.self }}{{ n.c }}",
    "generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}"
    "{% endfor %}",
    "blocks are trimmed": "  {% if true %}\n  a\n  {% endif %}\nb\n",
    "macro": "{% macro f(m) %}{{ m.content|trim|upper }}{% endmacro %}{{ f(messages[0]) }}",
    "raises": "{{ raise_exception('roles must alternate') }}",
    "adds": "{{ messages[0].content + 1 }}",
    "undefined": "{{ nothing.at.all }}",
    "syntax": "{% for %}",
    "changes the messages": "{{ messages.append(1) }}",
    "mro": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "context": "{{ self._TemplateReference__context }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "attribute of a namespace": "{% set n = namespace(_x=1) %}",
    "set attribute of a namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "raise_exception": "{{ raise_exception.__globals__ }}",
    "include": "{% include '/etc/passwd' %}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
}
HOSTILE = {
    "loops": (FOREVER, "took longer than 0.2 s"),
    "power": ("{{ (7 ** (10 ** 7)) % 10 }}", "took longer than 0.2 s"),
    "large power": ("{{ (7 ** (10 ** 9)) % 10 }}", "took longer than 0.2 s"),
    "power of content": (
        "{{ (messages|length + 6) ** (10 ** 7) % 10 }}",
        "took longer than 0.2 s",
    ),
    "memory": ("{{ ('a' * 300000000)|length }}", "rejected them: it takes over 72351744 bytes"),
    "list": ("{{ ([messages] * 99999999)|length }}", "rejected them: it takes over 72351744 bytes"),
    "layout": (
        "{{ 'a' * (messages|length * 20000000) }}",
        "rejected them: its output is over 1376256 bytes",
    ),
    "many pieces": (
        "{% for i in range(99999) %}{{ 'é' * 1000 }}{% endfor %}",
        "rejected them: its output is over 1376256 bytes",
    ),
    "layout of wide characters": (
        "{{ 'é' * 1000000 }}",
        "rejected them: its output is over 1376256 bytes",
    ),
    "recursion": (
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "rejected them: maximum recursion depth",
    ),
    "long error": ("{{ raise_exception('x' * 100000) }}", f"rejected them: {'x' * 500}$"),
    "surrogates": ("{{ '\\ud800' }}", "rejected them: .*surrogates not allowed"),
    "surrogates in an error": ("{{ raise_exception('\\ud800') }}", r"rejected them: \?$"),
    "deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "rejected them: "),
    "long": (
        " " * (1 << 20) + "x",
        "rejected them: the template has 1048577 characters, over the limit of 1048576",
    ),
    "number": (5, "rejected them: the template is of type int, not a string"),
    "several": ({"tool_use": "x"}, "rejected them: the template is of type dict, not a string"),
}


def outcome_of_transformers(source, messages):
    """The layout by the original, or its error."""
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    try:
        (text,), _ = chat_template_utils.render_jinja_template(
            [conversation], chat_template=source, add_generation_prompt=True, **SPECIAL_TOKENS
        )
    except Exception as error:
        return error
    return text


@pytest.mark.parametrize("name", FAITHFUL)
def test_layout_or_error_is_that_of_transformers(templates, name):
    template = templates(FAITHFUL[name])
    for messages in (
        HI,
        (
            ChatMessage(role="system", content="Be  brief.\n"),
            ChatMessage(role="user", content="<ü> 'q' \"d\" {{ x }} 😀\u2028\x00"),
            ChatMessage(role="assistant", content="<think>\nhm</think>\n\nYes.\n"),
            ChatMessage(role="user", content=""),
        ),
    ):
        expected = outcome_of_transformers(FAITHFUL[name], messages)
        if isinstance(expected, str):
            assert template.render(messages) == expected
        else:
            with pytest.raises(InvalidRequest) as caught:
                template.render(messages)
            roles = ", ".join(m.role for m in messages)
            assert str(caught.value) == (
                f"chat.messages with roles {roles}: the model's chat template rejected them: "
                f"{expected}"
            )
            assert caught.value.status.reason == Reason.BAD_CHAT
            assert caught.value.status.metadata == {"field": "chat.messages", "value": roles}
    assert templates.ends == []


def test_environment_has_what_that_of_transformers_has():
    original = chat_template_utils._compile_jinja_template("").environment
    ours = template_worker.make_environment()

    for names in ("globals", "filters", "tests", "policies"):
        assert set(getattr(ours, names)) == set(getattr(original, names))
    assert len(ours.extensions) == len(original.extensions)
    options = ("trim_blocks", "lstrip_blocks", "keep_trailing_newline", "autoescape", "undefined")
    for option in options:
        assert getattr(ours, option) == getattr(original, option)
    assert isinstance(ours, type(original))


def test_special_tokens_and_default_template_are_those_of_the_files(tmp_path):
    several = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "{{ eos_token }}{{ messages[0].content }}"},
    ]
    files = small_tokenizer.files(chat_template=None)
    config = {**json.loads(files["tokenizer_config.json"]), "chat_template": several}
    files = {**files, "tokenizer_config.json": json.dumps(config).encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    template = Tokenizer.from_files(files).chat_template
    try:
        assert template.render(prompt_of(HI)) == expected == f"{small_tokenizer.END}hi"
    finally:
        template.close()


@pytest.mark.parametrize("source", [None, ""])
def test_missing_template_is_named_and_has_no_worker(templates, source):
    template = templates(source)
    template.start()

    with pytest.raises(
        InvalidRequest, match="no chat template, so chat cannot be used; send text"
    ) as caught:
        template.render(HI)

    assert caught.value.status.reason == Reason.BAD_CHAT
    assert template._process is None


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_the_error_of_its_own_chats(templates, name):
    source, message = HOSTILE[name]
    hostile, good = templates(source, HASTY), templates(small_tokenizer.CHAT_TEMPLATE)
    good.start()

    with chats_of(hostile, "hi") as (chat,):
        for number in range(10):
            messages = says(str(number))
            assert good.render(messages) == small_tokenizer.lay_out(messages)

        with pytest.raises(InvalidRequest, match=message) as caught:
            chat.result()
    assert caught.value.status.reason == Reason.BAD_CHAT
    assert len(str(caught.value)) < 700
    assert set(templates.ends) <= {"time"}


def test_hostile_template_leaves_the_start_to_others(templates):
    template = templates("{{ (7 ** (10 ** 7)) % 10 }}", HASTY)

    template.start()

    with pytest.raises(InvalidRequest, match=r"took longer than 0\.2 s"):
        template.render(HI)


def test_those_who_wait_go_on_with_the_next_worker(templates):
    template = templates(LOOPS_IF_TOLD, HASTY)
    template.start()
    first = pid_of(template)

    with chats_of(template, "loop", "a", "b") as (loop, *others):
        assert isinstance(loop.exception(), InvalidRequest)
        assert [chat.result() for chat in others] == ["a", "b"]
    assert pid_of(template) != first
    assert not is_there(first)
    assert templates.ends == ["time"]


def test_template_that_ends_every_worker_is_left_alone_for_a_while(templates):
    template = templates(LOOPS_IF_TOLD, HASTY, cpu_seconds=0.05)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="took longer than"):
            template.render(says("loop"))

    with pytest.raises(InvalidRequest, match="2 times in a row; retry in") as caught:
        template.render(says("a"))

    assert templates.ends == ["time"] * 2
    assert 0 < caught.value.status.retry_after <= 1
    time.sleep(caught.value.status.retry_after)
    assert template.render(says("a")) == "a"
    # What answers once is not broken.
    with pytest.raises(InvalidRequest, match="took longer than"):
        template.render(says("loop"))
    assert template.render(says("b")) == "b"


def test_largest_chat_fits_into_the_bounds(templates):
    text = "y" * ((4 << 20) - 4) + "😀"
    template = templates(QWEN)

    assert template.render(says(text)) == small_tokenizer.lay_out(says(text))


def test_many_small_messages_come_through(templates):
    messages = tuple(ChatMessage(role="user", content="é" * (i % 5)) for i in range(4096))

    text = templates(small_tokenizer.CHAT_TEMPLATE).render(messages)

    assert text == small_tokenizer.lay_out(messages)


def test_surrogates_of_a_message_are_refused(templates):
    with pytest.raises(InvalidRequest, match="surrogates not allowed"):
        templates(small_tokenizer.CHAT_TEMPLATE).render(says("\ud800"))


def test_retired_template_serves_those_who_have_it_and_keeps_no_worker(templates):
    template = templates("{{ messages[0].content }}")
    template.start()

    with chats_of(template, *"abc") as chats:
        template.retire()

        assert [chat.result() for chat in chats] == ["a", "b", "c"]
    assert template._process is None
    assert template.render(HI) == "hi"
    assert template._process is None
    assert templates.ends == []


def test_closed_template_kills_what_runs(templates):
    template = templates(LOOPS_IF_TOLD, cpu_seconds=60)
    template.start()
    worker = pid_of(template)

    with chats_of(template, "loop") as (chat,):
        template.close()

        with pytest.raises(Draining):
            chat.result()
    assert not is_there(worker)
    with pytest.raises(Draining):
        template.render(HI)
    assert templates.ends == [], "nothing is wrong with the template"


def test_system_without_room_for_a_process_is_no_fault_of_the_client(templates, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    template = templates("{{ messages[0].content }}")
    template.start()

    with pytest.raises(RequestError, match=r"cannot be started: .*/nonexistent") as caught:
        template.render(HI)

    assert caught.value.status.reason == Reason.INTERNAL
    monkeypatch.undo()
    assert template.render(HI) == "hi"
