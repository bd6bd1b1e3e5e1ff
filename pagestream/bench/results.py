"""What a load has brought so far."""

from dataclasses import dataclass, field

from pagestream.bench.sketch import Sketch
from protos.wire.printable import shown

_MAX_REASONS = 32
_OTHER = "OTHER"


@dataclass(slots=True)
class Usage:
    """What a server says of one request."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


@dataclass(slots=True)
class Results:
    """Counts, and latencies in seconds. In an open loop these begin at the planned time.

    Attributes:
        num_started: Requests sent, or planned and not sent in time.
        failures: Those that failed, by reason.
        first_token: Until the first message with tokens.
        next_token: Between two messages, divided by the tokens in the later one.
        answer: Until the end of an answer that succeeded.
        send_delay: From the planned time to the sending.
        seconds: From the first planned time to the end of the last answer.
        cpu_seconds: Of this process, meanwhile.
    """

    num_started: int = 0
    num_succeeded: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    first_token: Sketch = field(default_factory=Sketch)
    next_token: Sketch = field(default_factory=Sketch)
    answer: Sketch = field(default_factory=Sketch)
    send_delay: Sketch = field(default_factory=Sketch)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def num_failed(self) -> int:
        """Requests that failed."""
        return sum(self.failures.values())

    @property
    def num_ended(self) -> int:
        """Requests that succeeded or failed."""
        return self.num_succeeded + self.num_failed

    def fail(self, reason: str) -> None:
        """Counts a request that failed; a server may give any number of reasons."""
        name = shown(reason, 64)
        if name not in self.failures and len(self.failures) >= _MAX_REASONS:
            name = _OTHER
        self.failures[name] = self.failures.get(name, 0) + 1

    def add_usage(self, usage: Usage) -> None:
        """Counts the tokens of a prompt."""
        self.num_prompt_tokens += usage.num_prompt_tokens
        self.num_cached_tokens += usage.num_cached_tokens
