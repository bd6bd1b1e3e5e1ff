"""What `pagestream serve` starts, for each command line and machine."""

import dataclasses
import re
from pathlib import Path

import pytest

import engine_service.config as engine_config
import router.config as router_config
from pagestream.serve import plan as plan_module
from pagestream.serve.options import READER, ServeOptions
from pagestream.serve.plan import make_plan
from servicekit.address import split
from servicekit.errors import StartupError
from servicekit.values import Flags, Integers, Numbers, OneOf

FREE = ["--port", "0", "--operations-port", "0", "--http-port", "0"]


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.setattr(plan_module.os, "sched_getaffinity", lambda pid: set(range(12)))

    def make(*arguments, num_gpus=0, **environment):
        monkeypatch.setattr(plan_module, "count_gpus", lambda: num_gpus)
        return make_plan(READER.read(["m", *FREE, *arguments], {}), environment)

    return make


def engines_of(plan):
    """The settings that the engines would have, read as they read them."""
    assert {one.arguments[0] for one in plan.engines} == {"engine_service"}
    return [engine_config.read_config(one.arguments[1:], {}) for one in plan.engines]


def router_of(plan):
    assert plan.router.arguments[0] == "router"
    return router_config.read_config(plan.router.arguments[1:], {})


def test_there_is_one_engine_per_gpu(plan):
    made = plan(num_gpus=3)
    assert [one.environment for one in made.engines] == [
        {"CUDA_VISIBLE_DEVICES": number} for number in "012"
    ]
    assert [one.place for one in made.engines] == ["GPU 0", "GPU 1", "GPU 2"]
    # A GPU that cannot be used is an error: many engines on one CPU would help nobody.
    assert {one.model.device for one in engines_of(made)} == {"cuda"}
    assert router_of(made).engines == tuple(one.address for one in made.engines)


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        (["--tensor-parallel-size", "2"], ["5,3", "1,0"]),
        (["--tensor-parallel-size", "3"], ["5,3,1"]),
        (["--replicas", "1"], ["5"]),
        (["--replicas", "2", "--tensor-parallel-size", "2"], ["5,3", "1,0"]),
    ],
)
def test_gpus_that_are_visible_are_divided(plan, arguments, gpus):
    made = plan(*arguments, num_gpus=8, CUDA_VISIBLE_DEVICES="5,3,1,0")
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in made.engines] == gpus


@pytest.mark.parametrize(
    ("arguments", "num_gpus", "message"),
    [
        (
            ["--tensor-parallel-size", "4"],
            2,
            "--tensor-parallel-size 4 needs 4 GPUs, but there are 2; lower it, or serve with "
            "--device cpu",
        ),
        (
            ["--replicas", "2"],
            1,
            "--replicas 2 with --tensor-parallel-size 1 needs 2 GPUs, but there is 1; lower it, "
            "or serve with --device cpu",
        ),
        (
            ["--device", "cuda"],
            0,
            "--device is cuda, but there is no GPU; `pagestream doctor` says what is missing",
        ),
    ],
)
def test_too_few_gpus_are_refused(plan, arguments, num_gpus, message):
    with pytest.raises(StartupError, match=f"^{re.escape(message)}$"):
        plan(*arguments, num_gpus=num_gpus)


@pytest.mark.parametrize(
    ("arguments", "num_gpus", "threads"),
    [
        ([], 0, [None]),
        (["--device", "cpu"], 4, [None]),
        (["--replicas", "3"], 0, [4, 4, 4]),
        (["--replicas", "2", "--tensor-parallel-size", "3"], 0, [2, 2]),
        (["--replicas", "40"], 0, [1] * 40),
        (["--replicas", "2", "--cpu-threads", "5"], 0, [5, 5]),
    ],
)
def test_engines_without_gpu_share_the_cores(plan, arguments, num_gpus, threads):
    made = plan(*arguments, num_gpus=num_gpus)
    assert [one.model.cpu_threads for one in engines_of(made)] == threads
    assert {one.model.device for one in engines_of(made)} == {"cpu"}
    assert not any(one.environment for one in made.engines)


def test_options_go_to_whom_they_belong(plan):
    made = plan(
        *("--max-num-seqs", "1k", "--no-enable-prefix-caching", "--served-model-name=-m"),
        *("--placement", "random", "--allow-special-tokens-in-content"),
        *("--max-buffered-tokens", "9", "--log-level", "debug", "--drain-grace-seconds", "500ms"),
    )
    (engine,) = engines_of(made)
    assert (engine.model.model, engine.model.served_model_name) == ("m", "-m")
    assert engine.scheduler.max_num_seqs == 1000
    assert not engine.cache.enable_prefix_caching
    assert engine.server.max_buffered_tokens == 16_384
    router = router_of(made)
    assert (router.placement, router.allow_special_tokens_in_content) == ("random", True)
    assert router.max_buffered_tokens == 9
    for settings in (engine.server, router):
        assert (settings.log_level, settings.drain_grace_seconds) == ("debug", 0.5)
    assert made.grace_seconds == 0.5


def test_defaults_of_services_stay_theirs(plan):
    made = plan()
    (engine,) = engines_of(made)
    assert engine.cache == engine_config.CacheOptions()
    assert engine.scheduler == engine_config.SchedulerOptions()
    assert router_of(made).max_prompt_bytes == router_config.RouterConfig().max_prompt_bytes


