"""Brings the masks of grammars to the device, between a step's logits and its draw."""

from array import array
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine_service.core.types import GrammarFailure, StepPlan
from engine_service.worker.slot_sampling import SlotSampling
from protos.wire.sampling_params import Grammar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from engine_service.grammar.matchers import SlotMatchers

_Integers = npt.NDArray[np.int64]

_NO_SLOT = -1


class _Unread(NamedTuple):
    """A step whose tokens the matchers do not know yet."""

    slots: _Integers
    """[num_sampled] the slot of each row, `_NO_SLOT` if it is another sequence's by now."""
    token_ids: torch.Tensor
    """[num_sampled] int64 on the host, complete once `ended` has happened."""
    ended: torch.cuda.Event | None


class GrammarMasks:
    """The masks of the slots whose sequences have a grammar.

    A mask needs the sequence's last token, so `fill` waits for the step before, while the device
    computes this one's logits. Steps without such rows wait for nothing.
    """

    def __init__(self, matchers: "Future[SlotMatchers]", sampling: SlotSampling) -> None:
        """Takes over the matchers, which may not be ready yet, and writes masks into `sampling`."""
        self._future = matchers
        self._sampling = sampling
        self._unread: deque[_Unread] = deque()
        self._has_any = False

    @property
    def _matchers(self) -> "SlotMatchers":
        return self._future.result()

    def try_grammar(self, grammar: Grammar) -> None:
        """Compiles a grammar and lets it begin; raises BadGrammar. Waits for all of that."""
        self._matchers.try_grammar(grammar)

    def prepare(self, grammar: Grammar) -> bool:
        """Begins to compile a grammar; returns at once, whether it is compiled."""
        return self._future.done() and self._matchers.prepare(grammar)

    def apply(self, plan: StepPlan) -> None:
        """Takes in the new slots of a plan."""
        if plan.new_grammars:
            self._has_any = True
        if not self._has_any or not plan.new_slots:
            return
        new_slots = np.asarray(plan.new_slots, dtype=np.int64)
        for unread in self._unread:
            unread.slots[np.isin(unread.slots, new_slots)] = _NO_SLOT
        matchers = self._matchers
        for slot in plan.new_slots:
            matchers.stop(slot)
        if plan.new_grammars:
            ends = np.cumsum(plan.new_num_tokens)
            end_of = dict(zip(plan.new_slots, ends.tolist(), strict=True))
            count_of = dict(zip(plan.new_slots, plan.new_num_tokens, strict=True))
            for slot, grammar, num_prompt_tokens in plan.new_grammars:
                begin = end_of[slot] - count_of[slot] + num_prompt_tokens
                output = plan.new_token_ids[begin : end_of[slot]]
                matchers.start(slot, grammar, output.tolist())

    def fill(self, slots: _Integers) -> dict[int, GrammarFailure]:
        """Writes the masks for the next token of some slots.

        Args:
            slots: [num_sampled], the slot of each row that yields a token.

        Returns:
            By place in `slots`, why a grammar cannot go on. Its mask allows no token.
        """
        if not self._has_any:
            return {}
        matchers = self._matchers
        places = [place for place, slot in enumerate(slots.tolist()) if slot in matchers]
        if not places:
            return {}
        while self._unread:
            unread = self._unread.popleft()
            if unread.ended is not None:
                unread.ended.synchronize()
            matchers.advance(unread.slots.tolist(), unread.token_ids.tolist())
        masked = slots[places]
        masks = self._sampling.staging(len(places))
        filled = matchers.fill(masked.tolist(), masks.numpy())
        self._sampling.write_masks(masked, masks, ended=masked[filled.ended])
        return {places[row]: failure for row, failure in filled.failures.items()}

    def allowed_token_ids(self, slot: int) -> "array[int] | None":
        """Returns what the grammar of a slot allows after the tokens known; takes milliseconds.

        None without a grammar, and where its text is complete: no other parameter counts there.
        """
        if not self._has_any or slot not in self._matchers:
            return None
        masks = np.zeros((1, self._matchers.num_words), np.int32)
        if self._matchers.fill([slot], masks).ended:
            return None
        bits = np.unpackbits(masks.view(np.uint8), bitorder="little")
        token_ids = np.flatnonzero(bits[: self._sampling.vocab_size])
        return array("i", token_ids.astype(np.int32).tobytes())

    def note(
        self, slots: _Integers, token_ids: torch.Tensor, ended: torch.cuda.Event | None
    ) -> None:
        """Remembers the tokens that a step yields.

        Args:
            slots: [num_sampled], as of `fill`.
            token_ids: [num_sampled] int64 on the host, complete once `ended` has happened.
            ended: None if they are complete.
        """
        if not self._has_any:
            return
        matchers = self._matchers
        if any(slot in matchers for slot in slots.tolist()):
            self._unread.append(_Unread(slots.copy(), token_ids, ended))

    def close(self) -> None:
        """Forgets everything."""
        if self._future.done() and self._future.exception() is None:
            self._matchers.close()
