import dataclasses
import re
from pathlib import Path

import pytest

from router import config
from router.config import RouterConfig, read_config
from router.engines.discovery import ServiceName
from router.errors import StartupError
from router.placement import policy as placement

ENGINES = ["--engines", "127.0.0.1:50051"]
OPTIONS = [option.name for option in dataclasses.fields(RouterConfig)]


def test_defaults_hold_where_nothing_is_said():
    assert read_config(ENGINES, {}) == RouterConfig(engines=("127.0.0.1:50051",))


def test_command_line_wins_over_environment():
    environment = {"PAGESTREAM_ROUTER_PORT": "1", "PAGESTREAM_ROUTER_PLACEMENT": "random"}

    read = read_config([*ENGINES, "--port", "2"], environment)

    assert (read.port, read.placement) == (2, "random")


def test_required_option_may_come_from_the_environment():
    read = read_config([], {"PAGESTREAM_ROUTER_ENGINES": "a:1, [::1]:2"})

    assert read.engines == ("a:1", "[::1]:2")


def test_file_stands_in_for_the_list_of_engines():
    read = read_config(["--engines-file", "engines.txt"], {})

    assert read == RouterConfig(engines_file=Path("engines.txt"))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("engine.default.svc.cluster.local.:50051", "engine.default.svc.cluster.local."),
        ("[::1]:50051", "::1"),
    ],
)
def test_name_in_dns_stands_in_for_the_list_of_engines(text, host):
    read = read_config([], {"PAGESTREAM_ROUTER_ENGINE_DNS": text})

    assert read == RouterConfig(engine_dns=ServiceName(host=host, port=50051))


def test_interval_of_lookups_goes_with_the_name():
    read = read_config(["--engine-dns", "e:1", "--discovery-interval", "0.1"], {})

    assert read.discovery_interval == 0.1


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            [*ENGINES, "--engines-file", "e"],
            {},
            "--engines and --engines-file are given; give only one of them",
        ),
        (
            ["--engine-dns", "e:1"],
            {"PAGESTREAM_ROUTER_ENGINES_FILE": "e"},
            "PAGESTREAM_ROUTER_ENGINES_FILE and --engine-dns are given; give only one of them",
        ),
        (
            ["--engines", "a:1", "--engines-file", "e", "--engine-dns", "e:1"],
            {},
            "--engines and --engines-file and --engine-dns are given; give only one of them",
        ),
        (
            [*ENGINES, "--discovery-interval", "9"],
            {},
            "--discovery-interval applies to --engine-dns only, but --engines is given; "
            "remove one of them",
        ),
        (
            ["--engines-file", "e"],
            {"PAGESTREAM_ROUTER_DISCOVERY_INTERVAL": "9"},
            "PAGESTREAM_ROUTER_DISCOVERY_INTERVAL applies to --engine-dns only, "
            "but --engines-file is given; remove one of them",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(arguments, environment, message):
    with pytest.raises(StartupError, match=f"^{re.escape(message)}$"):
        read_config(arguments, environment)


def test_placements_offered_are_those_there_are():
    assert tuple(placement.POLICIES) == config.PLACEMENTS


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, False),
        (["--allow-special-tokens-in-content"], {}, True),
        ([], {"PAGESTREAM_ROUTER_ALLOW_SPECIAL_TOKENS_IN_CONTENT": "true"}, True),
        (
            ["--no-allow-special-tokens-in-content"],
            {"PAGESTREAM_ROUTER_ALLOW_SPECIAL_TOKENS_IN_CONTENT": "true"},
            False,
        ),
    ],
)
def test_option_may_be_on_or_off(arguments, environment, expected):
    read = read_config([*ENGINES, *arguments], environment)

    assert read.allow_special_tokens_in_content is expected


def test_flag_in_the_environment_is_true_or_false():
    environment = {"PAGESTREAM_ROUTER_ALLOW_SPECIAL_TOKENS_IN_CONTENT": "yes"}

    with pytest.raises(StartupError, match="_IN_CONTENT is 'yes', must be true or false"):
        read_config(ENGINES, environment)


