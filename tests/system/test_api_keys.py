"""A router with API keys, as a process: it never tells one, and lets go of what is revoked."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import grpc
import httpx

from examples.demo.services import http_get
from protos.pagestream.router.v1 import router_pb2 as pb
from protos.pagestream.router.v1 import router_pb2_grpc
from tests.fakes.fake_engine import FakeEngine
from tests.router.access.key_files import KEY, OTHER, digest, entry, write
from tests.system.test_http import SLOW, TIMEOUT, routing

SECRET = "5" * 64
WRONG = "pgs_" + "w" * 43
PROMPT = {"prompt": [5, 6], "max_tokens": 3}


class ListeningEngine(FakeEngine):
    """Keeps all that it is sent, with its metadata."""

    def __init__(self, config):
        super().__init__(config)
        self.heard = []

    async def GenerateMany(self, request_iterator, context):
        async def listened():
            async for message in request_iterator:
                self.heard.append(message)
                yield message

        self.heard.append(context.invocation_metadata())
        async with aclosing(super().GenerateMany(listened(), context)) as answers:
            async for answer in answers:
                yield answer


def process_texts(pid):
    """Returns what `ps` shows of a process."""
    return [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]


async def test_key_opens_the_router_and_is_told_nowhere(tmp_path):
    keys = entry(requests_per_minute=4), entry(OTHER, "b")
    path = write(tmp_path / "keys.yaml", *keys, secret=SECRET)
    options = ("--api-keys-file", str(path), "--log-level", "debug")
    told = []
    async with (
        ListeningEngine(SLOW) as engine,
        routing(tmp_path, engine.address, *options) as router,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=TIMEOUT) as client,
    ):
        port = int((await router.until_logged(r" port=(\d+)"))[1])
        operations_port = int((await router.until_logged(r"operations_port=(\d+)"))[1])
        await router.until_logged("router ready")

        async def post(path, headers, body=PROMPT):
            answer = await client.post(path, json=body, headers=headers)
            told.extend((answer.content, answer.headers))
            return answer.status_code

        a, b = {"authorization": f"Bearer {KEY}"}, {"x-api-key": OTHER}
        assert await post("/v1/completions", b) == 200
        for headers in ({}, {"x-api-key": WRONG}, {"authorization": f"Basic {KEY}"}):
            for path_ in ("/v1/completions", "/v1/messages"):
                assert await post(path_, headers) == 401
        assert await post("/v1/completions", a, {**PROMPT, "priority": 9}) == 403
        assert await post("/v1/completions", a, {**PROMPT, "model": "none"}) == 404
        assert [await post("/v1/completions", a) for _ in range(3)] == [200, 200, 429]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            asked = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]), priority=1)
            denied, unknown = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
            values = {f"Bearer {OTHER}": denied, f"Bearer {WRONG}": unknown, KEY: unknown}
            for value, expected in values.items():
                call = stub.Generate(asked, metadata=[("authorization", value)], timeout=TIMEOUT)
                assert await call.code() is expected
                told.extend((await call.details(), await call.trailing_metadata()))
            metadata = [("authorization", f"Bearer {KEY}")]
            await stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=TIMEOUT)

        # The file is followed: a stream ends with its key.
        body = {**PROMPT, "max_tokens": 4000, "stream": True, "return_token_ids": True}
        async with client.stream("POST", "/v1/completions", json=body, headers=b) as answer:
            lines = answer.aiter_lines()
            told.append(await anext(lines))
            write(path, keys[0], secret=SECRET)
            rest = [line async for line in lines if line]
        told.extend(rest)
        errors = [json.loads(line[6:])["error"] for line in rest if '"error"' in line]
        assert [error["code"] for error in errors] == ["invalid_api_key"]
        assert await post("/v1/completions", b) == 401
        path.write_text(f"keys: {KEY}")
        await router.until_logged("API keys not read")

        metrics = await asyncio.to_thread(http_get, f"127.0.0.1:{operations_port}", "/metrics")
        assert 'pagestream_router_api_key_refusals_total{key="a"} 1.0' in metrics
        told += [metrics, engine.heard, *process_texts(router.process.pid)]
    told.append(router.log)
    assert "request refused" in router.log
    assert "API key revoked key=b" in router.log
    everything = " ".join(map(str, told))
    for secret in (KEY, OTHER, WRONG, SECRET, digest(KEY), digest(OTHER)):
        assert secret[4:] not in everything
