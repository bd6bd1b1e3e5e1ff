"""Prometheus itself checks the pages of metrics, scrapes a fleet and answers the doc's queries.

Debian has both programs in the package `prometheus`.
"""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import yaml

from examples.demo.model import CHECKPOINT
from examples.demo.services import HOST, Service, Services, http_get
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        None in map(shutil.which, ("prometheus", "promtool")), reason="Prometheus is missing"
    ),
]

MODEL = "demo"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
EMPTY = {"engines that are not ready"}
"""Questions to which the answer for a healthy fleet is that there is none."""
COLON = re.compile(r"vllm:\w+ metric names should not contain ':'\n")
WAIT_SECONDS = 60.0
ROUTERS = ("router", "router of workers")


def queries() -> dict[str, str]:
    """Returns the queries of the document by the question."""
    section = re.search(r"^## Queries$(.*?)^## ", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section
    rows = re.findall(r"^\| ([^|`]+) \| `(.+?)`(?:, .+)? \|$", section[1], re.MULTILINE)
    return {question: query.replace(r"\|", "|") for question, query in rows}


@contextlib.asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[dict[str, Service]]:
    """An engine and two routers of it, one of them with workers."""
    options = ["--model", str(CHECKPOINT), "--served-model-name", MODEL, "--cpu-threads", "1"]
    options += ["--num-blocks", "64", "--block-size", "16", "--vllm-metrics"]
    async with Services(folder) as services:
        engine = services.start("engine", ["engine_service", *options])
        arguments = ["router", "--engines", engine.address]
        found = {
            "engine": engine,
            "router": services.start("router", arguments),
            "router of workers": services.start("workers", [*arguments, "--workers", "2"]),
        }
        await services.wait_ready(list(found.values()), 90, lambda service, state: None)
        yield found


async def ask(router: Service, times: int) -> None:
    """Asks a few things, one of them of a model that is not there."""
    async with grpc.aio.insecure_channel(router.address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        for _ in range(times):
            request = router_pb2.GenerateRequest(
                text="introduce yourself, and say what you know about prime numbers. " * 4,
                sampling_params={"max_tokens": 8, "ignore_eos": True},
            )
            async for _ in stub.Generate(request, timeout=60):
                pass
        with pytest.raises(grpc.aio.AioRpcError):
            await anext(aiter(stub.Generate(router_pb2.GenerateRequest(model="none", text="a"))))


@contextlib.asynccontextmanager
async def prometheus(folder: Path, services: dict[str, Service]) -> AsyncIterator[str]:
    """A Prometheus that scrapes these services; yields its address."""
    [port] = Services(folder).free_ports(1)
    targets = [service.operations_address for service in services.values()]
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [{"job_name": "pagestream", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", "--log.level=warn"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={HOST}:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield f"{HOST}:{port}"
    finally:
        process.terminate()
        await process.wait()


async def answer(address: str, query: str) -> list[dict[str, object]]:
    """Returns the series that Prometheus answers with; none while it starts."""
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        found = json.loads(await asyncio.to_thread(http_get, address, path))
    except urllib.error.URLError:
        return []
    assert found["status"] == "success", found
    return found["data"]["result"]


async def wait_answer(address: str, query: str) -> list[dict[str, object]]:
    """Waits for an answer with a number in it."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            found = [one for one in await answer(address, query) if one["value"][1] != "NaN"]
            if found:
                return found
            await asyncio.sleep(0.5)


def complaints(page: str) -> str:
    """Returns what promtool says about a page, but for the colon in all of vLLM's names."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    lines = (checked.stdout + checked.stderr).splitlines(keepends=True)
    return "".join(line for line in lines if not COLON.fullmatch(line))


async def test_promtool_has_nothing_to_say_about_the_pages(tmp_path):
    async with fleet(tmp_path) as services:
        for name in ROUTERS:
            await ask(services[name], 1)
        pages = {
            name: await asyncio.to_thread(http_get, service.operations_address, "/metrics")
            for name, service in services.items()
        }
    for name, page in pages.items():
        assert await asyncio.to_thread(complaints, page) == "", name
        assert f'model_name="{MODEL}"' in page
        assert "_created" not in page


async def test_scraped_fleet_answers_the_queries_of_the_document(tmp_path):
    asked = queries()
    assert len(asked) > 10
    async with fleet(tmp_path) as services, prometheus(tmp_path, services) as address:
        ups = 'sum(up{job="pagestream"}) == 3'
        await wait_answer(address, ups)
        # What is counted before the first scrape is in no rate.
        for name in ROUTERS:
            await ask(services[name], 3)

        for question, query in asked.items():
            if question in EMPTY:
                assert await answer(address, query) == []
            else:
                assert await wait_answer(address, query), question
        outcomes = await wait_answer(address, asked["requests per second, by model and outcome"])
        names = {one["metric"]["model_name"] for one in outcomes}
        assert names == {MODEL, "no model"}
        requests = f'sum(pagestream_router_requests_total{{model_name="{MODEL}"}})'
        theirs = f'vllm:request_success_total{{model_name="{MODEL}",finished_reason="length"}}'
        for query in (requests, theirs):
            assert await wait_answer(address, f"{query} == 6")
        assert await wait_answer(address, ups)
