"""The interface between the scheduler and the workers that run the model."""

from typing import Protocol, TypeVar

from engine_service.core.types import StepPlan, StepResult
from protos.wire.sampling_params import Grammar

HandleT = TypeVar("HandleT")


class Executor(Protocol[HandleT]):
    """Runs step plans on all ranks, in launch order."""

    def prepare(self, grammar: Grammar) -> bool:
        """Begins to compile a grammar; returns at once, whether it is compiled.

        Called only if the engine supports grammars. A plan may name one that is not compiled; its
        step then takes the longer.
        """

    def launch(self, plan: StepPlan) -> HandleT:
        """Starts a step and returns without waiting for its tokens.

        Several steps may be in flight; they read and write the cache in launch order.
        """

    def collect(self, handle: HandleT) -> StepResult:
        """Waits for a step's tokens. Each step is collected once, in launch order.

        `StepResult` says when a row may yield a number of tokens other than one.
        """

    def check_ranks(self) -> None:
        """Waits until all ranks have answered; call it while no step is in flight.

        So a rank that hangs is noticed without work: the caller hangs with it.
        """

    def close(self) -> None:
        """Releases the device and stops all ranks. No step may be in flight when it is called."""
