import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from engine_service.config import (
    CacheOptions,
    EngineConfig,
    ModelOptions,
    SchedulerOptions,
    ServerOptions,
    read_config,
)
from engine_service.errors import StartupError

ROOT = Path(__file__).parents[2]
MODEL = ["--model", "m"]
GROUPS = (ModelOptions, CacheOptions, SchedulerOptions, ServerOptions)
OPTIONS = [option for group in GROUPS for option in dataclasses.fields(group)]


def test_defaults_hold_where_nothing_is_said():
    assert read_config(MODEL, {}) == EngineConfig(model=ModelOptions(model="m"))


def test_command_line_wins_over_environment():
    environment = {"PAGESTREAM_ENGINE_PORT": "1", "PAGESTREAM_ENGINE_BLOCK_SIZE": "64"}
    config = read_config([*MODEL, "--port", "2"], environment)
    assert (config.server.port, config.cache.block_size) == (2, 64)


def test_required_option_may_come_from_the_environment():
    assert read_config([], {"PAGESTREAM_ENGINE_MODEL": "m"}).model.model == "m"


def test_options_reach_their_part():
    arguments = "--dtype bfloat16 --device cuda:1 --num-blocks 7 --max-num-seqs 3 --host ::1"
    config = read_config([*MODEL, *arguments.split()], {})
    assert (config.model.dtype, config.model.device) == ("bfloat16", "cuda:1")
    assert (config.cache.num_blocks, config.scheduler.max_num_seqs) == (7, 3)
    assert config.server.host == "::1"


@pytest.mark.parametrize("text", ["false", "0", "False"])
def test_flag_is_switched_off_by_command_line_or_variable(text):
    assert not read_config([*MODEL, "--no-enable-prefix-caching"], {}).cache.enable_prefix_caching
    environment = {"PAGESTREAM_ENGINE_ENABLE_PREFIX_CACHING": text}
    assert not read_config(MODEL, environment).cache.enable_prefix_caching
    arguments = [*MODEL, "--enable-prefix-caching"]
    assert read_config(arguments, environment).cache.enable_prefix_caching


def test_variables_of_others_are_left_alone():
    read_config(MODEL, {"PAGESTREAM_ROUTER_PORT": "x", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port is 70000, must be an integer from 0 to 65535"),
        (["--port", "x"], "--port is 'x', must be an integer from 0 to 65535"),
        (["--max-num-seqs", "0"], "--max-num-seqs is 0, must be an integer from 1 to"),
        (["--block-size", "17"], "--block-size is '17', must be one of 16, 32, 64, 128, 256"),
        (
            ["--gpu-memory-utilization", "1.5"],
            "--gpu-memory-utilization is 1.5, must be a number from",
        ),
        (
            ["--gpu-memory-utilization", "nan"],
            "--gpu-memory-utilization is nan, must be a number from",
        ),
        (
            ["--drain-grace-seconds", "-1"],
            "--drain-grace-seconds is -1.0, must be a number of seconds from 0 to 86400",
        ),
        (
            ["--dtype", "float8"],
            "--dtype is 'float8', must be one of auto, float32, float16, bfloat16",
        ),
        (["--device", "tpu"], "--device is 'tpu', must be auto, cpu, cuda or cuda:N"),
        (["--load-format", "gguf"], "--load-format is 'gguf', must be one of auto, dummy"),
        (["--max-model-len", "1"], "--max-model-len is 1, must be an integer from 2 to"),
        (["--seed", "-1"], "--seed is -1, must be an integer from 0 to"),
        (["--log-level", "loud"], "--log-level is 'loud', must be one of debug, info"),
        (["--host", ""], "--host is '', must be"),
        (["--prot", "1"], "--prot is no option; did you mean --port?"),
        (["--por", "1"], "--por is no option; did you mean --port?"),
        (["--port"], "--port needs a value: gRPC port"),
    ],
)
def test_wrong_option_is_refused_by_name_with_its_bounds(arguments, message):
    with pytest.raises(StartupError) as caught:
        read_config([*MODEL, *arguments], {})
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("PORT", "70000", "PAGESTREAM_ENGINE_PORT is 70000, must be an integer from 0 to 65535"),
        ("PROT", "1", "environment variable PAGESTREAM_ENGINE_PROT matches no option"),
        ("PORT", "tcp://10.0.0.1:50051", "set enableServiceLinks to false"),
        ("SERVICE_PORT", "tcp://10.0.0.1:50051", "set enableServiceLinks to false"),
        ("ENABLE_PREFIX_CACHING", "maybe", "is 'maybe', must be true or false"),
    ],
)
def test_wrong_variable_is_refused_by_name(variable, text, message):
    with pytest.raises(StartupError) as caught:
        read_config(MODEL, {f"PAGESTREAM_ENGINE_{variable}": text})
    assert message in caught.value.message


