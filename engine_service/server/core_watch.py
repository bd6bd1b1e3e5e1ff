"""Tells when the core has given no sign of life for too long."""

TICK_SECONDS = 0.25
"""How often the owner calls `tick`, at most."""

_FACTOR = 10.0
"""How much longer than expected a step may take."""
_UNKNOWN_STEP_SECONDS = 12.0
"""What a step with prompt tokens takes before one was measured; the first may compile kernels."""
_INTAKE_SECONDS = 1.0
"""By then a core that lives has begun with the work that was there, or said that there is none."""
_DECAY = 0.999
"""By a step, so that one long step is forgotten after some thousand."""


class CoreWatch:
    """Measures the silence of the core's loop, which says a word after each step and while idle.

    The core is frozen when it has been silent for longer than `min_seconds`, ten times its longest
    step of late, and ten times what the work at hand takes at the rate that it has shown: a CPU may
    compute for half a minute on one step full of prompt tokens. Work that came later than the step
    under way can have begun does not count, so that requests sent to a frozen core buy it no time.

    Time is counted in ticks of the owner, each of at most `TICK_SECONDS`: when the server itself
    stood still, or the clock jumped, the core is not to blame.
    """

    def __init__(self, min_seconds: float) -> None:
        self._min_seconds = min_seconds
        self._silence = 0.0
        self._longest_step = 0.0
        self._expected_step = 0.0

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return self._silence

    @property
    def limit(self) -> float:
        """The longest silence, in seconds, of a core that lives."""
        return max(self._min_seconds, _FACTOR * max(self._longest_step, self._expected_step))

    @property
    def is_frozen(self) -> bool:
        """Whether the silence is too long."""
        return self._silence > self.limit

    def heard(self, step_seconds: float) -> None:
        """Notes a sign of life, with the time of the step behind it or 0."""
        # A step during which the core stood still says nothing about the next.
        if step_seconds and not self.is_frozen:
            self._longest_step = max(step_seconds, self._longest_step * _DECAY)
        self._silence = 0.0
        self._expected_step = 0.0

    def tick(self, *, num_tokens: int, tokens_per_second: float) -> None:
        """Notes that a tick passed.

        Args:
            num_tokens: Prompt tokens that the core's next step may compute, at most.
            tokens_per_second: Rate at which it computes them, or 0 before any measurement.
        """
        self._silence += TICK_SECONDS
        if num_tokens and self._silence <= _INTAKE_SECONDS:
            seconds = num_tokens / tokens_per_second if tokens_per_second else _UNKNOWN_STEP_SECONDS
            self._expected_step = max(self._expected_step, seconds)
