"""The worker process of a chat template: its end, its lies, and what it holds."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from router.errors import InvalidRequest
from router.text import template_worker
from router.text.chat_template import TemplateSettings
from router.text.template_process import TemplateProcess
from tests.router.text.templates import (
    HI,
    LOOPS_IF_TOLD,
    files_of,
    is_running,
    is_there,
    pid_of,
    says,
    until,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def lie(monkeypatch, tmp_path):
    """Makes workers load a template and then do something else: one that escaped its sandbox."""

    def lie(*lines):
        liar = tmp_path / "liar.py"
        loads = ("import os", "os.read(0, 1 << 16)", "os.write(1, b'T' + bytes(4))")
        liar.write_text("\n".join((*loads, *lines)))
        monkeypatch.setattr(template_worker, "__file__", str(liar))

    return lie


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
def test_worker_that_lies_is_ended(templates, lie, monkeypatch, answer, cause):
    stays = "os.read(0, 1)" if cause == "protocol" else ""
    lie("os.read(0, 1 << 16)", f"os.write(1, {answer})", stays)
    template = templates("{{ messages[0].content }}")
    template.start()
    worker = pid_of(template)

    with pytest.raises(InvalidRequest, match="worker process of the model's chat template failed"):
        template.render(HI)

    assert templates.ends == [cause]
    assert not is_there(worker)
    monkeypatch.undo()
    assert template.render(HI) == "hi"


def test_worker_that_speaks_unasked_is_ended(templates, lie, monkeypatch, tmp_path):
    told = tmp_path / "told"
    os.mkfifo(told)
    lie(f"open({str(told)!r}).read()", "os.write(1, bytes(1000))", "os.read(0, 1)")
    template = templates("{{ messages[0].content }}")
    template.start()
    told.write_text("")
    assert select.select([template._process._socket], [], [], 10)[0]
    monkeypatch.undo()

    assert template.render(HI) == "hi", "by the next worker"
    assert templates.ends == ["protocol"]


def test_worker_that_dies_of_a_signal_without_a_name_is_replaced(templates, lie, monkeypatch):
    lie("os.read(0, 1 << 16)", "os.kill(os.getpid(), 36)")
    template = templates("{{ messages[0].content }}")

    with pytest.raises(
        InvalidRequest, match="worker process of the model's chat template failed \\(signal 36\\)"
    ):
        template.render(HI)

    monkeypatch.undo()
    assert template.render(HI) == "hi"


def test_worker_that_drips_is_ended_by_the_clock(templates, lie, monkeypatch):
    lie(
        "os.read(0, 1 << 16)",
        "os.write(1, b'T' + (1 << 29).to_bytes(4, 'big'))",
        # Several, so that there is always a byte to read.
        "for _ in range(3): os.fork()",
        "while True: os.write(1, b'x')",
    )
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
        from router.types.prompts import ChatMessage, ChatPrompt

        template = ChatTemplate({LOOPS_IF_TOLD!r}, {{}}, TemplateSettings(cpu_seconds=1))
        template.start()
        print(template._process.pid, flush=True)
        if {text!r} == "loop":
            template.render(ChatPrompt(messages=(ChatMessage(role="user", content="loop"),)))
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
