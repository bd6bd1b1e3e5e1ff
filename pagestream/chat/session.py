"""A chat on a terminal: lines in, answers out, and the commands that begin with a slash."""

import contextlib
import sys

from rich.console import Console

from pagestream.chat.answer import Answer, Router
from pagestream.chat.commands import Chat, run_command_line
from pagestream.chat.conversation import Conversation
from pagestream.chat.line_input import LineInput
from pagestream.chat.options import ChatConfig
from pagestream.chat.printer import Printer
from pagestream.errors import CommandFailed
from pagestream.router_client import CALL_SECONDS
from protos.wire.printable import shown

_MAX_LISTED_MODELS = 20


def run(config: ChatConfig) -> int:
    """Chats until the input ends; returns the exit code.

    Raises:
        CommandFailed: The router cannot be reached, or serves several models and none is chosen.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    printer = Printer(Console(highlight=False), shows_reasoning=config.chat.reasoning)
    with Router(config.router, config.connection, config.chat.answer_seconds) as router:
        model = _choose(router.models(CALL_SECONDS), config.chat.model)
        conversation = Conversation(config.chat.model, config.chat.system, config.sampling)
        name = f"model {shown(model)}" if model else "no model yet"
        printer.note(f"{name} at {config.router}; /help lists the commands, Ctrl-D ends")
        with LineInput(keeps_history=config.chat.history) as lines:
            _Session(Chat(conversation, printer), router, lines).run()
    return 0


def _choose(models: list[str], wanted: str) -> str:
    """Returns the model that will answer, or an empty text if none is served."""
    if wanted and wanted not in models:
        raise CommandFailed(f"the model {wanted!r} is not served; {_listed(models)}")
    if not wanted and len(models) > 1:
        raise CommandFailed(f"choose one with --model; {_listed(models)}")
    return wanted or (models[0] if models else "")


def _listed(models: list[str]) -> str:
    if not models:
        return "the router serves none"
    names = [shown(name) for name in models[:_MAX_LISTED_MODELS]]
    return f"the router serves {', '.join(names)}"


class _Session:
    """Reads and answers one message after the other."""

    def __init__(self, chat: Chat, router: Router, lines: LineInput) -> None:
        self._chat = chat
        self._router = router
        self._lines = lines

    def run(self) -> None:
        """Returns when the input ends."""
        printer = self._chat.printer
        while not self._chat.is_over:
            try:
                text = self._lines.read()
            except KeyboardInterrupt:
                printer.note("\n/quit or Ctrl-D ends the chat")
                continue
            except EOFError:
                printer.note("")
                return
            except ValueError as error:
                printer.error(str(error))
                continue
            if text.startswith("/"):
                run_command_line(self._chat, text)
            elif text:
                self._answer(text)

    def _answer(self, text: str) -> None:
        """Prints the answer to a text and keeps both, unless nothing came."""
        chat, printer = self._chat, self._chat.printer
        answer = Answer()
        note = ""
        try:
            request = chat.conversation.request(text)
            with contextlib.closing(self._router.ask(request, answer)) as responses:
                for response in responses:
                    printer.show(response.text, response.reasoning_text)
            note = answer.summary
            if answer.is_interrupted:
                note = f"interrupted: {note}"
        except CommandFailed as error:
            printer.end_answer()
            printer.error(error.message)
        printer.end_answer()
        if answer.text:
            chat.conversation.add(text, answer.text, answer.reasoning)
        if note:
            printer.note(note)
