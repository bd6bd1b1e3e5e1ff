"""What the demo tells its engines."""

import pytest

from examples.demo import fleet
from examples.demo.fleet import engine_arguments
from examples.demo.model import Model


def value_of(option, arguments):
    return arguments[arguments.index(option) + 1]


def test_given_model_is_served_under_its_own_name_with_a_pool_of_the_engine_s_choice():
    arguments = engine_arguments(Model.named("Qwen/Qwen3-0.6B"), 0, num_gpus=0)
    assert value_of("--model", arguments) == "Qwen/Qwen3-0.6B"
    assert not {"--served-model-name", "--num-blocks", "--device"} & set(arguments)


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
