"""The demo's options, and what it makes of them."""

import pytest

from examples.demo import run
from examples.demo.command import parse
from examples.demo.model import ROOT
from examples.demo.run import engine_arguments


def value_of(option, arguments):
    return arguments[arguments.index(option) + 1]


def test_without_options_the_small_model_gets_60_chats_of_256_tokens():
    options = parse([])
    assert options.is_small_model
    assert options.model == str(ROOT / ".demo" / "model")
    assert (options.num_requests, options.max_tokens) == (60, 256)
    assert not options.keep_serving


def test_given_model_is_served_under_its_own_name_with_a_pool_of_the_engine_s_choice():
    arguments = engine_arguments(parse(["--model", "Qwen/Qwen3-0.6B"]), 0, num_gpus=0)
    assert value_of("--model", arguments) == "Qwen/Qwen3-0.6B"
    assert not {"--served-model-name", "--num-blocks", "--device"} & set(arguments)


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 1), (7, 3), (16, 8)])
def test_engines_of_a_given_model_share_the_cores(monkeypatch, cores, threads):
    monkeypatch.setattr(run.os, "cpu_count", lambda: cores)
    arguments = engine_arguments(parse(["--model", "m"]), 0, num_gpus=0)
    assert value_of("--cpu-threads", arguments) == str(threads)


@pytest.mark.parametrize(("arguments", "num_gpus"), [([], 0), (["--model", "m"], 1)])
def test_small_model_and_gpu_need_one_thread(monkeypatch, arguments, num_gpus):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 16)
    assert value_of("--cpu-threads", engine_arguments(parse(arguments), 0, num_gpus)) == "1"


@pytest.mark.parametrize(
    ("num_gpus", "devices", "share"),
    [(1, ["cuda:0", "cuda:0"], 0.4), (2, ["cuda:0", "cuda:1"], 0.8)],
)
def test_engines_spread_over_the_gpus_and_share_the_memory_of_one(num_gpus, devices, share):
    engines = [engine_arguments(parse([]), index, num_gpus) for index in range(2)]
    assert [value_of("--device", one) for one in engines] == devices
    assert {float(value_of("--gpu-memory-utilization", one)) for one in engines} == {share}


@pytest.mark.parametrize("option", ["--requests", "--max-tokens"])
def test_count_below_one_is_refused_by_name(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse([option, "0"])
    assert option in capsys.readouterr().err
