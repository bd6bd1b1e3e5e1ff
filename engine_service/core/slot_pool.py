"""The slots of running sequences, and what steps in flight keep of what was released."""

from dataclasses import dataclass

from engine_service.core.block_pool import BlockPool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retired:
    """What a sequence released while a step in flight still used it; no slot if it runs on."""

    step_id: int
    slot: int | None
    block_table: list[int]


class SlotPool:
    """Reassigns a slot, and frees the blocks that came with it, only after their last step.

    Attributes:
        collected_step_id: The last step that was collected, -1 before the first; the owner sets it.
    """

    def __init__(self, num_slots: int, blocks: BlockPool) -> None:
        """Starts with all slots free.

        Args:
            num_slots: Slots from 0 on.
            blocks: The pool that released blocks go back to.
        """
        self.collected_step_id = -1
        self._blocks = blocks
        self._free = list(reversed(range(num_slots)))
        self._retired: list[_Retired] = []

    @property
    def has_free(self) -> bool:
        """Whether a slot can be taken."""
        return bool(self._free)

    @property
    def has_retired(self) -> bool:
        """Whether slots or blocks come back with a step in flight."""
        return bool(self._retired)

    def take(self) -> int:
        """Takes a free slot."""
        return self._free.pop()

    def release(self, step_id: int, slot: int | None, block_table: list[int]) -> None:
        """Gives back slot and blocks, at once or when the last step that uses them is done.

        Args:
            step_id: The last step that uses them.
            slot: None for blocks alone.
            block_table: Blocks in the order in which their sequence has them.
        """
        self._retired.append(_Retired(step_id=step_id, slot=slot, block_table=block_table))
        if step_id <= self.collected_step_id:
            self.free_retired()

    def free_retired(self) -> None:
        """Frees what no step in flight uses any more."""
        still_used = []
        for retired in self._retired:
            if retired.step_id > self.collected_step_id:
                still_used.append(retired)
                continue
            self._blocks.free(retired.block_table)
            if retired.slot is not None:
                self._free.append(retired.slot)
        self._retired = still_used
