"""A fleet that answers as its script says, for clients that ask on their own."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

from router.types.engine_events import (
    Admitted,
    EngineEvent,
    Finished,
    FinishReason,
    TokenRequest,
    Tokens,
)
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, ENGINE, FakeFleet, model_info
from tests.fakes.fake_logprobs import made_up_logprobs
from tests.router.http.serving import serving
from tests.router.pipelines import END, TOKENIZER
from tests.router.text.tool_templates import QWEN3

ENDLESS = "and on"
"""An answer that begins like this does not end."""
_NUM_TEXTS = 500
"""Tokens of the fake tokenizer that surely have a text."""
_USER = "<|im_start|>user\n"


class ScriptedFleet(FakeFleet):
    """A fleet of a model that thinks and calls tools, as Qwen3 does.

    What is said last decides the answer: of each answer's key, the first that it contains. Requests
    get the texts and exceptions of the key one after the other, and the last one from then on;
    samples of one request get that of their index.

    Attributes:
        port: Where its door listens.
    """

    def __init__(self, script: Mapping[str, Sequence[str | Exception]]) -> None:
        super().__init__(
            model_info(max_model_len=4096, supported_params=ALL_PARAMS, max_logprobs=20)
        )
        self.files = small_tokenizer.files(chat_template=QWEN3)
        self.port = 0
        self._script = {key: list(answers) for key, answers in script.items()}
        self._is_idle = asyncio.Event()

    async def wait_idle(self) -> None:
        """Waits until no engine works for anybody."""
        while self.num_open:
            self._is_idle.clear()
            await self._is_idle.wait()

    async def generate(self, request: TokenRequest) -> AsyncGenerator[EngineEvent, None]:
        self.requests.append(request)
        self.num_open += 1
        try:
            answer = self._next_answer(request)
            if isinstance(answer, Exception):
                raise answer
            yield Admitted(engine=ENGINE, num_cached_tokens=16, seed=7)
            for event in _events(request, answer):
                yield event
            if answer.startswith(ENDLESS):
                await asyncio.Event().wait()
            yield Finished(reason=FinishReason.STOP, stop_token_id=END)
        finally:
            self.num_open -= 1
            self._is_idle.set()

    def _next_answer(self, request: TokenRequest) -> str | Exception:
        said = TOKENIZER.decode(request.prompt_token_ids, skip_special_tokens=False)
        said = said.rpartition(_USER)[2]
        answers = next(answers for key, answers in self._script.items() if key in said)
        if request.sampling_params.sample_index is not None:
            return answers[request.sampling_params.sample_index]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def _events(request: TokenRequest, text: str):
    """Yields a text token by token, with the logprobs that the request asks for."""
    num_top = request.sampling_params.logprobs
    for position, token_id in enumerate([*TOKENIZER.encode_text(text).tolist(), END]):
        scored = None
        if num_top is not None:
            scored = made_up_logprobs(position, [token_id], num_top, _NUM_TEXTS)
        yield Tokens(token_ids=[token_id], logprobs=scored)


@asynccontextmanager
async def scripted(script: Mapping[str, Sequence[str | Exception]], **options):
    """Yields a fleet with a door; afterwards none of its requests is under way."""
    fleet = ScriptedFleet(script)
    async with serving(fleet, **options) as fleet.port:
        yield fleet
        async with asyncio.timeout(20):
            await fleet.wait_idle()
