"""Who is measured: the ways to send a request and read what comes."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from pagestream.bench.results import Usage
from pagestream.bench.workload import Request
from pagestream.errors import CommandFailed
from protos.wire.printable import shown

_MAX_LISTED_MODELS = 20


class RequestFailed(Exception):
    """A request was refused or broke off; the text is the reason, such as "QUEUE_FULL"."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its server lists it.

    Attributes:
        max_length: The most tokens of prompt and answer together; 0 if it is not known.
    """

    name: str
    max_length: int = 0


class Target(Protocol):
    """A server; an async context manager that is connected while it is entered."""

    async def models(self) -> list[Model]:
        """Returns the models.

        Raises:
            CommandFailed: The server does not answer as it should.
        """

    def ask(self, model: str, request: Request, usage: Usage) -> AsyncGenerator[int, None]:
        """Sends a request; yields the new tokens of each message as it comes, and fills in `usage`.

        Raises:
            RequestFailed: It did not come to its end.
        """


def choose(models: list[Model], wanted: str, address: str) -> Model:
    """Returns the model that was asked for, or the only one.

    Raises:
        CommandFailed: There is none, or there are several.
    """
    for model in models:
        if model.name == wanted or (not wanted and len(models) == 1):
            return model
    names = [shown(model.name) for model in models[:_MAX_LISTED_MODELS]]
    listed = f"serves {', '.join(names)}" if names else "serves no model"
    advice = f"not {shown(wanted)}" if wanted else "choose one with --model"
    raise CommandFailed(f"{address} {listed}" + (f"; {advice}" if names else ""))
