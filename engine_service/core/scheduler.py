"""Chooses the sequences and token counts of each step, and applies the step's tokens."""

import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING

from engine_service.config import SchedulerOptions
from engine_service.core import logprob_report
from engine_service.core.block_pool import BlockPool, PrefixMatch
from engine_service.core.limits import Limits
from engine_service.core.missing_token import why_missing
from engine_service.core.plan_builder import PlanBuilder
from engine_service.core.prefix_groups import PrefixGroups
from engine_service.core.progress import (
    ScheduleEvents,
    SchedulerStatistics,
    StepProgress,
)
from engine_service.core.recent_prompts import RecentPrompts
from engine_service.core.sequence import NO_SLOT, Sequence, SequenceState
from engine_service.core.sequence_queue import SequenceQueue
from engine_service.core.slot_pool import SlotPool
from engine_service.core.types import (
    NO_TOKEN,
    Admission,
    EngineInfo,
    Failure,
    Finish,
    FinishReason,
    Request,
    StepPlan,
    StepResult,
    int32_array,
)
from engine_service.errors import RequestError, invalid_logits
from protos.wire.block_hash import root_digest

if TYPE_CHECKING:
    from array import array

# Looking up enum members hundreds of times a step would be the largest cost.
_RUNNING = SequenceState.RUNNING
_FINISHED = SequenceState.FINISHED


