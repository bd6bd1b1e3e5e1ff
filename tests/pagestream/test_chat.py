"""A chat on a terminal and in a pipe, against a real router."""

import io
import sys

import pytest
from rich.console import Console

from pagestream.chat.command import main
from pagestream.chat.printer import Printer
from pagestream.extra import import_with_extra
from pagestream.visible import visible
from router.errors import QueueFull
from servicekit.errors import StartupError
from servicekit.log import flush_log
from tests.pagestream.routers import pagestream_on_terminal, run_pagestream, scripted_router
from tests.router.pipelines import TOKENIZER

CTRL_C, CTRL_D = "\x03", "\x04"
SCRIPT = {
    "introduce": ["Grüße,\nich bin es. 😀"],
    "attack": ["\x1b[2J\x1b]0;owned\x07 and \u202eright\x9b31m"],
    "think": ["<think>hm hm</think>\n\nyes"],
    "go": ["and on and on"],
    "fail": [QueueFull("too much is asked", {})],
}


def prompt_of(request):
    return TOKENIZER.decode(request.prompt_token_ids, skip_special_tokens=False)


@pytest.fixture
def message(tmp_path, monkeypatch):
    """A message on standard input."""
    path = tmp_path / "message"
    path.write_text("hi")
    with path.open() as opened:
        monkeypatch.setattr("sys.stdin", opened)
        yield


async def test_chat_on_a_terminal(tmp_path):
    async with (
        scripted_router(SCRIPT) as fleet,
        pagestream_on_terminal("chat", fleet.address, home=tmp_path) as terminal,
    ):
        await terminal.expect("model small at ")
        await terminal.expect("> ")

        terminal.type("/system be short\r")
        await terminal.expect("the system message is set")
        terminal.type("/set temperature 0.5\r")
        await terminal.expect("temperature = 0.5")
        terminal.type("introduce\r")
        await terminal.expect("Grüße,\r\nich bin es. 😀")
        assert "tokens/s" in await terminal.expect("cached 16")
        assert "be short" in prompt_of(fleet.requests[-1])
        assert fleet.requests[-1].sampling_params.temperature == 0.5

        terminal.type('"""think\r')
        await terminal.expect(". ")
        terminal.type('twice"""\r')
        # Dimmed, and the answer is not.
        await terminal.expect("\x1b[2mh\x1b[0m\x1b[2mm\x1b[0m")
        assert "\x1b" not in (await terminal.expect("yes")).rpartition("\x1b[0m")[2]
        await terminal.expect("cached")
        assert "think\ntwice" in prompt_of(fleet.requests[-1])
        assert "ich bin es" in prompt_of(fleet.requests[-1])

        terminal.type("go\r")
        await terminal.expect("and on and on")
        terminal.type(CTRL_C)
        await terminal.expect("interrupted: ")
        await fleet.wait_idle()

        terminal.type("/rset\r")
        await terminal.expect("did you mean /reset?")
        terminal.type("/reset\r")
        await terminal.expect("the conversation is forgotten")
        terminal.type("fail\r")
        await terminal.expect("QUEUE_FULL: too much is asked")
        terminal.type("attack\r")
        await terminal.expect(r"\x1b[2J\x1b]0;owned\x07 and \u202eright\x9b31m")
        prompt = prompt_of(fleet.requests[-1])
        assert "be short" in prompt
        assert "ich bin es" not in prompt
        assert "fail" not in prompt

        await terminal.expect("> ")
        await terminal.interrupt_until("/quit or Ctrl-D ends the chat")
        # Before that, the terminal itself would take the key, and the line editor would not see it.
        await terminal.expect("> ")
        terminal.type(CTRL_D)
        assert await terminal.exit_code() == 0
    history = tmp_path / ".pagestream_history"
    assert "introduce" in history.read_text().splitlines()
    assert history.stat().st_mode & 0o777 == 0o600


async def test_dumb_terminal_gets_no_escape_sequences(tmp_path):
    async with (
        scripted_router(SCRIPT) as fleet,
        pagestream_on_terminal(
            "chat", fleet.address, "--no-history", home=tmp_path, term="dumb"
        ) as terminal,
    ):
        terminal.type("think\r")
        await terminal.expect("[reasoning]\r\nhm hm\r\n")
        await terminal.expect("[answer]\r\nyes\r\n")
        await terminal.expect("> ")
        terminal.type("/quit\r")
        assert await terminal.exit_code() == 0
        assert "\x1b" not in terminal.output
    assert not (tmp_path / ".pagestream_history").exists()


async def test_pipe_prints_only_the_answer():
    async with scripted_router(SCRIPT) as fleet:
        # What looks like a command is part of the message.
        ended = await run_pagestream("chat", fleet.address, text="/reset\nthink\n")
        assert ended == (0, "yes\n", "")
        assert "/reset\nthink" in prompt_of(fleet.requests[-1])
        ended = await run_pagestream("chat", fleet.address, text="attack")
        assert ended == (0, "\\x1b[2J\\x1b]0;owned\\x07 and \\u202eright\\x9b31m\n", "")
        code, output, errors = await run_pagestream("chat", fleet.address, text="fail")
    assert (code, output) == (1, "")
    assert errors.startswith(f"pagestream chat: {fleet.address}: QUEUE_FULL: too much is asked")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["127.0.0.1:1"], 1, "no router answers at 127.0.0.1:1: "),
        (["http://127.0.0.1:8000"], 2, "this command speaks gRPC"),
        (["localhost"], 2, "the router is 'localhost', which is not \"host:port\""),
        (["--temperature", "101"], 2, "--temperature is 101.0, outside 0 to 100"),
        (["--top-k", "many"], 2, "--top-k is 'many', must be an integer"),
        (["a:1", "b:2"], 2, "there are 2 URLs"),
    ],
)
def test_mistake_is_one_line(arguments, code, said, capfd, message):
    assert main(arguments) == code
    flush_log()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pagestream chat: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc\u00a0d", "a\tb\nc\u00a0d"),
        ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
        ("a\rb\x08\x7f\x85", r"a\rb\x08\x7f\x85"),
        ("\u2028\u2066\ufeff\U000e0041", r"\u2028\u2066\ufeff\U000e0041"),
    ],
)
def test_what_is_text_stays_and_what_steers_is_shown(text, shown):
    assert visible(text) == shown


def test_no_color_leaves_what_is_dim():
    console = Console(file=io.StringIO(), force_terminal=True, no_color=True)
    printer = Printer(console, shows_reasoning=True)
    printer.error("wrong")
    printer.note("small")
    assert console.file.getvalue() == "error: wrong\n\x1b[2msmall\x1b[0m\n"


def test_missing_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("pagestream.chat.session", "pagestream.chat.printer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(StartupError, match=r"rich is missing: pip install 'pagestream\[cli\]'"):
        import_with_extra("pagestream.chat.session")
