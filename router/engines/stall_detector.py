"""Detects that an engine has work but makes no step for too long."""

from router.types.engine_state import EngineLoad, ModelInfo

TICK_SECONDS = 0.25
"""How often the owner calls `tick`."""

_LEAST_SECONDS = 3.0
_MAX_SECONDS = 120.0
"""Also used until the prefill rate is known: an engine's first step may have to compile kernels."""
_GAP_FACTOR = 10.0
_PREFILL_FACTOR = 5.0
_GAP_DECAY = 0.99
"""Factor per message, so that one long step is forgotten after some hundred messages."""


class StallDetector:
    """Measures how long an engine with work has been silent.

    Engines send a message with each step. An engine is stalled if it has been silent for more than
    3 s, ten times the longest recent gap, and five times the duration of a step full of prompt
    tokens at its reported rate; or for two minutes in any case.

    Time is counted in ticks of at most `TICK_SECONDS`: if this process itself was stopped, its
    engines are not to blame.
    """

    def __init__(self) -> None:
        self._silence = 0.0
        self._longest_gap = 0.0

    @property
    def silence(self) -> float:
        """Seconds since the last message, or since the engine got work."""
        return self._silence

    def heard(self) -> None:
        """Notes a message of the engine."""
        self._longest_gap = max(self._silence, self._longest_gap * _GAP_DECAY)
        self._silence = 0.0

    def tick(self, *, is_busy: bool) -> None:
        """Notes that a tick passed, and whether the engine had work all the time."""
        self._silence = self._silence + TICK_SECONDS if is_busy else 0.0

    def is_stalled(self, model: ModelInfo | None, load: EngineLoad) -> bool:
        """Tells whether the silence is too long for an engine of this model and load."""
        return self._silence > self.limit(model, load)

    def limit(self, model: ModelInfo | None, load: EngineLoad) -> float:
        """Returns the longest silence, in seconds, that is not a stall."""
        if model is None or not load.prefill_tokens_per_second:
            return _MAX_SECONDS
        step = model.max_num_batched_tokens / load.prefill_tokens_per_second
        limit = max(_LEAST_SECONDS, _GAP_FACTOR * self._longest_gap, _PREFILL_FACTOR * step)
        return min(limit, _MAX_SECONDS)
