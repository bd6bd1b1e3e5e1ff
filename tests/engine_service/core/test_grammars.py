"""A request waits for its grammar; the others, and the step loop, do not."""

import grpc
import pytest

from engine_service.core.types import GrammarFailure, StepResult, int32_array
from engine_service.errors import InvalidRequest
from protos.wire.reason import Reason
from protos.wire.sampling_params import SUPPORTED_PARAMS, Grammar
from protos.wire.status import STATUS_CODES
from tests.engine_service.core.fake_executor import FakeExecutor, make_info
from tests.engine_service.core.helpers import make_core, make_request

GRAMMAR = Grammar(form="regex", text="a")


class Compiler(FakeExecutor):
    """Compiles when the test says so, and fails the grammars of slots if told to."""

    def __init__(self, info):
        super().__init__(info)
        self.is_compiled = False
        self.plans = []
        self.failure = None
        self.allowed = None
        """Tokens that grammars allow where a step yields no token."""

    def prepare(self, grammar):
        assert grammar is GRAMMAR
        return self.is_compiled

    def launch(self, plan):
        self.plans.append(plan)
        return super().launch(plan)

    def collect(self, handle):
        result = super().collect(handle)
        if self.failure is None:
            return result
        return StepResult(
            token_counts=result.token_counts,
            token_ids=result.token_ids[:0]
            + type(result.token_ids)("i", [-1] * len(result.token_ids)),
            grammar_failures={0: self.failure} if self.failure else {},
            grammar_token_ids={} if self.allowed is None else {0: int32_array(self.allowed)},
        )


def _core():
    executor = Compiler(make_info())
    return make_core(executor, supported_params=SUPPORTED_PARAMS), executor


def test_others_run_while_a_grammar_is_compiled():
    core, executor = _core()
    core.add(make_request(1, [1, 2, 3], 2, grammar=GRAMMAR))
    core.add(make_request(2, [4, 5], 2))
    output = core.step()
    assert list(output.request_ids) == [2]
    assert output.stats.num_waiting == 1
    core.step()
    assert core.step().stats.num_waiting == 1
    assert core.has_work
    executor.is_compiled = True
    assert list(core.step().request_ids) == [1]
    ((new,),) = [plan.new_grammars for plan in executor.plans if plan.new_grammars]
    assert (new.grammar, new.num_prompt_tokens) == (GRAMMAR, 3)


def test_a_request_can_be_cancelled_while_its_grammar_is_compiled():
    core, executor = _core()
    core.add(make_request(1, [1], 2, grammar=GRAMMAR))
    core.cancel(1)
    assert not core.has_work
    executor.is_compiled = True
    assert not core.step().request_ids
    core.add(make_request(1, [1], 2, grammar=GRAMMAR))
    assert list(core.step().request_ids) == [1]


def test_a_grammar_that_cannot_go_on_has_its_own_error():
    core, executor = _core()
    executor.is_compiled = True
    executor.failure = GrammarFailure("lexer error: too many states")
    core.add(make_request(1, [1, 2], 2, grammar=GRAMMAR))
    output = core.step()
    (failure,) = output.failures
    assert "grammar allows no token at position 2: lexer error" in str(failure.error)
    assert output.stats.num_invalid_logits == 0
    assert not core.has_work


def _failure_of(request, grammar_failure):
    core, executor = _core()
    executor.is_compiled = True
    executor.failure = grammar_failure
    core.add(request)
    (failure,) = core.step().failures
    assert not core.has_work
    return failure.error


def test_resumed_tokens_that_do_not_match_are_the_caller_s_mistake():
    request = make_request(1, [1, 2], 9, grammar=GRAMMAR, resumed=[3, 4])
    error = _failure_of(request, GrammarFailure("no", mismatch_index=1))
    assert isinstance(error, InvalidRequest)
    assert error.message == ("resume_token_ids[1] is 4, which grammar.regex does not allow there")
    assert (error.metadata["field"], error.metadata["index"]) == ("resume_token_ids", "1")
    assert STATUS_CODES[error.reason] is grpc.StatusCode.INVALID_ARGUMENT


def test_tokens_drawn_here_that_do_not_match_are_our_mistake():
    request = make_request(1, [1, 2], 9, grammar=GRAMMAR, resumed=[3, 4])
    error = _failure_of(request, GrammarFailure("no", mismatch_index=2))
    assert error.reason is Reason.INTERNAL


BAD_WORDS = {"allowed_token_ids": (5, 6), "bad_words_token_ids": ((2, 5), (2, 6))}


def _run_without_token(allowed, *, resumed=(), **params):
    """Returns the core, after a step without a token for a request with a full block."""
    core, executor = _core()
    executor.is_compiled = True
    core.add(make_request(1, range(1, 41), 1))
    core.step()
    assert core.scheduler.pool.findable_hashes()
    executor.failure = ""
    executor.allowed = allowed
    core.add(make_request(2, range(1, 41), 9, resumed=resumed, **params))
    output = core.step()
    assert not core.has_work
    (failure,) = output.failures
    return core, output, failure.error


@pytest.mark.parametrize(
    ("params", "allowed", "text"),
    [
        (
            {**BAD_WORDS, "resumed": (2,)},
            None,
            "allowed_token_ids, bad_words_token_ids together allow no token at position 41",
        ),
        (
            {"grammar": GRAMMAR, "allowed_token_ids": (5,)},
            [6, 7],
            "grammar, allowed_token_ids together allow no token at position 40",
        ),
        (
            {"grammar": GRAMMAR, "min_tokens": 2, "stop_token_ids": (6, 7), "resumed": (5,)},
            [6, 7],
            "grammar, min_tokens together allow no token at position 41",
        ),
        (
            {"grammar": GRAMMAR, "bad_words_token_ids": ((6,), (5, 4, 7)), "resumed": (5, 4)},
            [6, 7],
            "grammar, bad_words_token_ids together allow no token at position 42",
        ),
    ],
)
def test_parameters_that_leave_no_token_are_the_client_s_mistake(params, allowed, text):
    core, output, error = _run_without_token(allowed, **params)
    assert error.message == text
    assert error.reason is Reason.BAD_SAMPLING_PARAMS
    assert output.stats.num_invalid_logits == 0
    # Nothing is wrong with the blocks that it shares with others.
    assert core.scheduler.pool.findable_hashes()


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"allowed_token_ids": (5,)}, None),
        ({"grammar": GRAMMAR}, [6, 7]),
        # The prompt's last token is 40, but forbidden sequences are of the output only.
        ({"allowed_token_ids": (5,), "bad_words_token_ids": ((40, 5),)}, None),
        ({**BAD_WORDS, "resumed": (2, 3)}, None),
        ({"grammar": GRAMMAR, "allowed_token_ids": (5, 7)}, [6, 7]),
        (
            {"grammar": GRAMMAR, "min_tokens": 2, "stop_token_ids": (6, 7), "resumed": (5, 5)},
            [6, 7],
        ),
        ({"bad_words_token_ids": ((5,),), "min_tokens": 3}, None),
    ],
)
def test_parameters_that_leave_a_token_do_not_excuse_a_model_without_logits(params, allowed):
    core, output, error = _run_without_token(allowed, **params)
    assert "NaN or infinite" in error.message
    assert error.reason is Reason.INTERNAL
    assert output.stats.num_invalid_logits == 1
    assert not core.scheduler.pool.findable_hashes()
