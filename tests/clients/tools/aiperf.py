"""aiperf, NVIDIA's load generator."""

import json

from tests.clients.commands import expect
from tests.clients.site import CHECKPOINT, Site, Tool

_NUM_REQUESTS = 40
_NUM_STREAMS = 4
_NUM_TOKENS = 64
# Its offline mode takes names of the hub only, and no folder.
_ONLINE = {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""}


async def check(site: Site) -> list[tuple[str, str]]:
    """Asks for chats and completions with a synthetic load."""
    return [await _load(site, "chat"), await _load(site, "completions")]


async def _load(site: Site, endpoint: str) -> tuple[str, str]:
    await site.command(
        "aiperf",
        *("profile", "--ui", "none", "--model", site.model, "--url", site.url),
        *("--endpoint-type", endpoint, "--streaming", "--tokenizer", str(CHECKPOINT)),
        *("--concurrency", str(_NUM_STREAMS), "--request-count", str(_NUM_REQUESTS)),
        *("--synthetic-input-tokens-mean", "64", "--output-tokens-mean", str(_NUM_TOKENS)),
        *("--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{_NUM_TOKENS}"),
        *("--use-server-token-count", "--output-artifact-dir", endpoint),
        **_ONLINE,
    )
    path = site.folder / endpoint / "profile_export_aiperf.json"
    figures = json.loads(path.read_text())
    count = figures["request_count"]["avg"]
    expect(count == _NUM_REQUESTS, f"{count} of {_NUM_REQUESTS} requests of {endpoint} succeed")
    length = figures["output_sequence_length"]
    sizes = {length["min"], length["max"]}
    expect(sizes == {_NUM_TOKENS}, f"answers of {endpoint} have {sizes} tokens, not {_NUM_TOKENS}")
    rate = figures["output_token_throughput"]["avg"]
    first = figures["time_to_first_token"]["p50"]
    return (
        f"{endpoint}: {_NUM_REQUESTS} synthetic requests, {_NUM_STREAMS} at a time, {_NUM_TOKENS} "
        "tokens each",
        f"all succeeded, {rate:.0f} tokens/s, first token {first:.0f} ms (median)",
    )


TOOL = Tool(name="aiperf", version="0.13.0", check=check)