class Scheduler:
    """Divides each step's token budget among sequences; prefill and decode are not separate phases.

    Running sequences come first. Those with one uncomputed token get that token. Then those with
    more (in their prompt, or after a step that yielded several tokens) get chunks. The rest of the
    budget goes to waiting sequences by importance: larger priority, then earlier arrival. A waiting
    sequence that does not fit holds up all behind it.
    At most `max_num_batched_tokens` sequences run, so that a step has a decode token for each.

    On admission a sequence gets blocks for all its known tokens, so later only generated tokens
    need new blocks. If too few are free, the least important sequence is preempted: it releases its
    slot and blocks, keeps its tokens, and starts over, mostly from its own cached blocks. Near a
    full pool, engines can preempt and resume the same sequences over and over (vLLM issue 25538).
    To prevent this, a sequence is admitted only if afterwards one block is free for each sequence
    already running, and never in a step that was short of blocks.

    Positions advance when a step is planned, not when it is done, so several steps may be in
    flight. The next row of a sequence may compute a token that only the ranks know. Its plan
    assumes one token from the row before it; see `StepResult` for the consequences. A slot or
    block that a step in flight uses is reassigned only after that step is collected.

    If all layers of a model have a window, blocks that fell out of it are given back while their
    sequence runs. They stay findable until they are reused.
    """

    def __init__(
        self, info: EngineInfo, options: SchedulerOptions, enable_prefix_caching: bool
    ) -> None:
        self.pool = BlockPool(info.num_blocks, info.block_size, enable_prefix_caching)
        self._info = info
        self._limits = Limits.from_info(info)
        self._max_num_batched_tokens = options.max_num_batched_tokens
        self._max_num_running = min(
            options.max_num_seqs, info.max_num_seqs, options.max_num_batched_tokens
        )
        self._block_size = info.block_size
        self._window = info.window
        # Attention with a window reads no more of a prefix than the window.
        shares = enable_prefix_caching and not any(info.windows)
        self._prefix_groups = PrefixGroups(info.block_size) if shares else None

        self._recent_digests = RecentPrompts[bytes](info.block_size)
        self._sequences: dict[int, Sequence] = {}
        self._waiting = SequenceQueue()
        self._running = SequenceQueue()
        self._num_waiting_tokens = 0
        self._num_reporting = 0  # open sequences that report logprobs
        self._num_arrivals = 0

        self._in_flight: deque[tuple[StepPlan, PlanBuilder]] = deque()
        self._next_step_id = 0
        self._slots = SlotPool(info.max_num_seqs, self.pool)
        # Order of the sequence that did not fit; free blocks and running sequences at that time:
        # while neither bettered, there is no need to look its prefix up again. It may have grown,
        # but each block that a running sequence adds to it takes a free one.
        self._blocked: tuple[tuple[int, int], int, int] | None = None
        self._events = ScheduleEvents()

    @property
    def has_work(self) -> bool:
        """Whether a request is open, or has ended without being reported yet."""
        return bool(self._sequences or self._events.finishes)

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._sequences)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._sequences

    def add(self, request: Request) -> None:
        """Adds a request that was checked against `Limits` and whose ID is not in use.

        If its resumed tokens already end it, or it asks for nothing but the logprobs of a prompt of
        one token, which has none, it finishes at once.
        """
        assert request.request_id not in self._sequences, f"{request.request_id=} is in use"
        sequence = Sequence(
            request,
            number=self._num_arrivals,
            max_num_tokens=self._limits.max_num_tokens(request),
            eos_token_ids=self._info.eos_token_ids,
            root=root_digest(self._info.model_fingerprint, cache_salt=request.cache_salt),
        )
        self._num_arrivals += 1
        self._sequences[request.request_id] = sequence
        self._num_reporting += sequence.reports_logprobs
        self._enqueue(sequence)
        if sequence.finish_reason is not None:
            if sequence.is_scoring:
                self._report_admission(sequence)
            self._finish(sequence)

    def cancel(self, request_id: int) -> bool:
        """Ends a request without reporting it; returns whether it was open.

        Its blocks become free at once, or when the steps in flight that use them are done.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def schedule(self, max_admissions: int | None = None) -> StepPlan | None:
        """Plans the next step, or returns None if no sequence can run now.

        None while requests are unfinished means that a step in flight must be collected first.

        Args:
            max_admissions: Waiting sequences that the step may admit, at least 1; None for all.
        """
        builder = PlanBuilder(self._next_step_id)
        prefills, is_short = self._schedule_decodes(builder)
        budget = self._max_num_batched_tokens - len(builder.sequences)
        for sequence in prefills:
            if not budget:
                break
            budget -= self._add_prefill(builder, sequence, budget)
        if not is_short:
            self._schedule_waiting(builder, budget, max_admissions)
        if not builder.sequences:
            return None
        if self._window:
            self._release_passed_blocks(builder.sequences)
        plan = builder.build(self._prefix_groups.find() if self._prefix_groups else None)
        self._in_flight.append((plan, builder))
        self._next_step_id += 1
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> StepProgress:
        """Applies the tokens of the oldest step in flight.

        Blocks that its tokens filled become findable, sequences end, and slots and blocks that
        only this step still used become free.

        A row's tokens are applied one by one: the first that ends the request is its last, and
        those after it are dropped.

        Raises:
            RuntimeError: The result does not match the plan: an executor is broken.
        """
        launched, builder = self._in_flight.popleft()
        assert launched is plan, "steps are collected in the order of their launch"
        has_one_each = result.token_counts == plan.is_sampled
        if not has_one_each or len(result.token_ids) != sum(plan.is_sampled):
            result.check(plan)
        self._slots.collected_step_id = plan.step_id
        progress = StepProgress(
            num_prefill_tokens=sum(plan.num_scheduled_tokens) - builder.num_decode_tokens,
            num_decode_tokens=builder.num_decode_tokens,
        )
        reports = self._num_reporting > 0
        if reports:
            progress = self._take_prompt_logprobs(plan, builder, result, progress)
        if has_one_each:
            self._take_one_each(plan, builder, result, progress)
        else:
            self._take_counted(plan, builder, result, progress)
        self._slots.free_retired()
        if reports:
            logprobs = logprob_report.of_tokens(builder.sequences, result, progress)
            progress = dataclasses.replace(progress, logprobs=logprobs)
        return progress

    def _take_prompt_logprobs(
        self, plan: StepPlan, builder: PlanBuilder, result: StepResult, progress: StepProgress
    ) -> StepProgress:
        """Applies the logprobs of prompts; returns the progress with them."""
        logprobs, scored, invalid = logprob_report.of_prompts(plan, builder.sequences, result)
        for sequence in scored:
            if sequence.is_scoring and not sequence.must_score_prompt:
                self._finish(sequence)
        for sequence in invalid:
            self._fail_with_invalid_logits(sequence)
        return dataclasses.replace(progress, prompt_logprobs=logprobs)

    def _take_one_each(
        self, plan: StepPlan, builder: PlanBuilder, result: StepResult, progress: StepProgress
    ) -> None:
        """Applies one token per sampled row: a faster `_take_counted`."""
        new_token_ids = iter(result.token_ids)
        size = self._block_size
        for sequence, start, count, is_sampled in zip(
            builder.sequences,
            plan.num_computed_tokens,
            plan.num_scheduled_tokens,
            plan.is_sampled,
            strict=True,
        ):
            token_id = next(new_token_ids) if is_sampled else None
            if sequence.state is _FINISHED:
                continue
            if token_id == NO_TOKEN:
                self._fail_without_token(sequence, result, builder.sequences.index(sequence))
                continue
            if token_id is not None:
                progress.request_ids.append(sequence.request_id)
                progress.token_ids.append(token_id)
                self._append_token(sequence, token_id)
            if sequence.state is _RUNNING and (
                (start + count) // size > sequence.num_registered_blocks
            ):
                self._register_blocks(sequence)
            # `finish_reason` is inlined: this loop runs over every row of every step.
            if token_id in sequence.stop_token_ids or (
                len(sequence.token_ids) >= sequence.max_num_tokens
            ):
                self._finish(sequence)
        progress.token_counts.extend(int32_array([1]) * len(progress.request_ids))

    def _take_counted(
        self, plan: StepPlan, builder: PlanBuilder, result: StepResult, progress: StepProgress
    ) -> None:
        """Applies any number of tokens per sampled row."""
        start = 0
        for row, (sequence, is_sampled, count) in enumerate(
            zip(builder.sequences, plan.is_sampled, result.token_counts, strict=True)
        ):
            token_ids = result.token_ids[start : start + count]
            start += count
            if sequence.state is _FINISHED:
                continue
            if is_sampled and count != 1:
                if sequence.last_step_id > plan.step_id:
                    raise RuntimeError(
                        f"step {plan.step_id} returned {count} tokens for request "
                        f"{sequence.request_id}, but step {sequence.last_step_id}, already in "
                        "flight, was planned for one; set max_steps_in_flight to 1"
                    )
                sequence.num_pending_tokens += count - 1
            num_taken, is_valid = self._append_tokens(sequence, token_ids)
            if num_taken:
                progress.request_ids.append(sequence.request_id)
                progress.token_counts.append(num_taken)
                progress.token_ids.extend(token_ids[:num_taken])
            if not is_valid:
                self._fail_without_token(sequence, result, row)
                continue
            if is_sampled and not count:
                self._compute_last_again(sequence)
            if sequence.state is _RUNNING:
                self._register_blocks(sequence)
            if sequence.finish_reason is not None:
                self._finish(sequence)

    def take_events(self) -> ScheduleEvents:
        """Returns what happened since the last call."""
        events = self._events
        self._events = ScheduleEvents()
        return events

    def statistics(self) -> SchedulerStatistics:
        """Returns counts of waiting and running sequences."""
        num_tokens = self._num_waiting_tokens
        for sequence in self._running:
            num_uncomputed_tokens = sequence.num_uncomputed_tokens
            if (
                num_uncomputed_tokens > 1
                and sequence.num_computed_tokens < sequence.num_admitted_tokens
            ):
                num_tokens += num_uncomputed_tokens
        return SchedulerStatistics(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_prefill_tokens=num_tokens,
        )

    def _schedule_decodes(self, builder: PlanBuilder) -> tuple[list[Sequence], bool]:
        """Schedules one token for each running sequence with one uncomputed token.

        Those with more get their blocks too, although the budget may not reach them in this step:
        later, a victim could already have a row.

        Returns:
            The running sequences that have more uncomputed tokens and the blocks for them, and
            whether blocks were short.
        """
        prefills = []
        is_short = False
        # A victim is the last one, so it has not had its turn yet.
        for sequence in self._running:
            num_tokens = sequence.num_tokens
            if num_tokens >= sequence.max_num_tokens:
                # Its last token is in flight.
                continue
            if num_tokens > len(sequence.block_table) * self._block_size:
                num_blocks = -(-num_tokens // self._block_size) - len(sequence.block_table)
                if num_blocks > self.pool.num_free_blocks:
                    is_short = True
                    if not self._make_room(sequence, num_blocks):
                        continue
                block_ids = self.pool.allocate(num_blocks)
                sequence.block_table += block_ids
                builder.add_blocks(sequence, block_ids)
            if num_tokens - sequence.num_computed_tokens > 1:
                prefills.append(sequence)
            else:
                builder.add_row(sequence, 1)
        return prefills, is_short

    def _make_room(self, sequence: Sequence, num_blocks: int) -> bool:
        """Preempts until blocks are free; returns False if the sequence must sit out this step.

        It sits out when blocks are about to become free, or when it is itself the least important.
        In that case waiting for a block is better than computing everything again. A more important
        sequence that needs a block can still preempt it.
        """
        while self.pool.num_free_blocks < num_blocks:
            victim = self._running.last
            if self._slots.has_retired or victim is sequence:
                return False
            self._preempt(victim)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.forget_computed()
        self._enqueue(sequence)
        self._events.num_preemptions += 1

    def _schedule_waiting(
        self, builder: PlanBuilder, budget: int, max_admissions: int | None
    ) -> None:
        max_rows = None if max_admissions is None else len(builder.sequences) + max_admissions
        while (
            budget
            and len(builder.sequences) != max_rows
            and self._waiting
            and self._slots.has_free
            and len(self._running) < self._max_num_running
        ):
            sequence = self._waiting.first
            if not self._admit(sequence):
                return
            builder.add_sequence(sequence)
            budget -= self._add_prefill(builder, sequence, budget)

    def _add_prefill(self, builder: PlanBuilder, sequence: Sequence, budget: int) -> int:
        """Schedules as many uncomputed tokens as the budget allows; returns how many.

        Its full blocks become findable at once. If equal prompts arrive together, the first one
        computes for all, even within this step.
        """
        num_tokens = min(budget, sequence.num_uncomputed_tokens - sequence.is_scoring)
        builder.add_row(sequence, num_tokens)
        if sequence.must_score_prompt:
            self._score_prompt(builder, sequence, num_tokens)
        if sequence.num_cacheable_tokens // self._block_size > sequence.num_registered_blocks:
            self._register_blocks(sequence)
        return num_tokens

    def _score_prompt(self, builder: PlanBuilder, sequence: Sequence, num_tokens: int) -> None:
        """Asks for the logprobs of the prompt tokens after those of the row of `num_tokens`."""
        start = sequence.num_computed_tokens - num_tokens
        end = min(sequence.num_computed_tokens, sequence.num_prompt_tokens - 1)
        if start < end >= sequence.next_scored_position:
            builder.ask_for_prompt_logprobs(end - start)
        if sequence.is_scoring and end == sequence.num_prompt_tokens - 1:
            # Nothing is left to plan.
            sequence.num_pending_tokens = 1

    def _admit(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence its slot and blocks; returns False if it does not fit yet."""
        if sequence.last_step_id > self._slots.collected_step_id:
            # Preempted, and a step in flight still brings it a token.
            return False
        num_free_blocks = self.pool.num_free_blocks
        num_running = len(self._running)
        if self._blocked is not None:
            order, free_blocks_then, running_then = self._blocked
            if (
                order == sequence.order
                and num_free_blocks <= free_blocks_then
                and num_running >= running_then
            ):
                return False
        if self.pool.enable_prefix_caching:
            sequence.extend_block_hashes(self._block_size, self._recent_digests)
        match = self._match_prefix(sequence)
        num_blocks = -(-len(sequence.token_ids) // self._block_size)
        num_new_blocks = num_blocks - len(match.block_ids)
        if num_new_blocks + match.num_unowned + num_running > num_free_blocks:
            self._blocked = (sequence.order, num_free_blocks, num_running)
            return False
        self._blocked = None
        self._dequeue(sequence)
        self._running.add(sequence)
        sequence.state = SequenceState.RUNNING
        sequence.slot = self._slots.take()
        self.pool.touch(match.block_ids)
        sequence.block_table = match.block_ids + self.pool.allocate(num_new_blocks)
        sequence.num_registered_blocks = len(match.block_ids)
        sequence.chain_parent = match.parent
        sequence.num_computed_tokens = len(match.block_ids) * self._block_size
        sequence.num_admitted_tokens = len(sequence.token_ids)
        if self._prefix_groups is not None:
            self._prefix_groups.add(sequence.slot, sequence.block_table)
        if not sequence.is_admitted:
            sequence.is_admitted = True
            self._report_admission(sequence)
        return True

    def _match_prefix(self, sequence: Sequence) -> PrefixMatch:
        """Finds its cached prefix: none while the prompt's logprobs need all of it computed."""
        token_ids = sequence.token_ids[:0] if sequence.must_score_prompt else sequence.token_ids
        return self.pool.match_prefix(token_ids, sequence.block_hashes, sequence.cache_salt)

    def _append_token(self, sequence: Sequence, token_id: int) -> None:
        sequence.token_ids.append(token_id)
        sequence.num_pending_tokens -= 1
        if sequence.state is SequenceState.WAITING:
            self._num_waiting_tokens += 1

    def _append_tokens(self, sequence: Sequence, token_ids: "array[int]") -> tuple[int, bool]:
        """Appends tokens up to the first that ends the sequence.

        Returns:
            How many were appended, and False if the token after them is `NO_TOKEN`.
        """
        for num_taken, token_id in enumerate(token_ids):
            if token_id == NO_TOKEN:
                return num_taken, False
            self._append_token(sequence, token_id)
            if sequence.finish_reason is not None:
                return num_taken + 1, True
        return len(token_ids), True

    def _compute_last_again(self, sequence: Sequence) -> None:
        """Marks the last token as uncomputed, since its row yielded no token.

        A block that others own, or may come to own, must not be rewritten. In that case the
        sequence starts over from its own cached blocks.
        """
        if sequence.state is not _RUNNING:
            return
        num_tokens = len(sequence.token_ids)
        last_block = sequence.block_table[(num_tokens - 1) // self._block_size]
        if (
            sequence.num_registered_blocks * self._block_size >= num_tokens
            or self.pool.ref_count(last_block) > 1
        ):
            self._preempt(sequence)
        else:
            sequence.num_computed_tokens -= 1

    def _register_blocks(self, sequence: Sequence) -> None:
        """Registers the full blocks whose keys and values are written by launched steps."""
        if not self.pool.enable_prefix_caching or sequence.chain_parent is None:
            return
        if not self.pool.is_live(sequence.chain_parent):
            # The parent was another sequence's equal block, now gone. Use our own instead.
            if sequence.num_passed_blocks:
                sequence.chain_parent = None
                return
            sequence.forget_registered()
        sequence.extend_block_hashes(self._block_size, self._recent_digests)
        size = self._block_size
        parent: int | str | None = sequence.chain_parent
        for index in range(sequence.num_registered_blocks, sequence.num_cacheable_tokens // size):
            if parent is None:
                break
            parent = self.pool.register(
                sequence.block_table[index],
                sequence.block_hashes[index],
                parent,
                sequence.token_ids[index * size : (index + 1) * size],
            )
            sequence.num_registered_blocks = index + 1
        sequence.chain_parent = parent

    def _end(self, sequence: Sequence) -> None:
        if sequence.state is SequenceState.WAITING:
            self._dequeue(sequence)
        else:
            self._running.remove(sequence)
            self._release(sequence)
        sequence.state = SequenceState.FINISHED
        self._num_reporting -= sequence.reports_logprobs
        del self._sequences[sequence.request_id]

    def _finish(self, sequence: Sequence) -> None:
        reason = sequence.finish_reason
        assert reason is not None, f"request {sequence.request_id} has no reason to end"
        stop_token_id = sequence.token_ids[-1] if reason is FinishReason.STOP else None
        self._events.finishes.append(
            Finish(request_id=sequence.request_id, reason=reason, stop_token_id=stop_token_id)
        )
        self._end(sequence)

    def _fail(self, sequence: Sequence, error: RequestError) -> None:
        self._events.failures.append(Failure(request_id=sequence.request_id, error=error))
        self._end(sequence)

    def _fail_without_token(self, sequence: Sequence, result: StepResult, row: int) -> None:
        """Ends a sequence whose row yielded `NO_TOKEN`."""
        error = why_missing(sequence, result, row, self._info.vocab_size)
        if error is None:
            self._fail_with_invalid_logits(sequence)
        else:
            self._fail(sequence, error)

    def _fail_with_invalid_logits(self, sequence: Sequence) -> None:
        # A block that it read or wrote may hold bad values, which would spoil other sequences.
        self.pool.forget(sequence.block_hashes)
        self._events.num_invalid_logits += 1
        self._fail(sequence, invalid_logits(len(sequence.token_ids)))

    def _release(self, sequence: Sequence) -> None:
        """Gives back slot and blocks, at once or when the last step that uses them is done."""
        owned_blocks = sequence.block_table[sequence.num_passed_blocks :]
        self._slots.release(sequence.last_step_id, sequence.slot, owned_blocks)
        if self._prefix_groups is not None:
            self._prefix_groups.remove(sequence.slot)
        sequence.slot = NO_SLOT
        sequence.block_table = []
        sequence.num_passed_blocks = 0

    def _release_passed_blocks(self, sequences: list[Sequence]) -> None:
        """Gives back the blocks that only the step being planned, or those before it, may read."""
        for sequence in sequences:
            if block_ids := sequence.pass_blocks(self._window, self._block_size):
                self._slots.release(sequence.last_step_id, None, block_ids)

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        self._waiting.add(sequence)
        self._num_waiting_tokens += len(sequence.token_ids)

    def _dequeue(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        self._num_waiting_tokens -= len(sequence.token_ids)

    def _report_admission(self, sequence: Sequence) -> None:
        num_cached_tokens = sequence.num_computed_tokens
        if self.pool.enable_prefix_caching and not sequence.must_score_prompt:
            self._events.num_prefix_query_tokens += len(sequence.token_ids)
            self._events.num_prefix_hit_tokens += num_cached_tokens
        self._events.admissions.append(
            Admission(
                request_id=sequence.request_id,
                num_cached_tokens=num_cached_tokens,
                seed=sequence.seed,
                queue_seconds=max(0.0, time.monotonic() - sequence.request.arrival_time),
            )
        )
