"""The port between the scheduler's world and the tensors' world."""

from typing import Protocol, TypeVar

from engine_service.core.types import StepPlan, StepResult

HandleT = TypeVar("HandleT")


class Executor(Protocol[HandleT]):
    """Runs step plans on all ranks, in the order of their launch."""

    def launch(self, plan: StepPlan) -> HandleT:
        """Starts a step and returns without waiting for its tokens.

        Several steps may be in flight; they read and write the cache in the order of launch.
        """

    def collect(self, handle: HandleT) -> StepResult:
        """Waits for a step's tokens. Steps are collected in the order of launch, each once.

        `StepResult` says when a row may bring another number of tokens than one.
        """

    def close(self) -> None:
        """Releases the device and stops all ranks. No step may be in flight."""
