"""evalscope, ModelScope's tool, with its load generator."""

import json

from tests.clients.commands import expect
from tests.clients.site import CHECKPOINT, Site, Tool

_NUM_REQUESTS = 40
_NUM_STREAMS = 4
_NUM_TOKENS = 64


async def check(site: Site) -> list[tuple[str, str]]:
    """Asks for chats and completions with random prompts."""
    return [await _load(site, "/v1/chat/completions"), await _load(site, "/v1/completions")]


async def _load(site: Site, path: str) -> tuple[str, str]:
    folder = path.removeprefix("/v1/").replace("/", "_")
    await site.command(
        "evalscope",
        *("perf", "--api", "openai", "--url", f"{site.url}{path}", "--api-key", "any"),
        *("--model", site.model, "--tokenizer-path", str(CHECKPOINT)),
        *("--dataset", "random", "--min-prompt-length", "32", "--max-prompt-length", "64"),
        *("--min-tokens", str(_NUM_TOKENS), "--max-tokens", str(_NUM_TOKENS)),
        *("--parallel", str(_NUM_STREAMS), "--number", str(_NUM_REQUESTS)),
        *("--extra-args", '{"ignore_eos": true}'),
        *("--outputs-dir", folder, "--no-timestamp"),
    )
    (summary,) = (site.folder / folder).rglob("benchmark_summary.json")
    figures = json.loads(summary.read_text())
    count = figures["Success Requests"]
    expect(count == _NUM_REQUESTS, f"{count} of {_NUM_REQUESTS} requests of {path} succeed")
    size = figures["Avg Output Tokens"]
    expect(size == _NUM_TOKENS, f"answers of {path} have {size} tokens, not {_NUM_TOKENS}")
    return (
        f"perf {path}: {_NUM_REQUESTS} random prompts, {_NUM_STREAMS} at a time, {_NUM_TOKENS} "
        "tokens each",
        f"all succeeded, {figures['Output Throughput (tok/s)']:.0f} tokens/s, first token "
        f"{figures['Avg TTFT (ms)']:.0f} ms (mean)",
    )


TOOL = Tool(name="evalscope", version="1.14.1", check=check, extra="perf")
