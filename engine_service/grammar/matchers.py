"""The grammars of the running sequences, beside the model."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from engine_service.core.types import GrammarFailure
from engine_service.grammar.compiler import BadGrammar, bad_grammar, compile_grammar
from engine_service.grammar.trial import try_grammar
from protos.wire.sampling_params import Grammar

_MAX_COMPILED = 64
"""Grammars kept for the next sequence that has the same one."""

_COMPILER_THREADS = _STARTER_THREADS = 2
_ALLOWED = -1
"""A word of a mask with all bits set."""

_logger = logging.getLogger(__name__)


class _Mismatch(BadGrammar):
    """The grammar does not allow the output token of this index."""

    def __init__(self, index: int) -> None:
        super().__init__(f"it does not allow output token {index}")
        self.index = index


@dataclass(frozen=True, slots=True)
class FilledMasks:
    """What a mask does not tell.

    Attributes:
        failures: By row, why no token can be chosen there; its mask allows none.
        ended: Rows whose text is complete: only end-of-sequence tokens are allowed, and one of them
            must be generated, whatever the request's `min_tokens`.
    """

    failures: dict[int, GrammarFailure] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Slot:
    """One sequence's grammar.

    Attributes:
        started: At the sequence's last token, once it is compiled.
        start_after_token_id: The token after which it begins; None once it has begun.
    """

    started: "Future[LLMatcher]"
    start_after_token_id: int | None
    _outcome: LLMatcher | BaseException | None = None

    def outcome(self) -> LLMatcher | BaseException:
        """Waits for the matcher; returns it, or what kept it from starting.

        Every row of every step asks, and a future would take a lock each time.
        """
        if self._outcome is None:
            self._outcome = self.started.exception() or self.started.result()
        return self._outcome


class SlotMatchers:
    """Says for each slot which tokens may come next.

    One thread may use it. Compiling, and repeating the tokens of a preempted or resumed sequence,
    happen in threads of its own; `fill` waits for those of the slots it is asked for. Masks are
    computed by other threads, without the interpreter's lock.

    Equal calls give equal masks, so every rank of an engine may have its own.
    """

    def __init__(self, tokenizer: LLTokenizer, num_threads: int) -> None:
        """Takes over a model's tokens.

        Args:
            tokenizer: The tokens.
            num_threads: How many threads compute masks.
        """
        self._tokenizer = tokenizer
        self._executor = LLExecutor(num_threads)
        self._compiler = ThreadPoolExecutor(_COMPILER_THREADS, "grammar-compiler")
        # A step waits for what these do, so it must not queue behind grammars of later requests.
        self._starter = ThreadPoolExecutor(_STARTER_THREADS, "grammar-starter")
        self._compiled: OrderedDict[tuple[object, ...], Future[LLMatcher]] = OrderedDict()
        self._slots: dict[int, _Slot] = {}
        self._end_mask = np.zeros(self.num_words, np.int32)
        for token_id in tokenizer.eos_tokens:
            self._end_mask.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)

    def __len__(self) -> int:
        """The number of slots that have a grammar."""
        return len(self._slots)

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    @property
    def num_words(self) -> int:
        """Words of 32 bits in one row of masks."""
        return -(-self._tokenizer.vocab_size // 32)

    def try_grammar(self, grammar: Grammar) -> None:
        """As `trial.try_grammar`, which bounds neither time nor memory."""
        try_grammar(self._tokenizer, grammar)

    def prepare(self, grammar: Grammar) -> bool:
        """Compiles a grammar, unless it is compiled already; returns at once, whether it is.

        A sequence whose grammar is compiled before its first step delays none.
        """
        return self._compile(grammar, self._compiler).done()

    def start(self, slot: int, grammar: Grammar, output_token_ids: Sequence[int]) -> None:
        """Gives a slot a grammar, in place of any earlier one; returns at once.

        Args:
            slot: The slot.
            grammar: Already tried (`try_grammar`). Should it not compile after all, `fill` says so.
            output_token_ids: Tokens generated so far, resumed ones included.
        """
        tokens = list(output_token_ids)
        begin = 0
        start_after = grammar.start_after_token_id
        if start_after is not None:
            try:
                begin = tokens.index(start_after) + 1
                start_after = None
            except ValueError:
                begin = len(tokens)
        # Others may have taken its place since it was prepared.
        compiled = self._compile(grammar, self._starter)
        self._slots[slot] = _Slot(
            started=self._starter.submit(_follow, compiled, tokens, begin),
            start_after_token_id=start_after,
        )

    def stop(self, slot: int) -> None:
        """Takes the slot's grammar away, if it has one."""
        self._slots.pop(slot, None)

    def advance(self, slots: Sequence[int], token_ids: Sequence[int]) -> None:
        """Tells which token each slot got; slots without a grammar and no tokens (-1) are ignored.

        Call it before the next `fill` of these slots. Nothing follows an end-of-sequence token.

        Args:
            slots: Slots, each at most once.
            token_ids: Their next tokens.
        """
        for number, token_id in zip(slots, token_ids, strict=True):
            slot = self._slots.get(number)
            if slot is None or token_id < 0:
                continue
            if slot.start_after_token_id is not None:
                if slot.start_after_token_id == token_id:
                    slot.start_after_token_id = None
                continue
            matcher = slot.outcome()
            if isinstance(matcher, LLMatcher) and not matcher.is_stopped():
                # One after the other: threads would take longer for so little work. A token that
                # the grammar does not allow is a failure that `fill` reports.
                matcher.consume_token(token_id)

    def fill(self, slots: Sequence[int], masks: "npt.NDArray[np.int32]") -> FilledMasks:
        """Writes which tokens may come next in each slot.

        Where the text may end, all end-of-sequence tokens are allowed, and where nothing may
        follow, only these.

        Args:
            slots: The slot of each row, each at most once. One without a grammar, or whose grammar
                has not begun, allows all tokens.
            masks: [len(slots) or more, num_words], contiguous; bit `token % 32` of word
                `token // 32` is 1 if the token is allowed. Later rows are left alone.
        """
        filled = FilledMasks()
        rows = []
        for row, number in enumerate(slots):
            slot = self._slots.get(number)
            if slot is None or slot.start_after_token_id is not None:
                masks[row] = _ALLOWED
                continue
            matcher = slot.outcome()
            if isinstance(matcher, LLMatcher):
                rows.append((matcher, row))
            else:
                _fail(filled, masks, row, matcher)
        if not rows:
            return filled
        num_rows, num_words = masks.shape
        assert num_words == self.num_words, f"{num_words=}, not {self.num_words}"
        assert masks.dtype == np.int32, f"{masks.dtype=}"
        assert masks.flags.c_contiguous, "the rows of the masks must lie one behind the other"
        self._executor.unsafe_compute_mask_ptr(rows, masks.ctypes.data, 4 * num_words, num_rows)
        for matcher, row in rows:
            if matcher.is_error():
                _fail(filled, masks, row, bad_grammar(matcher.get_error()))
            elif matcher.is_accepting() and np.array_equal(masks[row], self._end_mask):
                filled.ended.append(row)
        return filled

    def close(self) -> None:
        """Forgets everything; waits for a grammar that is being compiled."""
        self._slots.clear()
        self._compiled.clear()
        self._compiler.shutdown(cancel_futures=True)
        self._starter.shutdown(cancel_futures=True)

    def _compile(self, grammar: Grammar, executor: ThreadPoolExecutor) -> "Future[LLMatcher]":
        key = (grammar.form, grammar.text, grammar.choices)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = executor.submit(compile_grammar, self._tokenizer, grammar)
            self._compiled[key] = compiled
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return compiled


def _follow(compiled: "Future[LLMatcher]", token_ids: list[int], begin: int) -> LLMatcher:
    """Returns a matcher of its own, past the tokens from index `begin` on."""
    # Its compilation was submitted before this, so it has been begun at least.
    matcher = compiled.result().deep_copy()
    index = begin + matcher.try_consume_tokens(token_ids[begin:])
    if matcher.is_error():
        raise bad_grammar(matcher.get_error())
    if index < len(token_ids):
        raise _Mismatch(index)
    return matcher


def _fail(
    filled: FilledMasks, masks: "npt.NDArray[np.int32]", row: int, error: BaseException
) -> None:
    masks[row] = 0
    if not isinstance(error, BadGrammar):
        _logger.error("grammar failed", exc_info=error)
    index = error.index if isinstance(error, _Mismatch) else None
    filled.failures[row] = GrammarFailure(why=str(error), mismatch_index=index)
