"""The series about API keys."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.access.caller import Caller
    from router.access.keyring import Keyring


class KeyCollector(Collector):
    """Makes the series from the state of the keyring.

    Attributes:
        keyring: The keys, or None if clients need none.
    """

    def __init__(self, prefix: str) -> None:
        self.keyring: Keyring | None = None
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Yields the series as of now."""
        keyring = self.keyring
        yield CounterMetricFamily(
            f"{self._prefix}_api_keys_file_failures",
            "Times that --api-keys-file could not be used while the router ran.",
            value=0 if keyring is None else keyring.num_failures,
        )
        yield from self._per_key([] if keyring is None else keyring.callers)

    def _per_key(self, callers: "Sequence[Caller]") -> Iterator[Metric]:
        """Yields what each key has used; there are as many as the file has, at most 1,024."""
        used = [(caller.key.name, caller.limits.usage) for caller in callers]
        yield self._counter(
            "requests",
            "Requests of an API key that its limits let through.",
            [(name, usage.num_requests) for name, usage in used],
        )
        yield self._counter(
            "refusals",
            "Requests of an API key that its limits refused.",
            [(name, usage.num_refused) for name, usage in used],
        )
        yield self._counter(
            "prompt_tokens",
            "Prompt tokens of an API key's requests that an engine started.",
            [(name, usage.num_prompt_tokens) for name, usage in used],
        )
        yield self._counter(
            "generated_tokens",
            "Tokens generated for an API key.",
            [(name, usage.num_generated_tokens) for name, usage in used],
        )
        in_progress = GaugeMetricFamily(
            f"{self._prefix}_api_key_requests_in_flight",
            "Requests of an API key in progress.",
            labels=["key"],
        )
        for caller in callers:
            in_progress.add_metric([caller.key.name], caller.limits.num_in_progress)
        yield in_progress

    def _counter(self, name: str, meaning: str, values: "Sequence[tuple[str, int]]") -> Metric:
        family = CounterMetricFamily(f"{self._prefix}_api_key_{name}", meaning, labels=["key"])
        for key, value in values:
            family.add_metric([key], value)
        return family
