"""One answer of a model as it streams."""

import time
from collections.abc import Generator
from dataclasses import dataclass, field

import grpc

from pagestream.chat.interruption import Interruption
from pagestream.connection import Connection
from pagestream.errors import CommandFailed
from pagestream.router_client import describe
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.limits import MAX_PROMPT_BYTES

_MAX_CHARACTERS = MAX_PROMPT_BYTES
"""Of an answer; a longer one could not be sent back as part of a prompt."""


@dataclass(slots=True)
class Answer:
    """What came so far; times are seconds since the request was sent.

    Attributes:
        finish: Why it ended, a `router_pb2.FinishReason`; unspecified if it did not end.
        num_first_tokens: Tokens that came at once with the first one.
        is_interrupted: Whether Ctrl-C ended it.
    """

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    is_interrupted: bool = False
    finish: int = router_pb2.FINISH_REASON_UNSPECIFIED
    num_tokens: int = 0
    num_first_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    first_token: float = 0.0
    last_token: float = 0.0

    @property
    def text(self) -> str:
        """The answer without reasoning."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """The reasoning."""
        return "".join(self.reasonings)

    @property
    def summary(self) -> str:
        """Counts and rates on one line."""
        if not self.num_tokens:
            return "no tokens"
        words = [
            f"{self.num_tokens:,} tokens in {self.last_token:.2f} s",
            f"first after {self.first_token:.2f} s",
            f"prompt {self.num_prompt_tokens:,}",
            f"cached {self.num_cached_tokens:,}",
        ]
        if self.last_token > self.first_token:
            rate = (self.num_tokens - self.num_first_tokens) / (self.last_token - self.first_token)
            words.insert(1, f"{rate:,.1f} tokens/s")
        if self.finish == router_pb2.FINISH_REASON_LENGTH:
            words.append("ended by its length")
        return ", ".join(words)


class Router:
    """The connection to a router; closed at the end of the block.

    It is that of gRPC: it carries reasoning, counts of tokens and what was cached, every router has
    it, and it needs no package beyond those of the services.
    """

    def __init__(self, address: str, connection: Connection, answer_seconds: float) -> None:
        self._address = address
        self._connection = connection
        self._answer_seconds = answer_seconds
        self._channel = connection.channel(address)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Router":
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def models(self, seconds: float) -> list[str]:
        """Returns the names of the models that are served.

        Raises:
            CommandFailed: The router does not answer within so many seconds.
        """
        try:
            response = self._stub.ListModels(
                router_pb2.ListModelsRequest(),
                timeout=seconds,
                metadata=self._connection.metadata,
            )
        except grpc.RpcError as error:
            raise self._failure(error) from None
        return [model.name for model in response.models]

    def ask(
        self, request: router_pb2.GenerateRequest, answer: Answer
    ) -> Generator[router_pb2.GenerateResponse, None, None]:
        """Yields what is new, which is also added to `answer`.

        Leaving early ends the request, and so does Ctrl-C, which is no error. Must be called in the
        main thread.

        Raises:
            CommandFailed: The request failed; what came before is in `answer`.
        """
        started = time.monotonic()
        call = self._stub.Generate(
            request, timeout=self._answer_seconds, metadata=self._connection.metadata
        )
        num_characters = 0
        with Interruption(call.cancel) as interruption:
            try:
                for response in call:
                    _add(answer, response, time.monotonic() - started)
                    num_characters += len(response.text) + len(response.reasoning_text)
                    if num_characters > _MAX_CHARACTERS:
                        raise CommandFailed(
                            f"the answer is longer than {_MAX_CHARACTERS} characters"
                        )
                    yield response
            except grpc.RpcError as error:
                if not interruption.has_come:
                    raise self._failure(error) from None
                answer.is_interrupted = True
                return
            finally:
                call.cancel()
        if answer.finish == router_pb2.FINISH_REASON_UNSPECIFIED:
            raise CommandFailed(f"{self._address}: the answer ended without a reason")

    def _failure(self, error: grpc.RpcError) -> CommandFailed:
        return CommandFailed(describe(self._address, error, self._connection.advice))


def _add(answer: Answer, response: router_pb2.GenerateResponse, seconds: float) -> None:
    if response.text:
        answer.texts.append(response.text)
    if response.reasoning_text:
        answer.reasonings.append(response.reasoning_text)
    if response.HasField("admission"):
        answer.num_prompt_tokens = response.admission.prompt_token_count
        answer.num_cached_tokens = response.admission.cached_token_count
    if response.token_ids:
        if not answer.num_tokens:
            answer.first_token = seconds
            answer.num_first_tokens = len(response.token_ids)
        answer.last_token = seconds
        answer.num_tokens += len(response.token_ids)
    if response.HasField("finish"):
        answer.finish = response.finish.reason
