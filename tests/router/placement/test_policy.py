import random
from dataclasses import replace

import pytest

from protos.wire.block_hash import SCHEME
from router.placement.policy import (
    POLICIES,
    Cost,
    Query,
    Rates,
    cost,
    costs,
    place,
    reference_costs,
    typical_rates,
)
from router.types.engine_state import Demands, EngineLoad, EngineSnapshot, EngineState, ModelInfo


def engine(address, *, state=EngineState.SERVING, model="m", in_flight=0, unreported=0, **load):
    info = ModelInfo(
        name=model,
        architecture="",
        fingerprint="f",
        vocab_size=10,
        max_model_len=100_000,
        block_size=16,
        block_hash_scheme=SCHEME,
        eos_token_ids=frozenset(),
        tokenizer_sha256="",
        epoch=1,
        num_blocks=10,
        max_num_seqs=8,
        max_num_batched_tokens=0,
    )
    return EngineSnapshot(
        address=address,
        state=state,
        model=info,
        load=EngineLoad(state=state, **load),
        num_in_flight=in_flight,
        num_in_flight_prefill_tokens=unreported,
        num_indexed_blocks=0,
    )


def query(num_tokens=1000, *, cached=None, excluded=(), turn=0):
    return Query(
        model="m",
        fingerprint="f",
        num_prompt_tokens=num_tokens,
        num_cached_tokens=cached or {},
        excluded=frozenset(excluded),
        turn=turn,
    )


def choose(engines, asked, policy="prefix", seed=0):
    return place(POLICIES[policy], engines, asked, random.Random(seed))


@pytest.mark.parametrize("policy", POLICIES)
def test_only_serving_engines_of_the_model_that_are_not_excluded_are_chosen(policy):
    namesake = engine("namesake")
    engines = [
        engine("draining", state=EngineState.DRAINING),
        engine("lost", state=EngineState.UNAVAILABLE),
        engine("connecting", state=EngineState.CONNECTING),
        engine("other", model="n"),
        replace(namesake, model=replace(namesake.model, fingerprint="g")),
        engine("excluded"),
        engine("good", num_running=7, num_waiting_prefill_tokens=10**6),
    ]

    for turn in range(10):
        chosen = choose(engines, query(excluded=["excluded"], turn=turn), policy, seed=turn)
        assert chosen.engine == "good"


@pytest.mark.parametrize("policy", POLICIES)
def test_only_engines_that_support_what_is_asked_are_chosen(policy):
    def of(address, params, max_logprobs):
        one = engine(address)
        changes = {"supported_params": frozenset(params), "max_logprobs": max_logprobs}
        return replace(one, model=replace(one.model, **changes))

    engines = [
        of("none", [], 0),
        of("other", ["logprobs", "top_p"], 20),
        of("fewer", ["logprobs", "top_k"], 4),
        of("good", ["logprobs", "top_k"], 5),
    ]
    asked = replace(query(), demands=Demands(frozenset({"logprobs", "top_k"}), 5))

    for turn in range(10):
        assert choose(engines, replace(asked, turn=turn), policy, seed=turn).engine == "good"
    assert choose(engines[:3], asked, policy) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_no_candidate_is_no_placement(policy):
    assert choose([engine("a")], query(excluded=["a"]), policy) is None
    assert choose([], query(), policy) is None


def test_longest_prefix_wins_between_idle_engines():
    engines = [engine("a"), engine("b"), engine("c")]

    chosen = choose(engines, query(cached={"b": 512, "c": 960}))

    assert (chosen.engine, chosen.num_predicted_cached_tokens) == ("c", 960)


def test_queue_longer_than_the_saving_beats_the_prefix():
    rates = {"prefill_tokens_per_second": 1000.0}
    engines = [engine("a", num_waiting_prefill_tokens=5000, **rates), engine("b", **rates)]

    chosen = choose(engines, query(1000, cached={"a": 960}))

    assert chosen.engine == "b"
    assert (chosen.num_predicted_cached_tokens, chosen.num_best_cached_tokens) == (0, 960)


