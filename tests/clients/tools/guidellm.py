"""guidellm, the load generator of the vLLM project."""

import json

from tests.clients.commands import expect
from tests.clients.site import CHECKPOINT, Site, Tool

_NUM_REQUESTS = 40
_NUM_STREAMS = 4
_NUM_TOKENS = 64


async def check(site: Site) -> list[tuple[str, str]]:
    """Asks for chats and completions with a synthetic load."""
    return [await _load(site, "/v1/chat/completions"), await _load(site, "/v1/completions")]


async def _load(site: Site, path: str) -> tuple[str, str]:
    output = site.folder / f"{path.rpartition('/v1/')[2].replace('/', '_')}.json"
    await site.command(
        "guidellm",
        *("run", "--disable-progress"),
        *("--backend", f"kind=openai_http,target={site.url},request_format={path}"),
        *("--profile", f"kind=concurrent,streams={_NUM_STREAMS}"),
        *("--constraint", f"kind=max_requests,count={_NUM_REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={CHECKPOINT}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={_NUM_TOKENS}"),
        *("--output", f"kind=json,path={output}"),
    )
    (benchmark,) = json.loads(output.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    totals = metrics["request_totals"]
    expect(totals["successful"] == _NUM_REQUESTS, f"the requests of {path} end as {totals}")
    tokens = metrics["output_token_count"]["successful"]
    sizes = {tokens["min"], tokens["max"]}
    expect(sizes == {_NUM_TOKENS}, f"answers of {path} have {sizes} tokens, not {_NUM_TOKENS}")
    rate = metrics["output_tokens_per_second"]["successful"]["mean"]
    first = metrics["time_to_first_token_ms"]["successful"]["median"]
    return (
        f"{path}: {_NUM_REQUESTS} synthetic requests, {_NUM_STREAMS} at a time, {_NUM_TOKENS} "
        "tokens each",
        f"all succeeded, {rate:.0f} tokens/s, first token {first:.0f} ms (median)",
    )


# It requires torch; this version admits a build for the CPU where pip finds one.
TOOL = Tool(name="guidellm", version="0.8.1", check=check, needs=("torch==2.13.0",))