def test_variables_of_others_are_left_alone():
    read_config(ENGINES, {"PAGESTREAM_ENGINE_PORT": "x", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], r"--port is 70000, must be an integer from 0 to 65535"),
        (["--port", "x"], r"--port is 'x', must be an integer from 0 to 65535"),
        (["--operations-port", "-1"], r"--operations-port is -1, must be an integer from 0"),
        (["--placement", "best"], r"--placement is 'best', must be one of prefix, round_robin"),
        (["--max-concurrent-requests", "0"], r"--max-concurrent-requests is 0, must be .* 1 to"),
        (["--max-prompt-bytes", "1e6"], r"--max-prompt-bytes is '1e6', must be an integer"),
        (["--max-request-bytes", "0"], r"--max-request-bytes is 0, must be an integer from 1"),
        (
            ["--max-queued-prompt-tokens", "-1"],
            r"--max-queued-prompt-tokens is -1, must be an integer from 1",
        ),
        (["--max-buffered-tokens", "0"], r"--max-buffered-tokens is 0, must be an integer from"),
        (["--slow-reader-seconds", "0"], r"--slow-reader-seconds is 0.0, must be .* 0.1 to 3600"),
        (["--tokenizer-threads", "0"], r"--tokenizer-threads is 0, must be an integer from 1"),
        (
            ["--drain-grace-seconds", "nan"],
            r"--drain-grace-seconds is nan, must be .* 0 to 86400",
        ),
        (["--log-level", "loud"], r"--log-level is 'loud', must be one of debug, info"),
        (["--host", ""], r"--host is '', must be a name or an IP address"),
        (
            ["--host", "[::]"],
            r"--host is '\[::\]', must be a name or an IP address, without brackets",
        ),
        (["--host", "a:1"], r"--host is 'a:1', must be a name or an IP address"),
        (["--engines", "[[::1]]:1"], r"--engines has \"\[\[::1\]\]:1\", which is not"),
        (["--engine-dns", "[:1"], r"--engine-dns has \"\[:1\", which is not \"host:port\""),
        (["--engine-dns", "a\n:1"], r"--engine-dns has \"a\\n:1\", which is not \"host:port\""),
        (["--engines", "abc"], r"--engines has \"abc\", which is not \"host:port\""),
        (["--engines", "a:1,a:1"], r"--engines lists \"a:1\" twice"),
        (["--engines-file", ""], r"--engines-file is '', must be a path"),
        (["--engine-dns", "e"], r"--engine-dns has \"e\", which is not \"host:port\""),
        (
            ["--engine-dns", "e..f:1"],
            r"--engine-dns has \"e..f:1\", whose host is not a valid DNS name",
        ),
        (["--discovery-interval", "0"], r"--discovery-interval is 0.0, must be .* 0.1 to 3600"),
        (["--discovery-interval", "nan"], r"--discovery-interval is nan, must be .* 0.1 to"),
        (["--prot", "1"], r"--prot is no option; did you mean --port"),
        (["--por", "1"], r"--por is no option; did you mean --port"),
        (["--port"], r"--port needs a value: gRPC port"),
    ],
)
def test_wrong_option_is_refused_by_name(arguments, message):
    with pytest.raises(StartupError, match=message):
        read_config([*ENGINES, *arguments], {})


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("PAGESTREAM_ROUTER_PORT", "x", "PAGESTREAM_ROUTER_PORT is 'x', must be an integer"),
        ("PAGESTREAM_ROUTER_ENGINES", "a:0", 'PAGESTREAM_ROUTER_ENGINES has "a:0", whose port'),
        (
            "PAGESTREAM_ROUTER_PROT",
            "1",
            "environment variable PAGESTREAM_ROUTER_PROT matches no option",
        ),
        ("PAGESTREAM_ROUTER_PORT", "tcp://10.0.0.1:5", "enableServiceLinks"),
        ("PAGESTREAM_ROUTER_PORT_50050_TCP", "tcp://10.0.0.1:5", "enableServiceLinks"),
    ],
)
def test_wrong_variable_is_refused_by_name(variable, text, message):
    with pytest.raises(StartupError, match=message):
        read_config([], {"PAGESTREAM_ROUTER_ENGINES": "a:1"} | {variable: text})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70_000}, "port is 70000, must be an integer from 0 to 65535"),
        ({"port": "50050"}, "port is '50050', must be an integer from 0 to 65535"),
        ({"engines": ["a:1"]}, "engines is ['a:1'], must be a tuple of addresses, host:port"),
        ({"engines": ("a:1", "a")}, 'engines has "a", which is not "host:port"'),
        ({"engines_file": "e"}, "engines_file is 'e', must be a path"),
        ({"engine_dns": "e:1"}, "engine_dns is 'e:1', must be a name and a port"),
        ({"placement": "best"}, "placement is 'best', must be one of prefix, round_robin"),
        ({"template_seconds": 0}, "template_seconds is 0, must be a number of seconds from 0.01"),
        ({"tokenizer_threads": True}, "tokenizer_threads is True, must be an integer from 1 to"),
        ({"allow_special_tokens_in_content": 1}, "_in_content is 1, must be true or false"),
    ],
)
def test_settings_made_in_code_are_checked_too(values, message):
    with pytest.raises(StartupError, match=re.escape(message)):
        RouterConfig(**values)


def test_missing_engines_are_named_with_all_ways_to_give_them():
    with pytest.raises(
        StartupError, match=r"--engines .*, --engines-file or --engine-dns is required"
    ):
        read_config([], {})


@pytest.mark.parametrize("option", OPTIONS)
def test_help_gives_each_option_its_default_and_variable(option, capsys):
    with pytest.raises(SystemExit) as caught:
        read_config(["--help"], {})

    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert caught.value.code == 0
    one_of = "default: none; one of --engines, --engines-file and --engine-dns is required"
    shown = {
        "engines": one_of,
        "engines_file": one_of,
        "engine_dns": one_of,
        "chat_template": "default: each model's own",
        "tls_cert": "default: none: no encryption",
        "tls_key": "default: none",
        "tls_client_ca": "default: none: clients need none",
        "operations_tls_cert": "default: none: plain text",
        "operations_tls_key": "default: none",
        "engine_tls_ca": "default: none: plain text to engines",
        "engine_tls_cert": "default: none",
        "engine_tls_key": "default: none",
        "engine_tls_name": "default: the host of the engine's address",
        "allow_special_tokens_in_content": "default: off",
        "insecure_host": "default: none",
        "http_port": "default: none: gRPC only",
        "api_keys_file": "default: clients need none",
    }.get(option) or f"default: {getattr(RouterConfig(), option)}"
    name = option.replace("_", "-")
    usage = f", --no-{name}" if shown == "default: off" else " VALUE"
    pattern = rf"--{name}{usage} [^()]+ \({re.escape(shown)}; "
    assert re.search(pattern + f"{config.ENVIRONMENT_PREFIX}{option.upper()}", text)
