"""A pipeline on a fake fleet for a test, and the ways to ask it."""

import asyncio
from array import array
from contextlib import aclosing

from router.request.pipeline import Bounds
from router.text.tokenizer import Tokenizer
from router.types.generation import GenerationRequest
from router.types.prompts import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import FakeFleet, model_info

TOKENIZER = Tokenizer.from_files(small_tokenizer.files())
END = TOKENIZER.backend.token_to_id(small_tokenizer.END)
TEXT = TextPrompt(text="the quick brown fox")
NAN, INFINITY = float("nan"), float("inf")
BOUNDS = Bounds(
    max_concurrent_requests=2,
    max_prompt_bytes=1000,
    max_request_bytes=2000,
    max_queued_prompt_tokens=200,
)


def fleet_without_chats(**changes) -> FakeFleet:
    """Returns a fleet of a model that has no chat template, whose process takes time to start."""
    fleet = FakeFleet(model_info(**changes))
    fleet.files = small_tokenizer.files(chat_template=None)
    return fleet


class Recorder:
    """An observer of all models that writes down what it hears.

    Attributes:
        calls: What it heard of the requests.
        models: Of which model each of them was; None if it is not served.
        num_queued: Tokens that wait for an engine.
    """

    def __init__(self):
        self.calls = []
        self.models = []
        self.num_queued = 0
        self._asked = None

    def of_model(self, name):
        self._asked = name
        return self

    def of_request(self, name):
        self._asked = None
        return self

    @property
    def names(self):
        return [name for name, *_ in self.calls]

    def started(self):
        self.calls.append(("started",))
        self.models.append(self._asked)

    def tokenized(self, seconds):
        self.calls.append(("tokenized",))

    def queued(self, num_prompt_tokens):
        self.num_queued += num_prompt_tokens

    def handed_over(self, num_prompt_tokens, max_tokens):
        self.calls.append(("handed_over", num_prompt_tokens))

    def generated(self, num_tokens, seconds, *, is_first):
        self.calls.append(("generated", num_tokens, is_first))

    def ended(self, outcome, seconds, num_tokens):
        self.calls.append(("ended", outcome))


def request(prompt=TEXT, **changes) -> GenerationRequest:
    return GenerationRequest(
        **{"request_id": "mine", "model": "small", "prompt": prompt, **changes}
    )


def tokens(*token_ids) -> TokenPrompt:
    return TokenPrompt(token_ids=array("I", token_ids))


def chat(*messages) -> ChatPrompt:
    return ChatPrompt(messages=tuple(ChatMessage(role=r, content=c) for r, c in messages))


async def collect(pipeline, generation):
    async with asyncio.timeout(10), aclosing(pipeline.generate(generation)) as deltas:
        return [delta async for delta in deltas]
