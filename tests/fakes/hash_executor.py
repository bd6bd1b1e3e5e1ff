"""An executor whose tokens are hashes of the seed and of all tokens before them."""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import xxhash

from engine_service.core.logprobs import StepLogprobs
from engine_service.core.types import StepPlan, StepResult, int32_array
from tests.fakes.logprobs import Row, pack
from tests.fakes.sampling_records import new_logprobs, new_seeds, new_temperatures


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

    def append(self, token_id: int) -> None:
        """Appends a token."""
        self._hasher.update(token_id.to_bytes(4, "little"))

    def logprobs(self, token_id: int, width: int, vocab_size: int) -> Row:
        """Returns the logprobs of the next token, which was not drawn yet.

        The token that would be drawn is the likeliest, and those after it follow in order of ID.
        """
        first = self._hasher.intdigest() % vocab_size
        likeliest = [(first + rank) % vocab_size for rank in range(width)]
        own = -((token_id - first) % vocab_size) / 4
        return own, likeliest, [-rank / 4 for rank in range(width)]

    def peek(self, vocab_size: int, eos_token_ids: Collection[int]) -> int:
        """Returns the next token, which is never one of `eos_token_ids`."""
        token_id = self._hasher.intdigest() % vocab_size
        while token_id in eos_token_ids:
            token_id = (token_id + 1) % vocab_size
        return token_id

    def draw(self, vocab_size: int, eos_token_ids: Collection[int]) -> int:
        """Returns the next token and appends it."""
        token_id = self.peek(vocab_size, eos_token_ids)
        self.append(token_id)
        return token_id


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a slot's request wants to know beside its tokens; -1 for nothing."""

    num_logprobs: int
    num_prompt_logprobs: int
    token_ids: "array[int]"


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
        self._asked: dict[int, _Asked] = {}

    def launch(self, plan: StepPlan) -> StepResult:
        """Computes the step."""
        self._take_new_slots(plan)
        token_ids = []
        rows = []
        width = self._width(plan)
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
                token_id = stream.peek(self._vocab_size, self._eos_token_ids)
                if width >= 0:
                    rows.append(stream.logprobs(token_id, width, self._vocab_size))
                stream.append(token_id)
                token_ids.append(token_id)
        rate = self._prefill_tokens_per_second
        self.step_seconds = (num_prefill_tokens / rate if rate else 0.0) + (
            self._decode_step_seconds if decodes else 0.0
        )
        return StepResult(
            token_counts=plan.is_sampled,
            token_ids=int32_array(token_ids),
            logprobs=pack(rows) if width >= 0 else None,
            prompt_logprobs=self._prompt_logprobs(plan) if plan.num_prompt_logprobs else None,
        )

    def collect(self, handle: StepResult) -> StepResult:
        """Returns the tokens of a step."""
        return handle

    def check_ranks(self) -> None:
        """Has no other ranks."""

    def close(self) -> None:
        """Forgets all slots."""
        self._slots.clear()
        self._asked.clear()

    def _width(self, plan: StepPlan) -> int:
        """Returns how many logprobs the sampled rows ask for at most; -1 for none."""
        if not self._asked:
            return -1
        sampled = (slot for slot, flag in zip(plan.slots, plan.is_sampled, strict=True) if flag)
        return max(
            (self._asked[slot].num_logprobs for slot in sampled if slot in self._asked), default=-1
        )

    def _prompt_logprobs(self, plan: StepPlan) -> StepLogprobs:
        rows = []
        asked = [self._asked.get(slot) for slot in plan.slots]
        width = max(one.num_prompt_logprobs for one in asked if one is not None)
        for one, start, count in zip(
            asked, plan.num_computed_tokens, plan.num_prompt_logprobs, strict=True
        ):
            if one is None or not count:
                continue
            stream = TokenStream(0, one.token_ids[: start + 1])
            for token_id in one.token_ids[start + 1 : start + 1 + count]:
                rows.append(stream.logprobs(token_id, width, self._vocab_size))
                stream.append(token_id)
        return pack(rows)

    def _take_new_slots(self, plan: StepPlan) -> None:
        start = 0
        for slot, num_tokens, temperature, seed, num_logprobs, num_prompt_logprobs in zip(
            plan.new_slots,
            plan.new_num_tokens,
            new_temperatures(plan),
            new_seeds(plan),
            new_logprobs(plan),
            new_logprobs(plan, "prompt_logprobs"),
            strict=True,
        ):
            token_ids = plan.new_token_ids[start : start + num_tokens]
            self._asked.pop(slot, None)
            if num_logprobs >= 0 or num_prompt_logprobs >= 0:
                self._asked[slot] = _Asked(num_logprobs, num_prompt_logprobs, token_ids)
            self._slots[slot] = TokenStream(seed if temperature else 0, token_ids)
            start += num_tokens
