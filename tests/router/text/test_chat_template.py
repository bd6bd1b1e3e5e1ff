import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from protos.wire.reason import Reason
from router.errors import Draining, InvalidRequest, RequestError
from router.text import template_worker
from router.text.chat_template import ChatTemplate, TemplateSettings
from router.text.template_process import TemplateProcess
from router.text.tokenizer import Tokenizer
from router.types import ChatMessage
from tests.fakes import small_tokenizer

ROOT = Path(__file__).parents[3]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HI = (ChatMessage(role="user", content="hi"),)
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LOOPS_IF_TOLD = (
    "{% if messages[0].content == 'loop' %}" + FOREVER + "{% endif %}{{ messages[0].content }}"
)
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
        "rejected them: it has 1048577 characters, over the limit of 1048576",
    ),
    "number": (5, "rejected them: it is of type int, not a string"),
    "several": ({"tool_use": "x"}, "rejected them: it is of type dict, not a string"),
}
DEFAULTS = TemplateSettings()
# Enough for the hostile not to last, and bounds that they pass soon.
HASTY = TemplateSettings(cpu_seconds=0.2, max_prompt_bytes=160 << 10)


class Templates:
    """Chat templates that are closed in the end, and why their workers ended."""

    def __init__(self):
        self.ends = []
        self._made = []

    def __call__(self, source, settings=DEFAULTS, **changes):
        settings = dataclasses.replace(settings, on_end=self.ends.append, **changes)
        template = ChatTemplate(source, SPECIAL_TOKENS, settings)
        self._made.append(template)
        return template

    def close(self):
        for template in self._made:
            template.close()


@pytest.fixture
def templates():
    made = Templates()
    yield made
    made.close()


def says(text):
    return (ChatMessage(role="user", content=text),)


def pid_of(template):
    return template._process.pid


def is_there(pid):
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def files_of(pid):
    folder = Path(f"/proc/{pid}/fd")
    return {entry.name: str(entry.readlink()) for entry in folder.iterdir()}


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def chats_of(template, *texts):
    """The futures of chats that begin one after the other, in threads of their own."""
    with ThreadPoolExecutor(len(texts)) as threads:
        futures = []
        for text in texts:
            futures.append(threads.submit(template.render, says(text)))
            until(lambda: template._turn.locked() or futures[-1].done())
        yield futures


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
        assert template.render(HI) == expected == f"{small_tokenizer.END}hi"
    finally:
        template.close()


@pytest.mark.parametrize("source", [None, ""])
def test_missing_template_is_named_and_has_no_worker(templates, source):
    template = templates(source)
    template.start()

    with pytest.raises(InvalidRequest, match="no chat template; send text") as caught:
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


def test_worker_that_dies_is_replaced(templates):
    template = templates("{{ messages[0].content }}")
    template.start()
    worker = pid_of(template)

    os.kill(worker, signal.SIGKILL)
    until(lambda: not is_running(worker))

    assert template.render(HI) == "hi", "it is no fault of this chat"
    assert templates.ends == ["died"]
    assert pid_of(template) != worker


def test_worker_hears_of_no_signal_to_the_service_and_holds_nothing_of_it(templates):
    template = templates("{{ messages[0].content }}")
    template.start()
    worker = pid_of(template)

    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)

    assert template.render(HI) == "hi"
    assert pid_of(template) == worker
    assert os.getpgid(worker) == os.getsid(worker) == worker
    held = files_of(worker)
    assert held.keys() == {"0", "1", "2"}
    assert held["0"] == held["1"]
    assert held["0"].startswith("socket:")
    assert held["2"] == "/dev/null"


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


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("b'T' + b'\\xff' * 4", "protocol"),
        ("b'E' + (3000).to_bytes(4, 'big')", "protocol"),
        ("b'X' + bytes(4)", "protocol"),
        ("b'T' + (2).to_bytes(4, 'big') + b'\\xff\\xff'", "protocol"),
        ("b'T' + bytes(4) + b'more'", "protocol"),
        ("b''", "died"),
        ("b'T'", "died"),
    ],
)
def test_worker_that_lies_is_ended(templates, monkeypatch, tmp_path, answer, cause):
    liar = tmp_path / "liar.py"
    # What a template could do that escaped its sandbox.
    liar.write_text(
        "import os\n"
        "os.read(0, 1 << 16)\n"
        "os.write(1, b'T' + bytes(4))\n"
        "os.read(0, 1 << 16)\n"
        f"os.write(1, {answer})\n"
        f"{'os.read(0, 1)' if cause == 'protocol' else ''}\n"
    )
    monkeypatch.setattr(template_worker, "__file__", str(liar))
    template = templates("{{ messages[0].content }}")
    template.start()
    worker = pid_of(template)

    with pytest.raises(InvalidRequest, match="broke its worker"):
        template.render(HI)

    assert templates.ends == [cause]
    assert not is_there(worker)
    monkeypatch.undo()
    assert template.render(HI) == "hi"


