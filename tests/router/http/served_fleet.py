"""A fleet behind a door that all tests of a module share, and ways to make it say something."""

import asyncio
from contextlib import aclosing

from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.pipelines import TOKENIZER


class ServedFleet(FakeFleet):
    """A fleet with room for a longer chat, whose engines can do all.

    Attributes:
        port: Where its door listens.
        is_left: Set when a request has ended.
    """

    def __init__(self, *, template=None, max_logprobs=20):
        super().__init__(
            model_info(max_model_len=4096, supported_params=ALL_PARAMS, max_logprobs=max_logprobs)
        )
        if template is not None:
            self.files = small_tokenizer.files(chat_template=template)
        self.port = 0
        self.is_left = asyncio.Event()

    def reset(self):
        """Forgets all that was asked and put."""
        assert self.num_open == 0
        self.requests.clear()
        self.sample_events.clear()
        self.is_asked.clear()
        self.is_left.clear()
        self.error = None

    async def generate(self, request):
        try:
            async with aclosing(super().generate(request)) as events:
                async for event in events:
                    yield event
        finally:
            self.is_left.set()


def say(fleet, text, index=None, *, is_cut=False):
    """Makes a fleet's next answer a text, token by token."""
    chunks = [[token_id] for token_id in TOKENIZER.encode_text(text).tolist()]
    end = [] if is_cut else [[1]]
    fleet.answer(*chunks, *end, stop_token_id=None if is_cut else 1, index=index)


def prompt_of(fleet, number=-1):
    """Returns the text that an engine got, by default the latest."""
    token_ids = fleet.requests[number].prompt_token_ids
    return TOKENIZER.decode(token_ids, skip_special_tokens=False)
