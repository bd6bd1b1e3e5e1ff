"""The options of `pagestream chat`, of which those of sampling can also be set while it runs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pagestream.connection import REFUSED, Connection, ConnectionOptions
from pagestream.entry import split_arguments
from pagestream.environment import api_key
from pagestream.router_client import DEFAULT_ROUTER, is_secure, router_address
from protos.pagestream.router.v1 import router_pb2
from protos.wire.sampling_params import SamplingParams, out_of_bounds
from servicekit.common_options import MAX_SECONDS
from servicekit.errors import StartupError
from servicekit.options import OptionReader, Options, about
from servicekit.values import Flags, Names, Texts, quoted, seconds

_MODELS = "the model's"


@dataclass(frozen=True, slots=True)
class _SamplingValues:
    """Values of a sampling parameter, with the bounds that router and engines check.

    Args:
        name: The parameter.
        kind: What its values are.
    """

    name: str
    kind: type[int] | type[float]

    def parse(self, text: str) -> object:
        """Returns a number, or the text."""
        try:
            return self.kind(text)
        except ValueError:
            return text

    def check(self, value: object) -> None:
        """Refuses what is no number or out of bounds."""
        noun = "an integer" if self.kind is int else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"is {quoted(value)}, must be {noun}")
        changes: dict[str, Any] = {self.name: value}
        fault = out_of_bounds(dataclasses.replace(SamplingParams(), **changes))
        if fault is not None:
            raise ValueError(f"is {quoted(value)}, outside {fault.bounds}")
        try:
            setattr(router_pb2.SamplingParams(), self.name, value)
        except (TypeError, ValueError):
            raise ValueError(f"is {quoted(value)}, must be {noun} of 32 bits") from None


def _number(name: str, kind: type[int] | type[float], help: str, unset: str) -> Any:  # noqa: ANN401
    """Returns the field of a sampling parameter that is unset."""
    return field(default=None, metadata=about(_SamplingValues(name, kind), help, unset=unset))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions(Options):
    """How answers are sampled; /set changes it."""

    temperature: float | None = _number(
        "temperature", float, "divides the logits; 0 is greedy", _MODELS
    )
    max_tokens: int | None = _number(
        "max_tokens", int, "maximum tokens of an answer", "up to the model's length"
    )
    top_p: float | None = _number(
        "top_p", float, "keeps the most likely tokens up to this probability", _MODELS
    )
    top_k: int | None = _number("top_k", int, "keeps the k most likely tokens", _MODELS)
    min_p: float | None = _number(
        "min_p", float, "keeps tokens at least this likely, relative to the likeliest", _MODELS
    )
    presence_penalty: float | None = _number(
        "presence_penalty", float, "lowers the logits of tokens already generated", "0"
    )
    frequency_penalty: float | None = _number(
        "frequency_penalty", float, "the same, by how often they were generated", "0"
    )
    repetition_penalty: float | None = _number(
        "repetition_penalty", float, "divides the logits of tokens already seen", _MODELS
    )
    seed: int | None = _number(
        "seed", int, "fixes the draws of each answer", "the engine picks one"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(Options):
    """Which model is asked, and what is shown."""

    model: str = field(
        default="", metadata=about(Names(), "name of the model", unset="the only one served")
    )
    system: str = field(
        default="",
        metadata=about(
            Texts(r"[^\ud800-\udfff]*", "a text in UTF-8"),
            "text of the system message; /system changes it",
            unset="none",
        ),
    )
    reasoning: bool = field(
        default=True,
        metadata=about(Flags(), "shows the model's reasoning in a terminal, dimmed"),
    )
    history: bool = field(
        default=True,
        metadata=about(Flags(), "keeps typed lines in ~/.pagestream_history, for the arrow keys"),
    )
    answer_seconds: float = field(
        default=600.0,
        metadata=about(seconds(0.1, MAX_SECONDS), "seconds that one answer may take"),
    )


GROUPS = {"Chat": ChatOptions, "Connection": ConnectionOptions, "Sampling": SamplingOptions}
ENVIRONMENT_PREFIX = "PAGESTREAM_CHAT_"
READER = OptionReader(
    program="pagestream chat [URL]",
    description="Chats with a model in the terminal. URL is the gRPC port of a router "
    f"({DEFAULT_ROUTER}). In a pipe, standard input is the message, and only the answer is "
    "printed.",
    prefix=ENVIRONMENT_PREFIX,
    groups=GROUPS,
    refused=REFUSED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """All that the command line says."""

    router: str
    connection: Connection
    chat: ChatOptions
    sampling: SamplingOptions


def read_config(arguments: Sequence[str]) -> ChatConfig:
    """Reads the command line; `--help` prints the options and exits.

    Raises:
        StartupError: Something in it is wrong; the message says what.
    """
    urls, options = split_arguments(arguments, GROUPS)
    given = READER.read(options)
    if len(urls) > 1:
        raise StartupError(f"there are {len(urls)} URLs, and a chat has one router")
    url = urls[0] if urls else DEFAULT_ROUTER
    return ChatConfig(
        router=router_address(url),
        connection=Connection(given.build(ConnectionOptions), api_key(), is_secure=is_secure(url)),
        chat=given.build(ChatOptions),
        sampling=given.build(SamplingOptions),
    )
