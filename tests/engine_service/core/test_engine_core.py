import dataclasses
import gc
import multiprocessing
import threading
from array import array
from contextlib import contextmanager

import pytest

from engine_service.core import engine_core
from engine_service.core import inbox as inbox_module
from engine_service.core.engine_core import EngineCore, serve
from engine_service.core.types import NO_TOKEN, CoreInput, FinishReason, int32_array
from engine_service.errors import InvalidRequest
from protos.wire.reason import Reason
from tests.engine_service.core.fake_executor import FakeExecutor, make_info, make_rank_stats
from tests.engine_service.core.helpers import (
    Outcome,
    greedy,
    make_core,
    make_request,
    run_until_idle,
)

WAIT_SECONDS = 30


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_requests_get_the_models_tokens_at_any_depth(depth):
    core = make_core(depth=depth, num_blocks=12)
    prompts = {request_id: range(1, 2 + 3 * request_id) for request_id in range(6)}
    for request_id, prompt in prompts.items():
        core.add(make_request(request_id, prompt, 10))

    outcome = run_until_idle(core)

    for request_id, prompt in prompts.items():
        assert outcome.tokens[request_id] == greedy(prompt, 10)
        assert outcome.finishes[request_id].reason is FinishReason.LENGTH


@pytest.mark.parametrize("depth", [1, 2])
def test_as_many_steps_are_in_flight_as_allowed(depth):
    executor = FakeExecutor(make_info())
    core = make_core(executor, depth=depth)
    core.add(make_request(1, [1, 2, 3], 10))

    run_until_idle(core)

    assert executor.max_in_flight == depth
    assert not executor.in_flight


@pytest.mark.parametrize(("device", "depth"), [("cpu", 1), ("cuda:0", 2)])
def test_steps_overlap_where_the_device_computes_by_itself(device, depth):
    executor = FakeExecutor(make_info())
    core = make_core(executor, depth=None, device=device)
    core.add(make_request(1, [1, 2, 3], 10))

    run_until_idle(core)

    assert executor.max_in_flight == depth


@pytest.mark.parametrize(("depth", "sizes"), [(1, [5, 6]), (2, [2, 3, 2, 4])])
def test_idle_device_begins_with_a_few_while_the_others_are_planned(depth, sizes, monkeypatch):
    monkeypatch.setattr(engine_core, "_MAX_FIRST_ADMISSIONS", 2)
    core = make_core(depth=depth)
    found = []
    for num_requests in (5, 6):
        for request_id in range(num_requests):
            core.add(make_request(request_id, [1, 2, 3], 1))
        while core.has_work:
            found.append(core.step().stats.num_scheduled_seqs)

    assert found == sizes


def test_reports_of_ranks_go_out_with_the_next_output_busy_or_idle():
    executor = FakeExecutor(make_info())
    core = make_core(executor)
    core.add(make_request(1, [1, 2, 3], 3))

    executor.rank_stats = busy = (make_rank_stats(rank=0), make_rank_stats(rank=1))
    assert [core.step().rank_stats for _ in range(3)] == [busy, (), ()]
    executor.rank_stats = idle = (make_rank_stats(num_steps=9),)
    assert [core.step().rank_stats for _ in range(2)] == [idle, ()]


def test_no_prompt_is_read_token_by_token_in_the_step_loop():
    class UnreadTokens(array):
        def __iter__(self):
            raise AssertionError("somebody reads them one by one")

        def __contains__(self, value):
            raise AssertionError("somebody searches them")

    core = make_core()
    request = dataclasses.replace(
        make_request(1, [1], 3), prompt_token_ids=UnreadTokens("i", [1, 2, 3, 4, 5])
    )

    core.add(request)

    assert run_until_idle(core).tokens == {1: greedy([1, 2, 3, 4, 5], 3)}


