"""What a service says of itself under /metrics, as far as the table needs it."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

MAX_PAGE_BYTES = 2 * 1024 * 1024
PAGE_SECONDS = 2.0
_MAX_LINE_CHARACTERS = 4096
"""The parser's time grows with the square of a line's length."""
_MAX_BUCKETS = 256
"""Of one histogram."""
_MAX_OUTCOMES = 256
_PREFIXES = ("pagestream_router_", "pagestream_engine_")
_COUNTERS = {
    "prompt_tokens_total",
    "generated_tokens_total",
    "actual_cached_tokens_total",
    "prefix_cache_hit_tokens_total",
    "prefix_cache_query_tokens_total",
}
_OUTCOMES = "requests_total"
HISTOGRAMS = ("time_to_first_token_seconds", "time_between_tokens_seconds")
_BUCKETS = {f"{name}_bucket": name for name in HISTOGRAMS}
_MODEL = "model_info"
_PLAIN = "WRONG_VERSION_NUMBER"
"""What OpenSSL says of an answer in plain text."""


class BadPage(Exception):
    """There is no page, or it is none of a service of ours; the text says why."""


@dataclass(slots=True)
class Page:
    """The series of one service, without its prefix, summed over their labels.

    Attributes:
        service: "router" or "engine".
        model: The model of an engine.
        counters: By name.
        outcomes: Requests that ended, by outcome.
        buckets: Of each histogram, the number of values up to each bound.
    """

    service: str = ""
    model: str = ""
    counters: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    outcomes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    buckets: dict[str, dict[float, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )

    def add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Adds a sample, if the table needs it."""
        if name in _COUNTERS:
            self.counters[name] += value
        elif name == _OUTCOMES and len(self.outcomes) < _MAX_OUTCOMES:
            self.outcomes[labels.get("outcome", "")] += value
        elif name == _MODEL:
            self.model = labels.get("model_name", "")
        elif (histogram := _BUCKETS.get(name)) is not None:
            buckets, bound = self.buckets[histogram], float(labels.get("le", "nan"))
            if len(buckets) < _MAX_BUCKETS and not math.isnan(bound):
                buckets[bound] += value


def read_page(text: str) -> Page:
    """Returns the series of a page.

    Raises:
        BadPage: It is none of ours.
    """
    page = Page()
    if max(map(len, text.split("\n"))) > _MAX_LINE_CHARACTERS:
        raise BadPage(f"a line of the page has more than {_MAX_LINE_CHARACTERS} characters")
    try:
        for family in text_string_to_metric_families(text):
            prefix = next((one for one in _PREFIXES if family.name.startswith(one)), None)
            if prefix is None:
                continue
            page.service = prefix.split("_")[1]
            for sample in family.samples:
                if math.isfinite(sample.value) and sample.value >= 0:
                    page.add(sample.name.removeprefix(prefix), sample.labels, sample.value)
    # The parser checks little, so that a page that is none fails in many ways.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadPage(f"the page cannot be read: {error!r:.200}") from None
    if not page.service:
        raise BadPage("the page is that of another service")
    return page


def _advice(url: str, response: httpx.Response) -> str:
    is_plain = response.status_code == httpx.codes.BAD_REQUEST and url.startswith("http://")
    return "; if the port speaks TLS, give --operations-tls-ca" if is_plain else ""


async def fetch_page(client: httpx.AsyncClient, url: str, tls_name: str = "") -> Page:
    """Returns the page of a service.

    Args:
        client: Fetches it.
        url: That of its operations port.
        tls_name: The name that its certificate must have; "" is the host of the URL.

    Raises:
        BadPage: There is none, or it is none of ours.
    """
    content = bytearray()
    named = {"sni_hostname": tls_name} if tls_name else {}
    try:
        async with client.stream("GET", f"{url}/metrics", extensions=named) as response:
            if response.status_code != httpx.codes.OK:
                raise BadPage(f"the answer is {response.status_code}{_advice(url, response)}")
            # Raw: what is compressed could become too much in one piece.
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_PAGE_BYTES:
                    raise BadPage(f"the page has more than {MAX_PAGE_BYTES} bytes")
    # The last is what some names of hosts are.
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        text = str(error) or type(error).__name__
        if _PLAIN in text:
            text = f"the port speaks plain text, but --operations-tls-ca is given: {text}"
        raise BadPage(text) from None
    # A long page takes a while, and keys are to be answered meanwhile.
    return await asyncio.to_thread(read_page, content.decode(errors="replace"))
