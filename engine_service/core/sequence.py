"""The state of one request in the core."""

import enum
import secrets
from array import array

from engine_service.core.logit_edits import logit_edits
from engine_service.core.recent_prompts import RecentPrompts
from engine_service.core.types import FinishReason, Request
from protos.wire.block_hash import block_digests, low_64_bits_of_all
from protos.wire.sampling_params import end_token_ids, to_record

NO_SLOT = -1
MAX_KEY_TILE = 64
"""Tokens whose keys a kernel reads at once, at most; a tile starts at a multiple of its size."""


class SequenceState(enum.Enum):
    """State of a sequence. It may switch between the first two until it ends."""

    WAITING = "waiting"
    """It owns no blocks and no slot: it is new or was preempted."""
    RUNNING = "running"
    """It owns a slot and the blocks of all its known tokens."""
    FINISHED = "finished"
    """It ended or was cancelled; tokens from steps in flight are dropped."""


class Sequence:
    """A request with its tokens, its blocks and its computed position.

    Only the scheduler changes it. Positions count from the first prompt token.

    Attributes:
        order: Sorts sequences from the most to the least important: larger priority, then
            earlier arrival. Unique.
        sampling_record: What the sampler needs to know of the request; see `to_record`.
        logit_edits: Its lists of tokens that the sampler needs.
        token_ids: All known tokens: prompt, resumed and generated.
        num_given_tokens: Tokens that the request came with: prompt and resumed ones.
        num_admitted_tokens: Tokens known when it last got its slot: the prompt, and the tokens
            that a preempted sequence must compute again.
        num_pending_tokens: Tokens expected from steps in flight, one for each sampled row; also 1
            while the last step of a scoring sequence is in flight.
        num_computed_tokens: Tokens whose keys and values are in the cache once all launched
            steps are done; advances when a step is planned.
        max_num_tokens: The length at which the sequence ends.
        is_scoring: Whether no token is wanted: it ends once the logprobs of its prompt are known.
            Its prompt is computed without the last token, as nothing follows it.
        num_logprobs: How many logprobs to report with each generated token; None for none.
        num_prompt_logprobs: The same for the tokens of the prompt.
        next_scored_position: Position of the first prompt token whose logprobs are still to be
            reported.
        block_table: Physical block of each logical one; those of the first `num_passed_blocks`
            were given back.
        num_passed_blocks: Leading blocks that no later row reads, since they fell out of the
            window of all layers.
        block_hashes: Low 64 bits of the digests of the first full blocks, typecode "Q".
        num_registered_blocks: Leading blocks whose hash the pool knows.
        chain_parent: The parent of the next block in the pool; None when the chain cannot
            continue.
        last_step_id: The last step with a row of this sequence, or -1.
    """

    __slots__ = (
        "_last_digest",
        "block_hashes",
        "block_table",
        "cache_salt",
        "chain_parent",
        "is_admitted",
        "is_scoring",
        "last_step_id",
        "logit_edits",
        "max_num_tokens",
        "next_scored_position",
        "num_admitted_tokens",
        "num_computed_tokens",
        "num_given_tokens",
        "num_logprobs",
        "num_passed_blocks",
        "num_pending_tokens",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_registered_blocks",
        "order",
        "request",
        "request_id",
        "sampling_record",
        "seed",
        "slot",
        "state",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(
        self,
        request: Request,
        *,
        number: int,
        max_num_tokens: int,
        eos_token_ids: frozenset[int],
        root: bytes,
    ) -> None:
        """Creates a waiting sequence.

        Args:
            request: Already checked against `Limits`.
            number: Increases with each arrival.
            max_num_tokens: The length at which it ends.
            eos_token_ids: Tokens that end it unless the request ignores them.
            root: Digest that precedes the first block.
        """
        params = request.sampling_params
        self.request_id = request.request_id
        self.request = request
        self.order = (-request.priority, number)
        self.cache_salt = request.cache_salt
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.stop_token_ids = end_token_ids(params, eos_token_ids)
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.logit_edits = logit_edits(
            params,
            num_prompt_tokens=self.num_prompt_tokens,
            stop_token_ids=self.stop_token_ids,
        )
        self.sampling_record = to_record(
            params,
            self.seed,
            num_prompt_tokens=self.num_prompt_tokens,
            num_biases=self.logit_edits.num_biases,
            is_restricted=bool(self.logit_edits.allowed) or params.grammar is not None,
        )
        self.num_logprobs = params.logprobs
        self.num_prompt_logprobs = params.prompt_logprobs
        self.is_scoring = params.max_tokens == 0
        # A scoring sequence has reached its length as it comes, but must be computed.
        self.max_num_tokens = max_num_tokens + self.is_scoring

        self.token_ids = request.prompt_token_ids + request.resume_token_ids
        self.num_given_tokens = len(self.token_ids)
        self.num_admitted_tokens = self.num_given_tokens
        # The first token follows nothing.
        self.next_scored_position = self.num_prompt_tokens if params.prompt_logprobs is None else 1
        self.block_hashes = array("Q")
        self._last_digest = root

        self.state = SequenceState.WAITING
        self.is_admitted = False
        self.last_step_id = -1
        self.num_pending_tokens = 0
        self.slot = NO_SLOT
        self.block_table: list[int] = []
        self.num_passed_blocks = 0
        self.chain_parent: int | str | None = None
        self.forget_computed()

    def forget_computed(self) -> None:
        """Marks all tokens as uncomputed; tokens and hashes are kept."""
        self.num_computed_tokens = 0
        self.forget_registered()

    def forget_registered(self) -> None:
        """Restarts the chain of registered blocks."""
        self.num_registered_blocks = 0
        self.chain_parent = self.cache_salt

    @property
    def num_tokens(self) -> int:
        """Known tokens and those expected from steps in flight."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that no launched step computes."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    @property
    def num_cacheable_tokens(self) -> int:
        """Known tokens whose keys and values are written by launched steps."""
        return min(self.num_computed_tokens, len(self.token_ids))

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens, including those generated elsewhere."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def reports_logprobs(self) -> bool:
        """Whether logprobs of any kind were asked for."""
        return self.num_logprobs is not None or self.num_prompt_logprobs is not None

    @property
    def must_score_prompt(self) -> bool:
        """Whether logprobs of the prompt are still to be reported."""
        return self.next_scored_position < self.num_prompt_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence must end after its last known token, or None."""
        if self.is_scoring:
            return None if self.must_score_prompt else FinishReason.LENGTH
        if not self.num_output_tokens:
            return None
        if self.token_ids[-1] in self.stop_token_ids:
            return FinishReason.STOP
        if len(self.token_ids) >= self.max_num_tokens:
            return FinishReason.LENGTH
        return None

    def pass_blocks(self, window: int, block_size: int) -> list[int]:
        """Returns the blocks that fell out of the window since the last call, and counts them.

        Kernels read whole tiles of keys, and the last known token may have to be computed again.

        Args:
            window: Tokens that a token reads at most, its own among them.
            block_size: Tokens of a block.
        """
        first_read = max(0, self.num_cacheable_tokens - window) // MAX_KEY_TILE * MAX_KEY_TILE
        start, self.num_passed_blocks = self.num_passed_blocks, first_read // block_size
        return self.block_table[start : self.num_passed_blocks]

    def extend_block_hashes(self, block_size: int, recent: RecentPrompts[bytes]) -> None:
        """Hashes the blocks that became full since the last call.

        Args:
            block_size: Tokens of a block.
            recent: The digests of the blocks of other prompts, and then of this one, too.
        """
        start = len(self.block_hashes) * block_size
        if len(self.token_ids) - start < block_size:
            return
        if start:
            digests = block_digests(self._last_digest, self.token_ids[start:], block_size)
        else:
            root, tokens = self._last_digest, self.token_ids.tobytes()
            digests = recent.find(root, tokens)
            digests += block_digests(
                digests[-1] if digests else root,
                self.token_ids[len(digests) * block_size :],
                block_size,
            )
            recent.keep(root, tokens, digests)
        self.block_hashes.extend(low_64_bits_of_all(digests))
        self._last_digest = digests[-1]