def test_a_request_id_in_use_is_refused_and_the_first_goes_on():
    core = make_core()
    core.add(make_request(1, [1, 2], 3))

    with pytest.raises(InvalidRequest, match="request_id 1 is in use"):
        core.add(make_request(1, [3, 4], 3))

    assert run_until_idle(core).tokens == {1: greedy([1, 2], 3)}


def test_a_cancelled_request_is_heard_of_no_more():
    core = make_core(depth=2)
    core.add(make_request(1, [1, 2], 30))
    core.add(make_request(2, [3, 4], 5))
    core.step()

    core.cancel(1)
    outcome = run_until_idle(core)

    assert outcome.tokens.keys() == outcome.finishes.keys() == {2}
    core.cancel(1)
    assert not core.has_work


def test_stats_tell_what_the_step_did():
    core = make_core(max_num_seqs=2)
    for request_id in 1, 2, 3:
        core.add(make_request(request_id, [request_id, 2, 3, 4, 5], 2))

    first, second = core.step().stats, core.step().stats

    assert (first.num_running, first.num_waiting, first.num_scheduled_seqs) == (2, 1, 2)
    assert (first.num_prefill_tokens, first.num_decode_tokens) == (10, 0)
    assert first.num_waiting_prefill_tokens == 5
    assert first.num_prefix_query_tokens == 10
    assert (first.num_used_blocks, first.num_free_blocks) == (4, 28)
    assert (second.num_prefill_tokens, second.num_decode_tokens) == (0, 2)
    assert first.num_generated_tokens == second.num_generated_tokens == 2
    assert first.schedule_seconds > 0
    assert first.update_seconds > 0


def test_queue_time_starts_with_the_arrival():
    core = make_core()
    core.add(make_request(1, [1], 1))

    (admission,) = core.step().admissions

    assert 0 <= admission.queue_seconds < WAIT_SECONDS


def test_close_drops_the_steps_in_flight_and_closes_the_executor():
    executor = FakeExecutor(make_info())
    core = make_core(executor, depth=3)
    core.add(make_request(1, [1, 2, 3], 30))
    core.step()
    assert executor.in_flight

    core.close()

    assert executor.is_closed
    assert not executor.in_flight


