"""The series of the requests for one model, and those of requests for a model that is not served.

The series of a model are looked up once, when it is first heard of, since some are used for each
token.
"""

from prometheus_client import CollectorRegistry

from router.errors import RequestError
from router.placement.policy import Placement
from router.request.progress import OUTCOMES
from servicekit.loop_metrics import CounterFamily, GaugeFamily, HistogramFamily
from servicekit.metrics import (
    LENGTH_BUCKETS,
    MODEL_NAME,
    REQUEST_BUCKETS,
    TOKEN_BUCKETS,
    WORK_BUCKETS,
)

FAILOVER_CAUSES = ("engine_failed", "stalled", "violation", "draining", "other")
"""Why requests leave an engine after tokens of them."""


class RequestFamilies:
    """The families of all series of requests; each child has the label `model_name`."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        self._prefix = prefix
        self._registry = registry
        self.requests = self._counter(
            "requests",
            "Requests that ended, by finish reason, error reason or cancellation. A Generate call "
            "is one request for each of its continuations.",
            "outcome",
        )
        self.in_flight = self._gauge("requests_in_flight", "Requests in progress.")
        self.request_time = self._histogram(
            "request_time_seconds",
            "Seconds from a request's arrival to its end, whatever the outcome.",
            REQUEST_BUCKETS,
        )
        self._add_tokens()
        self._add_placement()
        self._add_times()

    def _add_tokens(self) -> None:
        self.queued_prompt_tokens = self._gauge(
            "queued_prompt_tokens", "Prompt tokens of requests that no engine has started yet."
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of requests handed to placement."
        )
        self.generated_tokens = self._counter(
            "generated_tokens", "Tokens received from engines for clients."
        )
        self.prompt_length = self._histogram(
            "prompt_length_tokens",
            "Prompt tokens of one request handed to placement.",
            LENGTH_BUCKETS,
        )
        self.output_length = self._histogram(
            "output_length_tokens",
            "Tokens generated for one request that ended with any.",
            LENGTH_BUCKETS,
        )
        self.max_tokens = self._histogram(
            "max_tokens",
            "Tokens that one request asked for at most, of those that set max_tokens.",
            LENGTH_BUCKETS,
        )

    def _add_placement(self) -> None:
        self.best_cached = self._counter(
            "best_cached_tokens",
            "Prompt tokens of admitted requests that the index held for the engine with most of "
            "them.",
        )
        self.predicted_cached = self._counter(
            "predicted_cached_tokens",
            "Prompt tokens of admitted requests that the index held for the chosen engine.",
        )
        self.actual_cached = self._counter(
            "actual_cached_tokens",
            "Prompt tokens of admitted requests that the chosen engine found in its cache.",
        )
        self.retries = self._counter(
            "retries", "Requests sent to another engine before their first token."
        )
        self.failovers = self._counter(
            "failovers",
            "Requests sent to another engine after their first token, by cause.",
            "cause",
        )
        self.resumed_tokens = self._counter(
            "resumed_tokens",
            "Tokens that requests already had when they were sent to another engine.",
        )

    def _add_times(self) -> None:
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            REQUEST_BUCKETS,
        )
        self.time_between_tokens = self._histogram(
            "time_between_tokens_seconds",
            "Seconds between two messages with tokens, divided by the tokens in the later one.",
            TOKEN_BUCKETS,
        )
        self.time_added = self._histogram(
            "time_added_seconds",
            "Seconds from a request's arrival until it is sent to an engine: checks, tokenization, "
            "placement.",
            WORK_BUCKETS,
        )
        self.tokenization_time = self._histogram(
            "tokenization_time_seconds",
            "Seconds to tokenize one text or chat, including the wait for a thread.",
            WORK_BUCKETS,
        )
        self.placement_time = self._histogram(
            "placement_time_seconds",
            "Seconds to look up the prefix index and choose an engine.",
            WORK_BUCKETS,
        )

    def _counter(self, name: str, text: str, *labels: str) -> CounterFamily:
        return CounterFamily(f"{self._prefix}_{name}", text, (MODEL_NAME, *labels), self._registry)

    def _gauge(self, name: str, text: str) -> GaugeFamily:
        return GaugeFamily(f"{self._prefix}_{name}", text, (MODEL_NAME,), self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> HistogramFamily:
        return HistogramFamily(
            f"{self._prefix}_{name}", text, (MODEL_NAME,), self._registry, buckets=buckets
        )


class RequestMetrics:
    """How requests begin and end."""

    def __init__(self, families: RequestFamilies, name: str) -> None:
        self._in_flight = families.in_flight.labels(name)
        self._outcomes = {outcome: families.requests.labels(name, outcome) for outcome in OUTCOMES}
        self._request_time = families.request_time.labels(name)

    def started(self) -> None:
        """A request came in."""
        self._in_flight.inc()

    def ended(self, outcome: str, seconds: float, num_tokens: int) -> None:
        """A request is over."""
        self._in_flight.inc(-1)
        self._outcomes[outcome].inc()
        self._request_time.observe(seconds)


class ModelMetrics(RequestMetrics):
    """Hears of all stages of the requests for one model."""

    def __init__(self, families: RequestFamilies, name: str) -> None:
        super().__init__(families, name)
        self._queued_prompt_tokens = families.queued_prompt_tokens.labels(name)
        self._prompt_tokens = families.prompt_tokens.labels(name)
        self._generated_tokens = families.generated_tokens.labels(name)
        self._prompt_length = families.prompt_length.labels(name)
        self._output_length = families.output_length.labels(name)
        self._max_tokens = families.max_tokens.labels(name)
        self._best_cached = families.best_cached.labels(name)
        self._predicted_cached = families.predicted_cached.labels(name)
        self._actual_cached = families.actual_cached.labels(name)
        self._retries = families.retries.labels(name)
        self._failovers = {
            cause: families.failovers.labels(name, cause) for cause in FAILOVER_CAUSES
        }
        self._resumed_tokens = families.resumed_tokens.labels(name)
        self._time_to_first_token = families.time_to_first_token.labels(name)
        self._time_between_tokens = families.time_between_tokens.labels(name)
        self._time_added = families.time_added.labels(name)
        self._tokenization_time = families.tokenization_time.labels(name)
        self._placement_time = families.placement_time.labels(name)

    def ended(self, outcome: str, seconds: float, num_tokens: int) -> None:
        """A request is over."""
        super().ended(outcome, seconds, num_tokens)
        if num_tokens:
            self._output_length.observe(num_tokens)

    def tokenized(self, seconds: float) -> None:
        """A text or a chat became tokens."""
        self._tokenization_time.observe(seconds)

    def queued(self, num_prompt_tokens: int) -> None:
        """So many tokens more wait for an engine, or fewer if it is below 0."""
        self._queued_prompt_tokens.inc(num_prompt_tokens)

    def handed_over(self, num_prompt_tokens: int, max_tokens: int | None) -> None:
        """A request goes to the dispatcher."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._prompt_length.observe(num_prompt_tokens)
        if max_tokens is not None:
            self._max_tokens.observe(max_tokens)

    def generated(self, num_tokens: int, seconds: float, *, is_first: bool) -> None:
        """Tokens came, this long after those before them, or after the request."""
        self._generated_tokens.inc(num_tokens)
        if is_first:
            self._time_to_first_token.observe(seconds)
        else:
            self._time_between_tokens.observe(seconds / num_tokens)

    def request_placed(self, placement: Placement, seconds: float, added: float | None) -> None:
        """An engine was chosen; again for each retry, which adds no time of its own."""
        self._placement_time.observe(seconds)
        if added is not None:
            self._time_added.observe(added)

    def request_admitted(self, placement: Placement, num_cached_tokens: int) -> None:
        """An engine began with a request."""
        self._best_cached.inc(placement.num_best_cached_tokens)
        self._predicted_cached.inc(placement.num_predicted_cached_tokens)
        self._actual_cached.inc(num_cached_tokens)

    def request_retried(self, engine: str, error: RequestError) -> None:
        """A request leaves an engine that refused or lost it."""
        self._retries.inc()

    def request_resumed(self, error: RequestError, num_tokens: int) -> None:
        """A request that had tokens leaves an engine that failed or handed it back."""
        cause = error.status.metadata.get("cause", error.status.reason.lower())
        self._failovers[cause if cause in FAILOVER_CAUSES else "other"].inc()
        self._resumed_tokens.inc(num_tokens)
