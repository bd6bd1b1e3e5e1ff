"""Engines behind Shepherd Model Gateway, as it is published, without a router of ours."""

import asyncio
import contextlib
import itertools
import json
import re
import signal
import urllib.request

import anthropic
import openai
import pytest
import pytest_asyncio

from tests.clients.site import CHECKPOINT, ENVIRONMENTS, install
from tests.fakes.service_process import HOST, ServiceProcess, free_ports, running

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

VERSION = "1.13.0"
START_SECONDS = 120.0
MODEL = "checkpoint"
QUESTION = "What is 12 plus 30?"
ANSWER = "12 + 30 = 42"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


class Fleet:
    """Two engines and the gateway before them."""

    def __init__(self, folder):
        self._operations = free_ports(2)
        ports = free_ports(4)
        self.engines = [
            ServiceProcess(
                (
                    *("engine_service", "--model", str(CHECKPOINT), "--device", "cpu"),
                    *("--cpu-threads", "1", "--num-blocks", "400", "--block-size", "16"),
                    *("--vllm-grpc", "--port", str(port), "--operations-port", str(operations)),
                ),
                port,
                folder / f"engine-{port}.log",
            )
            for port, operations in zip(ports, self._operations, strict=False)
        ]
        workers = [f"grpc://{engine.address}" for engine in self.engines]
        self.gateway = ServiceProcess(
            (
                *("smg", "launch", "--host", HOST, "--port", str(ports[2])),
                *("--prometheus-port", str(ports[3]), "--log-level", "info"),
                *("--policy", "cache_aware", "--worker-urls", *workers),
            ),
            ports[2],
            folder / "smg.log",
            str(ENVIRONMENTS / "smg" / "bin" / "python"),
        )
        self.url = f"http://{self.gateway.address}"
        self._metrics_url = f"http://{HOST}:{ports[3]}/metrics"
        self.openai = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0)
        self.anthropic = anthropic.AsyncAnthropic(base_url=self.url, api_key="-", max_retries=0)

    async def have_engines_loaded(self):
        """Returns whether both engines serve."""
        return await self.engine_metrics("ready") == [1.0, 1.0]

    async def wait_ready(self):
        """Waits until the gateway has both engines, their tokenizer and their events."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                await asyncio.sleep(0.2)
                with contextlib.suppress(OSError, ValueError, KeyError):
                    workers = json.loads(await get(f"{self.url}/workers"))["workers"]
                    models = json.loads(await get(f"{self.url}/v1/models"))["data"]
                    if len(workers) == 2 and all(one["is_healthy"] for one in workers) and models:
                        await self.openai.chat.completions.create(**CHAT, max_tokens=1)
                        return

    async def gateway_metric(self, name):
        """Returns the sum of a metric of the gateway over its series."""
        return total(await get(self._metrics_url), name)

    async def engine_metrics(self, name):
        """Returns the sum of a metric over its series, for each engine that answers."""
        found = []
        for port in self._operations:
            with contextlib.suppress(OSError):
                text = await get(f"http://{HOST}:{port}/metrics")
                found.append(total(text, f"pagestream_engine_{name}"))
        return found


def total(text, name):
    """Returns the sum of the series whose names match."""
    lines = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE)
    return sum(float(value) for value in lines)


async def get(url):
    """Returns the body of a page."""

    def fetch():
        with urllib.request.urlopen(url, timeout=10) as page:
            return page.read().decode()

    return await asyncio.to_thread(fetch)


async def until(condition):
    """Waits until a condition holds."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory):
    await install(ENVIRONMENTS / "smg", f"smg=={VERSION}")
    fleet = Fleet(tmp_path_factory.mktemp("smg"))
    async with running(*fleet.engines):
        # A gateway that finds nobody waits half a minute before it tries again.
        await until(fleet.have_engines_loaded)
        async with running(fleet.gateway), fleet.openai, fleet.anthropic:
            await fleet.wait_ready()
            yield fleet


