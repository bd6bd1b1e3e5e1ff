"""The demo's options."""

import pytest

from examples.demo.command import parse
from examples.demo.model import CHECKPOINT


def test_without_options_the_demo_model_gets_60_chats_of_256_tokens():
    options = parse([])
    assert options.model.path == str(CHECKPOINT)
    assert options.model.is_small
    assert not options.model.is_random
    assert (options.num_requests, options.max_tokens) == (60, 256)
    assert not options.keep_serving
    assert options.num_ranks == 1


def test_random_is_the_demo_model_with_random_weights():
    model = parse(["--model", "random"]).model
    assert model.path == str(CHECKPOINT)
    assert model.is_small
    assert model.is_random


def test_any_other_model_is_taken_as_it_is():
    model = parse(["--model", "Qwen/Qwen3-0.6B"]).model
    assert model.path == "Qwen/Qwen3-0.6B"
    assert not model.is_small
    assert not model.is_random


@pytest.mark.parametrize("option", ["--tensor-parallel-size", "--requests", "--max-tokens"])
def test_count_below_one_is_refused_by_name(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse([option, "0"])
    assert option in capsys.readouterr().err