@contextmanager
def served(**settings):
    """Yields the server's end of the connection and the core's thread."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=serve, args=(make_core(**settings), theirs))
    thread.start()
    try:
        yield ours, thread
    finally:
        ours.close()
        thread.join(WAIT_SECONDS)
        theirs.close()
        assert not thread.is_alive(), "the core outlives its server"


def receive(connection):
    assert connection.poll(WAIT_SECONDS), "no word from the core"
    return connection.recv()


def receive_until_finished(connection, *request_ids):
    outcome = Outcome()
    while not outcome.finishes.keys() >= set(request_ids):
        outcome.take(receive(connection))
    return outcome


def test_serve_answers_requests_over_a_connection():
    with served(depth=2) as (connection, _):
        connection.send(CoreInput(requests=[make_request(1, [1, 2], 5), make_request(2, [3], 4)]))
        outcome = receive_until_finished(connection, 1, 2)

    assert outcome.tokens == {1: greedy([1, 2], 5), 2: greedy([3], 4)}


@pytest.fixture
def refused_id(monkeypatch):
    """A request ID that every core refuses."""
    add = EngineCore.add

    def add_or_refuse(self, request):
        if request.request_id == 17:
            raise InvalidRequest("request_id 17 is in use")
        add(self, request)

    monkeypatch.setattr(EngineCore, "add", add_or_refuse)
    return 17


def test_serve_turns_a_refusal_into_a_failure_and_goes_on(refused_id):
    with served() as (connection, _):
        connection.send(CoreInput(requests=[make_request(refused_id, [1])]))
        output = receive(connection)
        connection.send(CoreInput(requests=[make_request(2, [3], 4)]))
        outcome = receive_until_finished(connection, 2)

    (failure,) = output.failures
    assert failure.request_id == refused_id
    assert failure.error.reason is Reason.BAD_REQUEST
    assert outcome.tokens == {2: greedy([3], 4)}


def test_serve_tells_refusals_and_failed_rows_together(monkeypatch, refused_id):
    real_run = FakeExecutor._run

    def run_without_tokens(self, plan):
        result = real_run(self, plan)
        token_ids = int32_array([NO_TOKEN]) * len(result.token_ids)
        return dataclasses.replace(result, token_ids=token_ids)

    monkeypatch.setattr(FakeExecutor, "_run", run_without_tokens)
    with served() as (connection, _):
        requests = [make_request(1, [1], 4), make_request(refused_id, [2], 4)]
        connection.send(CoreInput(requests=requests))
        output = connection.recv()

    errors = {failure.request_id: failure.error for failure in output.failures}
    assert errors[1].reason is Reason.INTERNAL
    assert errors[1].metadata == {"position": "1"}
    assert errors[refused_id].reason is Reason.BAD_REQUEST
    assert output.stats.num_invalid_logits == 1
    assert not output.token_ids


def test_serve_counts_what_it_has_not_taken_in_yet_as_waiting(monkeypatch):
    monkeypatch.setattr(inbox_module, "_SECONDS", -1.0)
    with served(max_num_seqs=1) as (connection, _):
        connection.send(CoreInput(requests=[make_request(n, [n, 2], 5) for n in (1, 2, 3)]))
        stats = receive(connection).stats

    assert (stats.num_running, stats.num_waiting) == (1, 2)
    assert stats.num_waiting_prefill_tokens == 4


def test_serve_answers_a_cancellation_with_fresh_stats():
    with served() as (connection, _):
        connection.send(CoreInput(cancelled_ids=[17]))
        output = receive(connection)

    assert output.stats.num_running == 0
    assert output.stats.num_free_blocks == 32


def test_serve_says_that_it_lives_and_no_more_while_there_is_nothing_to_do():
    with served() as (connection, thread):
        connection.send(CoreInput(requests=[make_request(1, [3], 2)]))
        receive_until_finished(connection, 1)

        for _ in range(2):
            output = receive(connection)
            assert output.request_ids == output.cache_delta.stored == array("q")
            assert (output.stats.num_running, output.stats.step_seconds) == (0, 0.0)
        assert thread.is_alive()


def test_signs_of_life_are_the_loop_s_own_and_end_with_a_step_that_hangs():
    class HangingExecutor(FakeExecutor):
        hang = threading.Event()

        def collect(self, handle):
            self.hang.wait(WAIT_SECONDS)
            return super().collect(handle)

    executor = HangingExecutor(make_info())
    with served(executor=executor) as (connection, thread):
        assert receive(connection).stats.num_running == 0
        connection.send(CoreInput(requests=[make_request(1, [3], 2)]))
        # One that was on its way may still come.
        while connection.poll(1.0):
            assert connection.recv().stats.num_running == 0
        assert thread.is_alive()
        executor.hang.set()
        assert receive_until_finished(connection, 1).tokens == {1: greedy([3], 2)}


def test_serve_tells_a_request_that_had_ended_before_it_came():
    with served() as (connection, _):
        connection.send(CoreInput(requests=[make_request(1, [3], 2, resumed=[4, 5])]))
        outcome = receive_until_finished(connection, 1)

    assert outcome.tokens == {}
    assert outcome.finishes[1].reason is FinishReason.LENGTH


def test_serve_ends_with_the_connection_and_leaves_the_collector_as_it_was():
    thresholds = gc.get_threshold()
    with served() as (connection, thread):
        connection.close()
        thread.join(WAIT_SECONDS)

        assert not thread.is_alive()
    assert gc.get_threshold() == thresholds


def test_serve_ends_when_the_server_is_gone_in_the_middle_of_a_request():
    with served() as (connection, thread):
        connection.send(CoreInput(requests=[make_request(1, [3], 60)]))
        connection.close()
        thread.join(WAIT_SECONDS)

        assert not thread.is_alive()
