"""A chat of one message that comes by a pipe: only the answer is printed."""

import signal
import sys

from pagestream.chat.answer import Answer, Router
from pagestream.chat.conversation import Conversation
from pagestream.chat.options import ChatConfig
from pagestream.errors import CommandFailed
from pagestream.visible import visible
from protos.wire.limits import MAX_PROMPT_BYTES
from servicekit.process import exit_code_of


def run(config: ChatConfig) -> int:
    """Asks what standard input holds and prints the answer; returns the exit code.

    Raises:
        CommandFailed: The message cannot be sent, or the answer did not come to its end.
    """
    text = _message()
    conversation = Conversation(config.chat.model, config.chat.system, config.sampling)
    # The output may end up on a terminal after all, and may have another encoding.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    answer = Answer()
    with Router(config.router, config.connection, config.chat.answer_seconds) as router:
        try:
            for response in router.ask(conversation.request(text), answer):
                sys.stdout.write(visible(response.text))
                sys.stdout.flush()
        finally:
            if answer.texts and not answer.texts[-1].endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()
    return exit_code_of(signal.SIGINT) if answer.is_interrupted else 0


def _message() -> str:
    content = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(content) > MAX_PROMPT_BYTES:
        raise CommandFailed(f"standard input has more than {MAX_PROMPT_BYTES} bytes")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError as error:
        raise CommandFailed(
            f"standard input is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    if not text:
        raise CommandFailed("standard input is empty; it is the message in a pipe")
    return text