def test_worker_that_speaks_unasked_is_ended(templates, monkeypatch, tmp_path):
    liar = tmp_path / "liar.py"
    liar.write_text(
        "import os, time\n"
        "os.read(0, 1 << 16)\n"
        "os.write(1, b'T' + bytes(4))\n"
        "time.sleep(0.2)\n"
        "os.write(1, bytes(1000))\n"
        "os.read(0, 1)\n"
    )
    monkeypatch.setattr(template_worker, "__file__", str(liar))
    template = templates("{{ messages[0].content }}")
    template.start()
    time.sleep(0.5)
    monkeypatch.undo()

    assert template.render(HI) == "hi", "by the next worker"
    assert templates.ends == ["protocol"]


def test_worker_that_dies_of_a_signal_without_a_name_is_replaced(templates, monkeypatch, tmp_path):
    liar = tmp_path / "liar.py"
    liar.write_text(
        "import os\n"
        "os.read(0, 1 << 16)\n"
        "os.write(1, b'T' + bytes(4))\n"
        "os.read(0, 1 << 16)\n"
        "os.kill(os.getpid(), 36)\n"
    )
    monkeypatch.setattr(template_worker, "__file__", str(liar))
    template = templates("{{ messages[0].content }}")

    with pytest.raises(InvalidRequest, match="broke its worker process \\(signal 36\\)"):
        template.render(HI)

    monkeypatch.undo()
    assert template.render(HI) == "hi"


def test_worker_that_drips_is_ended_by_the_clock(templates, monkeypatch, tmp_path):
    liar = tmp_path / "liar.py"
    # Several, so that there is always a byte to read.
    liar.write_text(
        "import os\n"
        "os.read(0, 1 << 16)\n"
        "os.write(1, b'T' + bytes(4))\n"
        "os.read(0, 1 << 16)\n"
        "os.write(1, b'T' + (1 << 29).to_bytes(4, 'big'))\n"
        "for _ in range(3): os.fork()\n"
        "while True: os.write(1, b'x')\n"
    )
    monkeypatch.setattr(template_worker, "__file__", str(liar))
    monkeypatch.setattr(TemplateSettings, "deadline", 0.2)
    template = templates("{{ messages[0].content }}", max_prompt_bytes=1 << 29)

    # All that it announces would take it hours.
    with pytest.raises(InvalidRequest, match="took longer than"):
        template.render(HI)


@pytest.mark.parametrize("number", [1, 2])
def test_error_in_an_exchange_mixes_no_answers_up(templates, monkeypatch, number):
    template = templates("{{ messages[0].content }}")
    read, calls = TemplateProcess._read, []

    def fails(process, deadline):
        calls.append(process)
        if len(calls) == number:
            raise MemoryError
        return read(process, deadline)

    monkeypatch.setattr(TemplateProcess, "_read", fails)
    with pytest.raises(MemoryError):
        template.render(says("secret"))

    assert [template.render(says(text)) for text in "abc"] == ["a", "b", "c"]


def test_worker_that_is_silent_is_ended_by_the_clock(templates, monkeypatch):
    monkeypatch.setattr(TemplateSettings, "deadline", 0.5)
    template = templates(LOOPS_IF_TOLD, cpu_seconds=60)

    with pytest.raises(InvalidRequest, match="took longer than 60 s"):
        template.render(says("loop"))

    assert templates.ends == ["time"]


@pytest.mark.parametrize("text", ["idle", "loop"])
def test_worker_ends_with_a_router_that_is_killed(text):
    script = f"""
        import time
        from router.text.chat_template import ChatTemplate, TemplateSettings
        from router.types import ChatMessage

        template = ChatTemplate({LOOPS_IF_TOLD!r}, {{}}, TemplateSettings(cpu_seconds=1))
        template.start()
        print(template._process.pid, flush=True)
        if {text!r} == "loop":
            template.render([ChatMessage(role="user", content="loop")])
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as router:
        worker = int(router.stdout.readline())
        assert is_running(worker)
        router.kill()
    try:
        until(lambda: not is_running(worker))
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
