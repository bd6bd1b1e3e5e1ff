"""docs/tensor_parallel.md shows commands that the services take, and errors that they give."""

import json
import re
import shlex
from pathlib import Path

import pytest

from engine_service.config import read_config as read_engine_config
from engine_service.errors import StartupError
from engine_service.models.config import parse_config
from router.config import read_config as read_router_config

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "tensor_parallel.md").read_text(encoding="utf-8")
CONFIG = ROOT / "demo_model" / "checkpoint" / "config.json"


def arguments_of(service):
    """Returns the arguments of each command in the document that starts a service."""
    pattern = rf"^ *python -m {service} (.+?)(?: &)?$"
    text = DOCUMENT.replace("\\\n", " ")
    return [
        shlex.split(arguments.replace("$i", "0"))
        for arguments in re.findall(pattern, text, re.MULTILINE)
    ]


def test_commands_divide_four_gpus_in_three_ways():
    engines = [read_engine_config(arguments, {}) for arguments in arguments_of("engine_service")]
    first, *four = [engine.model.tensor_parallel_size for engine in engines]
    assert first == 2
    routers = [read_router_config(arguments, {}) for arguments in arguments_of("router")]
    _, *num_engines = [len(router.engines) for router in routers]
    assert list(zip(num_engines, four, strict=True)) == [(4, 1), (2, 2), (1, 4)]


@pytest.mark.parametrize("num_ranks", [3, 16])
def test_errors_of_sizes_that_do_not_divide_are_those_of_the_demo_model(num_ranks):
    config = parse_config(json.loads(CONFIG.read_text()), str(CONFIG))
    with pytest.raises(StartupError) as caught:
        config.check_ranks(num_ranks)
    assert f"\nengine_service: {caught.value}\n" in DOCUMENT


def test_error_of_a_number_out_of_range_is_that_of_the_option():
    with pytest.raises(StartupError) as caught:
        read_engine_config(["--model", "m", "--tensor-parallel-size", "65"], {})
    assert f"\nengine_service: {caught.value}\n" in DOCUMENT
