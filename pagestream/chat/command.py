"""Starts a chat."""

import sys
from collections.abc import Sequence

from pagestream.chat.options import read_config
from pagestream.entry import run_command
from pagestream.extra import import_with_extra


def main(arguments: Sequence[str]) -> int:
    """Chats until told to end, or answers what comes by a pipe; returns the exit code."""

    def chat() -> int:
        config = read_config(arguments)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        module = "pagestream.chat.session" if is_terminal else "pagestream.chat.pipe"
        code: int = import_with_extra(module).run(config)
        return code

    return run_command("chat", chat)
