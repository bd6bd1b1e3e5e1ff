"""An executor whose tokens are hashes of the seed and of all tokens before them."""

from array import array
from collections.abc import Collection, Sequence

import xxhash

from engine_service.core.types import RankStats, StepPlan, StepResult, int32_array
from tests.fakes.sampling_records import new_seeds, new_temperatures


class TokenStream:
    """The tokens that follow a seed and a prompt.

    Args:
        seed: 0 at temperature 0.
        token_ids: All tokens so far.
    """

    __slots__ = ("_hasher", "num_given_tokens")

    def __init__(self, seed: int, token_ids: Sequence[int]) -> None:
        self.num_given_tokens = len(token_ids)
        self._hasher = xxhash.xxh3_64(array("q", [seed]).tobytes())
        self._hasher.update(array("i", token_ids).tobytes())

    def draw(self, vocab_size: int, eos_token_ids: Collection[int]) -> int:
        """Returns the next token, which is never one of `eos_token_ids`."""
        token_id = self._hasher.intdigest() % vocab_size
        while token_id in eos_token_ids:
            token_id = (token_id + 1) % vocab_size
        self._hasher.update(token_id.to_bytes(4, "little"))
        return token_id


class HashExecutor:
    """Runs plans at once and says how long a device would have taken.

    Args:
        vocab_size: Tokens are smaller.
        eos_token_ids: Tokens that are never drawn.
        prefill_tokens_per_second: 0: a prompt costs no time.
        decode_step_seconds: What a step takes that decodes.

    Attributes:
        step_seconds: What the last step would have taken.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        eos_token_ids: Collection[int],
        prefill_tokens_per_second: float,
        decode_step_seconds: float,
    ) -> None:
        self.step_seconds = 0.0
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._prefill_tokens_per_second = prefill_tokens_per_second
        self._decode_step_seconds = decode_step_seconds
        self._slots: dict[int, TokenStream] = {}

    def launch(self, plan: StepPlan) -> StepResult:
        """Computes the step."""
        self._take_new_slots(plan)
        token_ids = []
        num_prefill_tokens = 0
        decodes = False
        for slot, start, count, is_sampled in zip(
            plan.slots,
            plan.num_computed_tokens,
            plan.num_scheduled_tokens,
            plan.is_sampled,
            strict=True,
        ):
            stream = self._slots[slot]
            if start >= stream.num_given_tokens:
                decodes = True
            else:
                num_prefill_tokens += count
            if is_sampled:
                token_ids.append(stream.draw(self._vocab_size, self._eos_token_ids))
        rate = self._prefill_tokens_per_second
        self.step_seconds = (num_prefill_tokens / rate if rate else 0.0) + (
            self._decode_step_seconds if decodes else 0.0
        )
        return StepResult(token_counts=plan.is_sampled, token_ids=int32_array(token_ids))

    def collect(self, handle: StepResult) -> StepResult:
        """Returns the tokens of a step."""
        return handle

    def check_ranks(self) -> None:
        """Has no other ranks."""

    def take_rank_stats(self) -> tuple[RankStats, ...]:
        """Has no other ranks."""
        return ()

    def close(self) -> None:
        """Forgets all slots."""
        self._slots.clear()

    def _take_new_slots(self, plan: StepPlan) -> None:
        start = 0
        for slot, num_tokens, temperature, seed in zip(
            plan.new_slots,
            plan.new_num_tokens,
            new_temperatures(plan),
            new_seeds(plan),
            strict=True,
        ):
            token_ids = plan.new_token_ids[start : start + num_tokens]
            self._slots[slot] = TokenStream(seed if temperature else 0, token_ids)
            start += num_tokens
