"""What the demo sends, what it counts of the answers, and what it says when the router fails."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field

import grpc
import pytest

from examples.demo import load
from examples.demo.command import parse
from examples.demo.errors import DemoFailedError
from examples.demo.load import prompts, send_all, wait_for_engines
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc

SERVING = router_pb2.EngineState.ENGINE_STATE_SERVING


@dataclass
class ScriptedRouter(router_pb2_grpc.RouterServiceServicer):
    """Answers every chat with the same messages, and keeps what was asked."""

    messages: list[router_pb2.GenerateResponse] = field(default_factory=list)
    num_serving: int = 0
    error: tuple[grpc.StatusCode, str] | None = None
    requests: list[router_pb2.GenerateRequest] = field(default_factory=list)

    async def Generate(self, request, context):
        self.requests.append(request)
        if self.error is not None:
            await context.abort(*self.error)
        for message in self.messages:
            yield message

    async def ListEngines(self, request, context):
        if self.error is not None:
            await context.abort(*self.error)
        engines = [router_pb2.Engine(state=SERVING) for _ in range(self.num_serving)]
        return router_pb2.ListEnginesResponse(engines=engines)


@contextlib.asynccontextmanager
async def address_of(router):
    server = grpc.aio.server()
    router_pb2_grpc.add_RouterServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def send(router, texts, max_tokens=4):
    async with address_of(router) as address:
        return await send_all(address, texts, max_tokens, lambda answers: None)


async def test_without_options_sixty_chats_of_two_prompts_ask_for_256_tokens_at_0_6():
    options = parse([])
    router = ScriptedRouter()
    await send(router, prompts(options.num_requests), options.max_tokens)
    params = {
        (request.sampling_params.max_tokens, round(request.sampling_params.temperature, 6))
        for request in router.requests
    }
    assert params == {(256, 0.6)}
    # Nothing else is asked for: an end-of-turn token ends an answer, as it would a real one.
    names = [[field.name for field, _ in r.sampling_params.ListFields()] for r in router.requests]
    assert all(sorted(one) == ["max_tokens", "temperature"] for one in names)
    turns = [[(m.role, m.content) for m in request.chat.messages] for request in router.requests]
    first, second = (
        " ".join([base] * 15)
        for base in ("introduce yourself", "list all prime numbers within 100")
    )
    assert Counter(text for ((_, text),) in turns) == {first: 30, second: 30}
    assert {role for ((role, _),) in turns} == {"user"}


async def test_answer_holds_what_its_client_was_sent():
    admission = router_pb2.Admission(engine="e:1", prompt_token_count=40, cached_token_count=32)
    finish = router_pb2.Finish(reason=router_pb2.FinishReason.FINISH_REASON_STOP)
    router = ScriptedRouter(
        messages=[
            router_pb2.GenerateResponse(admission=admission),
            router_pb2.GenerateResponse(token_ids=[7], text="a"),
            router_pb2.GenerateResponse(token_ids=[8, 9], text="bc"),
            router_pb2.GenerateResponse(token_ids=[5], text="d"),
            router_pb2.GenerateResponse(finish=finish, text="!"),
        ]
    )
    (answer,) = await send(router, ["hello"])
    assert (answer.engine, answer.num_prompt_tokens, answer.num_cached_tokens) == ("e:1", 40, 32)
    assert (answer.text, answer.num_tokens, answer.finish_reason) == ("abcd!", 4, "stop")
    assert answer.first_token_seconds is not None
    # The first token has no gap before it, and a message without tokens is none.
    assert [count for _, count in answer.gaps] == [2, 1]


async def test_engines_that_never_serve_are_counted_in_the_error(monkeypatch):
    monkeypatch.setattr(load, "CONNECT_SECONDS", 0.2)
    async with address_of(ScriptedRouter(num_serving=1)) as address:
        with pytest.raises(DemoFailedError, match=r"sees 1 of 2 engines serve after 0\.2 s$"):
            await wait_for_engines(address, 2)


async def test_router_that_refuses_to_list_engines_is_quoted():
    router = ScriptedRouter(error=(grpc.StatusCode.INTERNAL, "out of order"))
    async with address_of(router) as address:
        with pytest.raises(DemoFailedError, match=r"list its engines: INTERNAL: out of order$"):
            await wait_for_engines(address, 2)


async def test_wait_ends_when_all_engines_serve():
    async with address_of(ScriptedRouter(num_serving=2)) as address:
        await wait_for_engines(address, 2)
