"""The original's load: 60 chats sent at once, and what each of them experienced."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import grpc

from demo_model.tasks.introduction import INTRODUCTION
from demo_model.tasks.primes import primes_within
from examples.demo.errors import DemoFailedError
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.channel import client_options

REPEATS_IN_PROMPT = 15
RIGHT_ANSWERS = {
    " ".join([prompt] * REPEATS_IN_PROMPT): answer
    for prompt, answer in (
        ("introduce yourself", INTRODUCTION),
        ("list all prime numbers within 100", primes_within(100)),
    )
}
"""The prompts, and what the demo model has to say to them."""
TEMPERATURE = 0.6
CONNECT_SECONDS = 30.0
"""What the router has to find all engines."""
_CALL_TIMEOUT = 600.0
_POLL_SECONDS = 0.05


@dataclass(slots=True, kw_only=True)
class Answer:
    """One request as its client saw it; times are seconds.

    Attributes:
        first_token_seconds: From the call to the first token, None before it.
        gaps: Between two messages with tokens: seconds, and tokens in the later one.
    """

    prompt: str
    text: str = ""
    engine: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_tokens: int = 0
    finish_reason: str = ""
    first_token_seconds: float | None = None
    gaps: list[tuple[float, int]] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether it is what the demo model has to say, to its end."""
        return self.finish_reason == "stop" and self.text == RIGHT_ANSWERS.get(self.prompt)


def prompts(count: int) -> list[str]:
    """Returns `count` prompts that take turns between the two."""
    return list(islice(cycle(RIGHT_ANSWERS), count))


async def send_all(
    address: str, texts: Sequence[str], max_tokens: int, progress: Callable[[list[Answer]], None]
) -> list[Answer]:
    """Sends every text as a chat at once and reads the answers as they stream.

    Args:
        address: The router's.
        texts: What the user says, one conversation each.
        max_tokens: The most tokens of each answer; an end-of-turn token ends it earlier.
        progress: Called with all answers so far after each message.

    Raises:
        grpc.aio.AioRpcError: A request failed; the others are cancelled.
    """
    answers = [Answer(prompt=text) for text in texts]
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
        async with asyncio.TaskGroup() as group:
            for answer in answers:
                group.create_task(_send(stub, answer, max_tokens, lambda: progress(answers)))
    return answers


async def wait_for_engines(address: str, count: int) -> None:
    """Waits until the router at `address` sends requests to `count` engines.

    Raises:
        DemoFailedError: It did not within 30 s, or does not answer.
    """
    num_serving = 0
    try:
        async with (
            asyncio.timeout(CONNECT_SECONDS),
            grpc.aio.insecure_channel(address, options=client_options()) as channel,
        ):
            stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
            while num_serving < count:
                await asyncio.sleep(_POLL_SECONDS)
                num_serving = await _count_serving(stub)
    except TimeoutError as error:
        raise DemoFailedError(
            f"the router sees {num_serving} of {count} engines serve after {CONNECT_SECONDS:g} s"
        ) from error
    except grpc.aio.AioRpcError as error:
        raise DemoFailedError(f"the router cannot list its engines: {describe(error)}") from error


def describe(error: grpc.aio.AioRpcError) -> str:
    """Returns the status of a call for the reader, such as "UNAVAILABLE: no engine"."""
    return f"{error.code().name}: {error.details()}"


async def _count_serving(stub: router_pb2_grpc.RouterServiceStub) -> int:
    response = await stub.ListEngines(router_pb2.ListEnginesRequest(), timeout=CONNECT_SECONDS)
    serving = router_pb2.EngineState.ENGINE_STATE_SERVING
    return sum(engine.state == serving for engine in response.engines)


async def _send(
    stub: router_pb2_grpc.RouterServiceStub,
    answer: Answer,
    max_tokens: int,
    on_message: Callable[[], None],
) -> None:
    request = router_pb2.GenerateRequest(
        chat=router_pb2.Chat(messages=[router_pb2.ChatMessage(role="user", content=answer.prompt)]),
        sampling_params=router_pb2.SamplingParams(temperature=TEMPERATURE, max_tokens=max_tokens),
    )
    last = time.perf_counter()
    async for response in stub.Generate(request, timeout=_CALL_TIMEOUT):
        if response.HasField("admission"):
            answer.engine = response.admission.engine
            answer.num_prompt_tokens = response.admission.prompt_token_count
            answer.num_cached_tokens = response.admission.cached_token_count
        if response.token_ids:
            now = time.perf_counter()
            if answer.first_token_seconds is None:
                answer.first_token_seconds = now - last
            else:
                answer.gaps.append((now - last, len(response.token_ids)))
            last = now
            answer.num_tokens += len(response.token_ids)
        answer.text += response.text
        if response.HasField("finish"):
            name = router_pb2.FinishReason.Name(response.finish.reason)
            answer.finish_reason = name.removeprefix("FINISH_REASON_").lower()
        on_message()
