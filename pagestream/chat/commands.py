"""The commands of a chat, such as /reset."""

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pagestream.chat.conversation import Conversation
from pagestream.chat.options import SamplingOptions
from pagestream.chat.printer import Printer
from protos.wire.printable import shown

if TYPE_CHECKING:
    from servicekit.values import Values


@dataclass(slots=True)
class Chat:
    """What commands look at and change."""

    conversation: Conversation
    printer: Printer
    is_over: bool = False


class _Command(NamedTuple):
    usage: str
    summary: str
    run: Callable[[Chat, str], None]


def run_command_line(chat: Chat, line: str) -> None:
    """Does what a line such as "/set temperature 0.7" says, or prints what is wrong with it."""
    name, _, argument = line.removeprefix("/").partition(" ")
    command = _COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        advice = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        chat.printer.error(f"there is no command /{shown(name, 50)}; {advice}")
        return
    command.run(chat, argument.strip())


def _help(chat: Chat, _: str) -> None:
    width = max(len(command.usage) for command in _COMMANDS.values())
    for command in _COMMANDS.values():
        chat.printer.note(f"{command.usage:{width}}  {command.summary}")
    chat.printer.note('A message that begins with """ goes on over several lines, until """.')
    chat.printer.note("Ctrl-C ends an answer, Ctrl-D the chat.")


def _reset(chat: Chat, _: str) -> None:
    chat.conversation.reset()
    chat.printer.note("the conversation is forgotten")


def _system(chat: Chat, text: str) -> None:
    chat.conversation.system = text
    chat.conversation.reset()
    said = "set" if text else "removed"
    chat.printer.note(f"the system message is {said}, the conversation forgotten")


def _set(chat: Chat, argument: str) -> None:
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    options = {option.name: option for option in dataclasses.fields(SamplingOptions)}
    if not name:
        for one in options:
            value = getattr(chat.conversation.sampling, one)
            unset = options[one].metadata["unset"]
            chat.printer.note(f"{one} = {f'unset: {unset}' if value is None else value}")
        return
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(options)}"
        chat.printer.error(f"there is no option {shown(name, 50)!r}; {advice}")
        return
    values: Values = options[name].metadata["values"]
    value = None
    if text.strip():
        try:
            value = values.parse(text.strip())
            values.check(value)
        except ValueError as error:
            chat.printer.error(f"{name} {error}")
            return
    chat.conversation.sampling = dataclasses.replace(chat.conversation.sampling, **{name: value})
    chat.printer.note(f"{name} is unset" if value is None else f"{name} = {value}")


def _quit(chat: Chat, _: str) -> None:
    chat.is_over = True


_COMMANDS = {
    "help": _Command("/help", "lists the commands", _help),
    "reset": _Command("/reset", "forgets the conversation", _reset),
    "system": _Command("/system TEXT", "sets the system message; no TEXT removes it", _system),
    "set": _Command(
        "/set NAME VALUE",
        "sets a sampling option; no VALUE unsets it, /set alone shows all",
        _set,
    ),
    "quit": _Command("/quit", "ends the chat", _quit),
}
