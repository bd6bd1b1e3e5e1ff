"""`pagestream completion SHELL`: prints the script of a shell."""

from collections.abc import Sequence

from pagestream.commands import COMMANDS
from pagestream.completion.options import READER, CompletionOptions
from pagestream.completion.scripts import SCRIPTS
from pagestream.completion.words import words_of
from servicekit.errors import StartupError
from servicekit.log import print_error


def main(arguments: Sequence[str]) -> int:
    """Prints the script; returns the exit code."""
    try:
        options = READER.read(arguments).build(CompletionOptions)
    except StartupError as error:
        print_error("pagestream completion", error)
        return 2
    print(SCRIPTS[options.shell](words_of(COMMANDS)), end="")
    return 0