def test_queue_shorter_than_the_saving_keeps_the_prefix():
    rates = {"prefill_tokens_per_second": 1000.0}
    engines = [engine("a", num_waiting_prefill_tokens=500, **rates), engine("b", **rates)]

    assert choose(engines, query(1000, cached={"a": 960})).engine == "a"


def test_prompts_sent_but_not_yet_reported_count_as_wait():
    engines = [engine("a", unreported=5000), engine("b")]

    assert choose(engines, query()).engine == "b"


def test_faster_engine_wins_with_an_equal_queue():
    engines = [
        engine("slow", num_waiting_prefill_tokens=1000, prefill_tokens_per_second=1e3),
        engine("fast", num_waiting_prefill_tokens=1000, prefill_tokens_per_second=1e4),
    ]

    assert choose(engines, query()).engine == "fast"


def test_engine_without_a_free_place_costs_the_wait_for_one():
    rates = {"decode_tokens_per_second": 800.0, "prefill_tokens_per_second": 1e5}
    engines = [engine("full", num_running=8, **rates), engine("free", num_running=7, **rates)]

    assert choose(engines, query(100, cached={"full": 96})).engine == "free"


def test_decode_costs_a_twentieth_of_the_time_of_an_answer_beside_the_requests_there():
    busy = engine("busy", num_running=4, decode_tokens_per_second=100.0)

    assert cost(busy, query(), Rates()).decode == pytest.approx(0.05 * 128 * 4 / 100)
    assert cost(engine("idle"), query(), Rates()).decode == 0


def test_decode_counts_requests_that_no_report_contains_yet():
    sent = engine("sent", in_flight=4, decode_tokens_per_second=100.0)

    assert cost(sent, query(), Rates()).decode == pytest.approx(0.05 * 128 * 4 / 100)


@pytest.mark.parametrize(
    ("max_tokens", "num_tokens"), [(None, 128), (1, 1), (128, 128), (4096, 128)]
)
def test_answer_is_as_long_as_the_request_allows_up_to_what_is_usual(max_tokens, num_tokens):
    busy = engine("busy", num_running=4, decode_tokens_per_second=100.0)
    asked = replace(query(), max_tokens=max_tokens)

    assert cost(busy, asked, Rates()).decode == pytest.approx(0.05 * num_tokens * 4 / 100)


def test_large_batch_beats_a_prefix_that_saves_less():
    rates = {"prefill_tokens_per_second": 1e5, "decode_tokens_per_second": 1000.0}
    engines = [engine("a", num_running=6, **rates), engine("b", **rates)]

    assert choose(engines, query(1000, cached={"a": 960})).engine == "b"
    assert choose(engines, query(8000, cached={"a": 7960})).engine == "a"


def test_prompt_that_finds_no_blocks_waits_for_requests_to_end():
    load = {"num_running": 2, "decode_tokens_per_second": 100.0, "prefill_tokens_per_second": 1e6}
    tight = engine("tight", num_blocks=100, num_free_blocks=60, **load)

    # 1,600 tokens are 100 blocks, of which 40 are lacking: all that is used must come free.
    assert cost(tight, query(1600), Rates()).wait == pytest.approx(128 * 2 / 100)
    assert cost(tight, query(1280), Rates()).wait == pytest.approx(128 * 2 / 100 / 2)
    assert cost(tight, query(960), Rates()).wait == 0
    assert cost(tight, query(1600, cached={"tight": 640}), Rates()).wait == 0


def test_prompts_ahead_take_blocks_too():
    load = {"num_running": 1, "decode_tokens_per_second": 100.0, "prefill_tokens_per_second": 1e9}
    tight = engine("tight", unreported=640, num_blocks=100, num_free_blocks=60, **load)

    assert cost(tight, query(320), Rates()).wait == pytest.approx(0, abs=1e-3)
    assert cost(tight, query(640), Rates()).wait == pytest.approx(1.28 / 2)


def test_engine_that_measured_nothing_is_taken_for_as_fast_as_the_others():
    """With a slow guess it would never get a request, and so never measure anything."""
    rates = {"prefill_tokens_per_second": 1e6, "decode_tokens_per_second": 1e4}
    engines = [engine("a", num_running=1, **rates), engine("new")]

    assert choose(engines, query(100_000)).engine == "new"


