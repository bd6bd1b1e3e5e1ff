"""The options of `pagestream completion`."""

from dataclasses import dataclass, field

from servicekit.options import OptionReader, Options, about
from servicekit.values import OneOf

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions(Options):
    """Which script."""

    shell: str = field(
        metadata=about(OneOf(SHELLS), "the shell: bash, zsh or fish", is_positional=True)
    )


READER = OptionReader(
    program="pagestream completion",
    description="Prints a script that lets a shell complete commands, options and their choices. "
    "For bash and zsh: source <(pagestream completion bash). For fish: pagestream completion fish "
    "| source.",
    prefix="PAGESTREAM_COMPLETION_",
    groups={"completion": CompletionOptions},
)
