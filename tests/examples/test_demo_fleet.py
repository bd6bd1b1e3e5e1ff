"""What the demo tells its engines."""

import pytest

from examples.demo import fleet
from examples.demo.fleet import engine_arguments, engine_gpus
from examples.demo.model import Model


def value_of(option, arguments):
    return arguments[arguments.index(option) + 1]


def test_given_model_is_served_under_its_own_name_with_a_pool_of_the_engine_s_choice():
    arguments = engine_arguments(Model.named("Qwen/Qwen3-0.6B"), 0, num_gpus=0)
    assert value_of("--model", arguments) == "Qwen/Qwen3-0.6B"
    unasked = {"--served-model-name", "--num-blocks", "--device", "--tensor-parallel-size"}
    assert not unasked & set(arguments)


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 1), (7, 3), (16, 8)])
def test_engines_of_a_given_model_share_the_cores(monkeypatch, cores, threads):
    monkeypatch.setattr(fleet.os, "cpu_count", lambda: cores)
    arguments = engine_arguments(Model.named("m"), 0, num_gpus=0)
    assert value_of("--cpu-threads", arguments) == str(threads)


@pytest.mark.parametrize(("name", "num_gpus"), [("", 0), ("random", 0), ("m", 1)])
def test_small_model_and_gpu_need_one_thread(monkeypatch, name, num_gpus):
    monkeypatch.setattr(fleet.os, "cpu_count", lambda: 16)
    assert value_of("--cpu-threads", engine_arguments(Model.named(name), 0, num_gpus)) == "1"


@pytest.mark.parametrize(
    ("num_gpus", "devices", "share"),
    [(1, ["cuda:0", "cuda:0"], 0.4), (2, ["cuda:0", "cuda:1"], 0.8)],
)
def test_engines_spread_over_the_gpus_and_share_the_memory_of_one(num_gpus, devices, share):
    engines = [engine_arguments(Model.named(""), index, num_gpus) for index in range(2)]
    assert [value_of("--device", one) for one in engines] == devices
    assert {float(value_of("--gpu-memory-utilization", one)) for one in engines} == {share}


@pytest.mark.parametrize(("name", "is_dummy"), [("", False), ("random", True), ("m", False)])
def test_only_the_random_model_gets_random_weights(name, is_dummy):
    assert ("dummy" in engine_arguments(Model.named(name), 0, num_gpus=0)) == is_dummy


@pytest.mark.parametrize(
    ("num_gpus", "num_ranks", "expected"),
    [
        (0, 1, [[], []]),
        (1, 1, [[0], [0]]),
        (4, 1, [[0], [1]]),
        (1, 2, [[], []]),
        (2, 2, [[0, 1], [0, 1]]),
        (3, 2, [[0, 1], [0, 1]]),
        (4, 2, [[0, 1], [2, 3]]),
        (8, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ],
)
def test_each_rank_of_an_engine_has_a_gpu_of_its_own_or_none_has(num_gpus, num_ranks, expected):
    assert [list(engine_gpus(index, num_gpus, num_ranks)) for index in range(2)] == expected


@pytest.mark.parametrize(
    ("num_gpus", "devices", "share"),
    [(2, ["cuda:0", "cuda:0"], 0.4), (4, ["cuda:0", "cuda:2"], 0.8)],
)
def test_engines_of_two_ranks_begin_at_their_first_gpu(num_gpus, devices, share):
    engines = [engine_arguments(Model.named(""), index, num_gpus, 2) for index in range(2)]
    assert [value_of("--tensor-parallel-size", one) for one in engines] == ["2", "2"]
    assert [value_of("--device", one) for one in engines] == devices
    assert {float(value_of("--gpu-memory-utilization", one)) for one in engines} == {share}


def test_more_ranks_than_gpus_compute_on_the_cpu():
    arguments = engine_arguments(Model.named(""), 0, num_gpus=1, num_ranks=2)
    assert value_of("--device", arguments) == "cpu"
    assert "--gpu-memory-utilization" not in arguments


@pytest.mark.parametrize(("cores", "threads"), [(2, 1), (7, 1), (16, 4)])
def test_ranks_of_a_given_model_share_the_cores_of_their_engine(monkeypatch, cores, threads):
    monkeypatch.setattr(fleet.os, "cpu_count", lambda: cores)
    arguments = engine_arguments(Model.named("m"), 0, num_gpus=0, num_ranks=2)
    assert value_of("--cpu-threads", arguments) == str(threads)