def test_engine_whose_first_steps_were_slow_gets_requests_once_the_others_are_loaded():
    """Rated by one short prompt on a cold engine, it could never show that it is faster."""
    fast = {"prefill_tokens_per_second": 10_000.0, "decode_tokens_per_second": 500.0}
    cold = engine("cold", prefill_tokens_per_second=20.0, decode_tokens_per_second=1.0)

    assert choose([engine("warm", **fast), cold], query(1000)).engine == "warm"
    busy = engine("warm", num_running=60, num_waiting_prefill_tokens=50_000, **fast)
    assert choose([busy, cold], query(1000)).engine == "cold"


def test_slow_engine_is_rated_by_what_it_measured_down_to_an_eighth_of_the_typical():
    typical = Rates(prefill=8000.0, decode=800.0)

    for measured, rated in ((1500.0, 1500.0), (999.0, 1000.0), (10.0, 1000.0)):
        slow = engine("slow", num_waiting_prefill_tokens=3000, prefill_tokens_per_second=measured)
        assert cost(slow, query(), typical).wait == pytest.approx(3000 / rated)


def test_typical_rates_are_means_of_what_was_measured():
    engines = [
        engine("a", prefill_tokens_per_second=1000.0, decode_tokens_per_second=10.0),
        engine("b", prefill_tokens_per_second=3000.0),
        engine("c"),
    ]

    assert typical_rates(engines) == Rates(prefill=2000.0, decode=10.0)
    assert typical_rates([engine("c")]) == Rates()


def test_engines_that_measured_nothing_have_a_finite_cost():
    terms = cost(engine("new", num_running=8, num_waiting_prefill_tokens=10), query(), Rates())

    assert 0 < terms.total < 60


def test_costs_are_of_all_candidates_and_their_least_is_chosen():
    engines = [engine("a"), engine("b", num_waiting_prefill_tokens=9000), engine("c", model="n")]
    asked = query(cached={"a": 960})

    terms = costs(engines, asked)

    assert list(terms) == ["a", "b"]
    assert terms["a"].total < terms["b"].total
    assert choose(engines, asked).engine == "a"


def test_reference_costs_are_of_every_model_and_ignore_the_cache():
    engines = [
        engine("a", prefill_tokens_per_second=1024.0),
        engine("b", model="n", prefill_tokens_per_second=2048.0),
        engine("lost", state=EngineState.UNAVAILABLE),
    ]

    found = reference_costs(engines)

    assert {address: terms.prefill for address, terms in found.items()} == {"a": 2, "b": 1}


def test_cost_is_written_as_a_sum_of_milliseconds():
    assert str(Cost(wait=0.5, prefill=0.02, decode=0.0031)) == "523.1=500.0+20.0+3.1"


def test_near_ties_go_to_the_less_busy_of_two():
    engines = [engine("a", in_flight=3), engine("b", in_flight=1)]

    assert {choose(engines, query(), seed=seed).engine for seed in range(20)} == {"b"}


def test_ties_are_spread():
    engines = [engine("a"), engine("b"), engine("c")]

    assert {choose(engines, query(), seed=seed).engine for seed in range(50)} == {"a", "b", "c"}


def test_round_robin_takes_engines_in_turn():
    engines = [engine("b"), engine("a"), engine("c")]

    order = [choose(engines, query(turn=turn), "round_robin").engine for turn in range(4)]

    assert order == ["a", "b", "c", "a"]


def test_random_ignores_cache_and_load():
    engines = [engine("a", in_flight=9), engine("b")]

    chosen = {
        choose(engines, query(cached={"b": 960}), "random", seed).engine for seed in range(50)
    }

    assert chosen == {"a", "b"}


def test_least_loaded_counts_running_waiting_and_own_requests():
    engines = [engine("a", num_running=2, num_waiting=2), engine("b", in_flight=5), engine("c")]

    assert choose(engines, query(cached={"a": 960}), "least_loaded").engine == "c"
    assert choose(engines, query(excluded=["c"]), "least_loaded").engine == "a"
