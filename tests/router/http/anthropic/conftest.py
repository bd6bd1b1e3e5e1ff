"""One door in front of one fleet for all tests of a module: a chat template takes time to start."""

import asyncio
import json
from contextlib import asynccontextmanager

import anthropic
import httpx
import pytest
import pytest_asyncio

from router.text.tokenizer import Tokenizer
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, FakeFleet, model_info
from tests.router.http.anthropic.requests import BASE
from tests.router.http.serving import serving
from tests.router.text.tool_templates import QWEN3

TOKENIZER = Tokenizer.from_files(small_tokenizer.files())
END = 1


class Door:
    """The door, and what the fleet behind it says next."""

    def __init__(self, fleet, http):
        self.fleet = fleet
        self._http = http

    def will_say(self, text, *, is_cut=False):
        """Sets the next answer, which comes token by token."""
        chunks = [[token_id] for token_id in TOKENIZER.encode_text(text)]
        if is_cut:
            self.fleet.answer(*chunks)
        else:
            self.fleet.answer(*chunks, [END], stop_token_id=END)

    @property
    def request(self):
        """What the engine was asked last."""
        return self.fleet.requests[-1]

    @property
    def prompt(self):
        """What the engine was asked last to go on with."""
        return TOKENIZER.decode(self.request.prompt_token_ids, skip_special_tokens=False)

    async def wait_idle(self):
        """Waits until no engine works for anybody."""
        async with asyncio.timeout(10):
            while self.fleet.num_open:  # noqa: ASYNC110 - a fake has no event for it
                await asyncio.sleep(0.01)

    async def send(self, path="/v1/messages", method="POST", **request):
        """Returns the answer to any request."""
        return await self._http.request(method, path, **request)

    async def post(self, said="ok", *, is_cut=False, **changes):
        """Returns the answer to a message."""
        self.will_say(said, is_cut=is_cut)
        return await self.send(json={**BASE, **changes})

    async def events(self, said="ok", *, is_cut=False, **changes):
        """Returns the events of a streamed answer, whose names must be those in their data."""
        answer = await self.post(said, is_cut=is_cut, stream=True, **changes)
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = []
        for part in answer.text.removesuffix("\n\n").split("\n\n"):
            name, data = part.split("\n")
            content = json.loads(data.removeprefix("data: "))
            assert name == f"event: {content['type']}"
            found.append(content)
        return found

    @asynccontextmanager
    async def client(self, **options):
        """Yields Anthropic's own client."""
        options = {"max_retries": 0, "timeout": 20, **options}
        async with anthropic.AsyncAnthropic(
            base_url=str(self._http.base_url), api_key="any", **options
        ) as client:
            yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_door():
    """The door of a module."""
    fleet = FakeFleet(model_info(max_model_len=2000, num_blocks=200, supported_params=ALL_PARAMS))
    fleet.files = small_tokenizer.files(chat_template=QWEN3)
    async with (
        serving(fleet) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, verify=False) as http,
    ):
        yield Door(fleet, http)


@pytest.fixture
def door(module_door):
    """The door of a module, as if nothing had been asked yet."""
    fleet = module_door.fleet
    fleet.requests.clear()
    while not fleet.events.empty():
        fleet.events.get_nowait()
    return module_door
