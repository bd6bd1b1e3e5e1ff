"""What was said so far, and the request for the next answer."""

import dataclasses

from pagestream.chat.options import SamplingOptions
from protos.pagestream.router.v1 import router_pb2


class Conversation:
    """The messages between one user and one model.

    Args:
        model: Its name; empty means the only one.
        system: Text of the system message; empty means none.
        sampling: How answers are sampled.
    """

    def __init__(self, model: str, system: str, sampling: SamplingOptions) -> None:
        self.model = model
        self.system = system
        self.sampling = sampling
        self._messages: list[router_pb2.ChatMessage] = []

    def reset(self) -> None:
        """Forgets all messages but that of the system."""
        self._messages.clear()

    def request(self, text: str) -> router_pb2.GenerateRequest:
        """Returns the request for the answer to a text of the user."""
        system = [router_pb2.ChatMessage(role="system", content=self.system)] if self.system else []
        user = router_pb2.ChatMessage(role="user", content=text)
        set_values = {
            name: value
            for name, value in dataclasses.asdict(self.sampling).items()
            if value is not None
        }
        return router_pb2.GenerateRequest(
            model=self.model,
            chat=router_pb2.Chat(messages=[*system, *self._messages, user]),
            sampling_params=router_pb2.SamplingParams(**set_values),
        )

    def add(self, text: str, answer: str, reasoning: str) -> None:
        """Adds what the user said and the model answered."""
        self._messages.append(router_pb2.ChatMessage(role="user", content=text))
        self._messages.append(
            router_pb2.ChatMessage(role="assistant", content=answer, reasoning=reasoning)
        )