def test_missing_model_is_asked_for():
    with pytest.raises(StartupError, match=r"--model \(or PAGESTREAM_ENGINE_MODEL\) is required"):
        read_config([], {})


def test_options_made_in_code_are_checked_too():
    with pytest.raises(StartupError, match="max_num_seqs is 0, must be an integer from 1 to 65000"):
        SchedulerOptions(max_num_seqs=0)


@pytest.mark.parametrize(
    ("group", "option", "value", "message"),
    [
        (CacheOptions, "enable_prefix_caching", "false", "is 'false', must be true or false"),
        (CacheOptions, "enable_prefix_caching", 1, "is 1, must be true or false"),
        (CacheOptions, "num_blocks", 3.5, "is 3.5, must be an integer from 1 to 2147483647"),
        (CacheOptions, "num_blocks", "5", "is '5', must be an integer from 1 to 2147483647"),
        (CacheOptions, "num_blocks", True, "is True, must be an integer from 1 to 2147483647"),
        (CacheOptions, "block_size", 16.0, "is 16.0, must be one of 16, 32, 64, 128, 256"),
        (CacheOptions, "gpu_memory_utilization", "1", "is '1', must be a number from 0.01 to 1"),
        (SchedulerOptions, "max_num_seqs", None, "is None, must be an integer from 1 to 65000"),
        (ModelOptions, "model", Path("m"), "must be a folder or a hub ID"),
        (ServerOptions, "log_level", None, "is None, must be one of debug, info, warning, error"),
    ],
)
def test_options_made_in_code_have_their_type_checked(group, option, value, message):
    with pytest.raises(StartupError) as caught:
        group(**{option: value})
    assert caught.value.message.startswith(f"{option} ")
    assert message in caught.value.message


def test_whole_number_is_a_number():
    assert CacheOptions(gpu_memory_utilization=1).gpu_memory_utilization == 1


@pytest.fixture(scope="module")
def help_text():
    command = [sys.executable, "-m", "engine_service", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_help_tells_meaning_default_and_variable_of_every_option(option, help_text):
    name = option.name.replace("_", "-")
    assert f"--{name}" in help_text
    # argparse breaks lines at hyphens.
    flat = help_text.replace("- ", "-")
    assert option.metadata["help"].replace("- ", "-") in flat
    assert f"PAGESTREAM_ENGINE_{option.name.upper()})" in help_text
    if option.default is not dataclasses.MISSING:
        default = option.metadata["unset"] or option.default
        if isinstance(default, bool):
            default = "on" if default else "off"
        assert f"(default: {default};".replace("- ", "-") in flat


def test_every_option_has_a_variable_that_is_read():
    for option in OPTIONS:
        if option.default not in (None, "", dataclasses.MISSING):
            environment = {f"PAGESTREAM_ENGINE_{option.name.upper()}": str(option.default)}
            assert read_config(MODEL, environment) == read_config(MODEL, {})