def test_certificate_is_the_routers(plan):
    made = plan("--tls-cert", "/a/tls.crt", "--tls-key", "/a/tls.key")
    assert router_of(made).tls_cert == made.tls_cert == Path("/a/tls.crt")
    assert [engine.server.tls_cert for engine in engines_of(made)] == [None]
    assert plan().tls_cert is None


def test_keys_and_certificates_are_asked_for_by_the_router_alone(plan):
    files = ("--api-keys-file=/a/keys", "--tls-client-ca=/a/ca", "--tls-cert=/a/c", "--tls-key=k")
    made = plan(*files, "--operations-tls-cert=/a/o.crt", "--operations-tls-key=/a/o.key")
    router, (engine,) = router_of(made), engines_of(made)
    assert (router.api_keys_file, router.tls_client_ca) == (Path("/a/keys"), Path("/a/ca"))
    assert (made.needs_key, made.needs_certificate) == (True, True)
    assert engine.server.tls_cert is engine.server.tls_client_ca is None
    # Those of the operations ports are of all.
    for service in (router, made.router, engine.server, made.engines[0]):
        assert service.operations_tls_cert == Path("/a/o.crt")
    assert (plan().needs_key, plan().needs_certificate) == (False, False)


@pytest.mark.parametrize(("arguments", "name"), [([], "m"), (["--served-model-name=n"], "n")])
def test_model_has_the_name_that_engines_give_it(plan, arguments, name):
    assert plan(*arguments).model == name


SERVICES = (
    router_config.RouterConfig,
    engine_config.ModelOptions,
    engine_config.CacheOptions,
    engine_config.SchedulerOptions,
    engine_config.ServerOptions,
)
OF_SERVE = {"engines", "engines_file", "engine_dns", "discovery_interval"}
# To and of its engines, nothing is encrypted.
OF_SERVE |= {"engine_tls_ca", "engine_tls_cert", "engine_tls_key", "engine_tls_name"}
OF_SERVE |= {"tls_client_names"}


def test_every_option_of_a_service_is_taken_or_set_by_serve():
    for group in (ServeOptions, *SERVICES):
        assert {one.name for one in dataclasses.fields(group)} - set(READER.fields) <= OF_SERVE


def other_value(field):
    """A value that is allowed and not the default, as it would be written."""
    values = field.metadata["values"]
    if isinstance(values, Flags):
        return None
    if isinstance(values, OneOf):
        return str(next(one for one in values.choices if one != field.default))
    if isinstance(values, Integers | Numbers):
        return str(values.minimum if values.minimum != field.default else values.maximum)
    return "cuda:1" if field.name == "device" else "x"


def test_no_option_is_accepted_and_forgotten(plan):
    seen_elsewhere = {"model", "replicas", "device", "tensor_parallel_size", "host"}
    for field in READER.fields.values():
        if field.name in {*seen_elsewhere, "insecure_host"}:
            continue
        value = other_value(field)
        flag = f"--{field.name.replace('_', '-')}"
        if value is None:
            value, written = not field.default, flag if not field.default else f"--no-{flag[2:]}"
        else:
            written = f"{flag}={value}"
        arguments = [a for one in plan(written).services for a in one.arguments]
        assert any(a == written or a.startswith(f"{flag}=") for a in arguments), written


def test_no_two_services_share_a_port(plan):
    made = plan("--replicas", "20")
    addresses = [a for one in made.services for a in (one.address, one.operations_address)]
    addresses.append(made.http_address)
    assert len({split(one) for one in addresses}) == len(addresses) == 43


def test_free_ports_are_none_that_another_service_is_to_have(monkeypatch):
    offered = [7, 5, 5, 6]

    class Socket:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def bind(self, where):
            self.name = (where[0], offered.pop(0))

        def getsockname(self):
            return self.name

    monkeypatch.setattr(plan_module.socket, "socket", Socket)
    assert plan_module._free_ports("127.0.0.1", 2, {5}) == [7, 6]


def test_router_alone_listens_where_the_host_says(plan):
    made = plan("--host", "127.0.0.2")
    assert router_of(made).host == "127.0.0.2"
    assert made.http_address.startswith("127.0.0.2:")
    assert engines_of(made)[0].server.host == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_router_alone_serves_in_plain_text_beyond_the_machine(plan, host):
    with pytest.raises(StartupError, match=f"^--host is '{host}', which others can reach, but"):
        plan("--host", host)
    made = plan("--insecure-host", host)
    assert router_of(made).host == host
    assert made.http_address.rpartition(":")[0] in ("127.0.0.1", "[::1]")
    assert engines_of(made)[0].server.host == "127.0.0.1"


def test_ports_given_are_those_used(monkeypatch):
    monkeypatch.setattr(plan_module, "count_gpus", lambda: 0)
    monkeypatch.setattr(plan_module, "_check_free", lambda *_: None)
    made = make_plan(READER.read(["m"], {}), {})
    router = router_of(made)
    assert (router.port, router.http_port) == (50050, 8000)
    assert router.operations_port == router_config.RouterConfig().operations_port
    assert made.http_address == "127.0.0.1:8000"