async def test_chat_is_answered_at_once_and_as_a_stream(fleet):
    whole = await fleet.openai.chat.completions.create(
        **CHAT, max_tokens=24, logprobs=True, top_logprobs=2
    )
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    logprobs = whole.choices[0].logprobs.content
    # The last one is of the token that ends the text.
    assert "".join(one.token for one in logprobs[:8]) == ANSWER
    assert {len(one.top_logprobs) for one in logprobs} == {2}

    chunks = [
        chunk
        async for chunk in await fleet.openai.chat.completions.create(
            **CHAT, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
    ]
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == ANSWER
    assert len(texts) > 4
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 9


async def test_completions_have_samples_and_errors(fleet):
    answer = await fleet.openai.completions.create(
        model=MODEL, prompt=QUESTION, max_tokens=8, n=3, seed=1, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 24
    with pytest.raises(openai.BadRequestError, match="over max_model_len 4096"):
        await fleet.openai.completions.create(model=MODEL, prompt=QUESTION, max_tokens=5000)
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        await fleet.openai.completions.create(model=MODEL, prompt=QUESTION, presence_penalty=9.0)


async def test_messages_are_answered(fleet):
    asked = {"model": MODEL, "messages": CHAT["messages"], "max_tokens": 24}
    asked["extra_body"] = {"temperature": 0}
    whole = await fleet.anthropic.messages.create(**asked)
    assert (whole.content[0].text, whole.stop_reason) == (ANSWER, "end_turn")
    async with fleet.anthropic.messages.stream(**asked) as stream:
        assert "".join([text async for text in stream.text_stream]) == ANSWER


async def test_structured_output_is_structured(fleet):
    answer = await fleet.openai.completions.create(
        model=MODEL, prompt="x", max_tokens=16, extra_body={"regex": "[0-9]{3}"}
    )
    assert re.fullmatch("[0-9]{3}", answer.choices[0].text)
    for ebnf, text in (('start: "ab"', "ab"), ('root ::= "ab"', None)):
        asked = {"model": MODEL, "prompt": "x", "max_tokens": 16, "extra_body": {"ebnf": ebnf}}
        if text is None:
            with pytest.raises(openai.BadRequestError, match=r"grammar\.lark cannot be used"):
                await fleet.openai.completions.create(**asked)
        else:
            answer = await fleet.openai.completions.create(**asked)
            assert answer.choices[0].text == text
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    answer = await fleet.openai.chat.completions.create(
        **CHAT,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_stop_text_ends_the_request_in_the_engine(fleet, is_streamed):
    before = sum(await fleet.engine_metrics("generated_tokens_total"))
    answer = await fleet.openai.chat.completions.create(
        **CHAT, max_tokens=3000, stop=["= 4"], extra_body={"ignore_eos": True}, stream=is_streamed
    )
    if is_streamed:
        text = "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])
    else:
        text = answer.choices[0].message.content
    assert text == "12 + 30 "

    async def is_idle():
        return sum(await fleet.engine_metrics("requests_running")) == 0

    await until(is_idle)
    assert sum(await fleet.engine_metrics("generated_tokens_total")) - before < 100


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_client_that_leaves_ends_the_request_in_the_engine(fleet, is_streamed):
    series = r'requests_total\{[^}]*outcome="cancelled"[^}]*\}'
    before = sum(await fleet.engine_metrics(series))
    call = fleet.openai.chat.completions.create(
        **CHAT, max_tokens=3000, extra_body={"ignore_eos": True}, stream=is_streamed
    )
    if is_streamed:
        async with await call as stream:
            await anext(aiter(stream))
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await call

    async def is_cancelled():
        return sum(await fleet.engine_metrics(series)) == before + 1

    await until(is_cancelled)


async def test_equal_prefixes_go_to_the_engine_that_has_them(fleet):
    num_stored = r'smg_kv_event_blocks_total\{[^}]*op="stored"[^}]*\}'
    for topic in range(6):
        prefix = " ".join(f"Fact {topic}: {topic * 7 + n} is a number." for n in range(20))
        before = await fleet.gateway_metric(num_stored)
        cached = []
        for ending in range(3):
            answer = await fleet.openai.completions.create(
                model=MODEL, prompt=f"{prefix} {ending}", max_tokens=2
            )
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
            if not ending:

                async def knows_it(before=before):
                    return await fleet.gateway_metric(num_stored) >= before + 10

                await until(knows_it)
        assert cached[0] < 64
        assert min(cached[1:]) >= answer.usage.prompt_tokens - 32


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_engine_that_ends_is_not_missed_and_serves_again_when_it_is_back(fleet, number):
    numbers = itertools.count(1000)

    async def have_both_served():
        prompt = " ".join(str((next(numbers) + number) ** 9) for _ in range(5))
        await fleet.openai.completions.create(model=MODEL, prompt=prompt, max_tokens=4)
        served = await fleet.engine_metrics(r"requests_total\{[^}]*\}")
        return len(served) == 2 and min(served) > 0

    await until(have_both_served)
    await fleet.engines[0].end(number)
    for _ in range(8):
        answer = await fleet.openai.chat.completions.create(**CHAT, max_tokens=24)
        assert answer.choices[0].message.content == ANSWER
    await fleet.engines[0].start()
    await until(have_both_served)
