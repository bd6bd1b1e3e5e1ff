"""Detects a core that has sent no heartbeat for too long."""

TICK_SECONDS = 0.25
"""The owner calls `tick` at most this often; each call counts as this much silence."""

_FACTOR = 10.0
"""How much longer than expected a step may take."""
_UNKNOWN_STEP_SECONDS = 12.0
"""Assumed for a step with prompt tokens until one is measured; the first may compile kernels."""
_INTAKE_SECONDS = 1.0
"""By then a live core has started the available work, or reported that there is none."""
_DECAY = 0.999
"""Per step, so that one long step is forgotten after about a thousand."""


class CoreWatch:
    """Measures the silence of the core loop, which sends a message after each step and while idle.

    The core is frozen when its silence exceeds each of three times: `min_seconds`, ten times its
    longest recent step, and ten times the expected time of the current work at its measured rate.
    (A CPU may take half a minute for one step full of prompt tokens.) Work that arrived too late
    for the current step does not count, so requests sent to a frozen core do not extend the limit.

    Time is counted in ticks of the owner, each as `TICK_SECONDS`. A stalled server or a
    clock jump therefore does not count against the core.
    """

    def __init__(self, min_seconds: float) -> None:
        self._min_seconds = min_seconds
        self._silence = 0.0
        self._longest_step = 0.0
        self._expected_step = 0.0

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat."""
        return self._silence

    @property
    def limit(self) -> float:
        """The longest silence, in seconds, of a live core."""
        return max(self._min_seconds, _FACTOR * max(self._longest_step, self._expected_step))

    @property
    def is_frozen(self) -> bool:
        """Whether the silence is too long."""
        return self._silence > self.limit

    def heard(self, step_seconds: float) -> None:
        """Records a heartbeat, with the duration of its step or 0."""
        # A step during which the core was stopped does not predict the next.
        if step_seconds and not self.is_frozen:
            self._longest_step = max(step_seconds, self._longest_step * _DECAY)
        self._silence = 0.0
        self._expected_step = 0.0

    def tick(self, *, num_tokens: int, tokens_per_second: float) -> None:
        """Records a tick.

        Args:
            num_tokens: Maximum prompt tokens in the core's next step.
            tokens_per_second: Rate at which it computes them, or 0 before any measurement.
        """
        self._silence += TICK_SECONDS
        if num_tokens and self._silence <= _INTAKE_SECONDS:
            seconds = num_tokens / tokens_per_second if tokens_per_second else _UNKNOWN_STEP_SECONDS
            self._expected_step = max(self._expected_step, seconds)
