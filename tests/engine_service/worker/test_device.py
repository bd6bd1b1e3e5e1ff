import dataclasses

import pytest
import torch

from engine_service.config import ModelOptions
from engine_service.errors import StartupError
from engine_service.models.dtypes import READABLE
from engine_service.worker import toolchain
from engine_service.worker.device import (
    check_head_dim,
    choose_dtype,
    parse_cpus,
    set_up_device,
)
from tests.engine_service.worker.test_kv_cache import CONFIG

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def config_of(dtype):
    return dataclasses.replace(CONFIG, dtype=dtype)


@needs_no_gpu
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_cpu_is_what_there_is(device):
    assert set_up_device(ModelOptions(model="x", device=device)) == CPU


@needs_no_gpu
def test_cuda_that_is_not_there_is_refused():
    with pytest.raises(StartupError, match=r"device is 'cuda:1', but torch finds no CUDA GPU \("):
        set_up_device(ModelOptions(model="x", device="cuda:1"))


@pytest.fixture
def cuda(monkeypatch):
    """Sets what torch says of CUDA on this machine; nothing is asked of a real one."""

    def simulate(*, is_built=True, error=None, capability=None):
        def init():
            if error is not None:
                raise RuntimeError(error)

        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: is_built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return simulate


NO_GPU = [
    ({"is_built": False}, f"torch {torch.__version__} is built without CUDA"),
    (
        {"error": "Found no NVIDIA driver on your system.\nMore words."},
        "Found no NVIDIA driver on your system; ",
    ),
    ({}, "torch sees no GPU"),
]
TOO_OLD = (
    {"capability": (7, 5)},
    "Tesla T4 is too old: its compute capability is 7.5, but Triton needs 8.0 or more",
)


@pytest.mark.parametrize(("machine", "why"), [*NO_GPU, TOO_OLD])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_auto_warns_in_one_line_that_it_serves_on_the_cpu_and_why(
    cuda, caplog, machine, why, dtype
):
    cuda(**machine)

    assert set_up_device(ModelOptions(model="x", device="auto", dtype=dtype)) == CPU

    (record,) = caplog.records
    served = {"auto": "float32"}.get(dtype, dtype)
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"gpu unusable device=cpu dtype={served} detail={why}")
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(("machine", "why"), NO_GPU)
def test_cuda_that_is_asked_for_is_refused_with_the_same_reason(cuda, machine, why):
    cuda(**machine)

    with pytest.raises(StartupError, match="torch finds no CUDA GPU") as refusal:
        set_up_device(ModelOptions(model="x", device="cuda"))

    assert why.removesuffix("; ") in refusal.value.message


def test_cpu_that_is_asked_for_is_no_reason_to_warn(cuda, caplog):
    cuda()

    assert set_up_device(ModelOptions(model="x", device="cpu")) == CPU
    assert not caplog.records


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_missing_compiler_is_named_on_cuda_only(cuda, monkeypatch, tmp_path, device):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    # Cannot build, nor find what an earlier start has built.
    monkeypatch.setattr(toolchain, "driver", None)
    set_up_device(ModelOptions(model="x", device="cpu"))
    cuda(capability=(9, 0))

    with pytest.raises(StartupError, match="there is no C compiler"):
        set_up_device(ModelOptions(model="x", device=device))


def test_cpu_threads_are_set():
    before = torch.get_num_threads()
    try:
        set_up_device(ModelOptions(model="x", device="cpu", cpu_threads=before + 1))

        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("stored", READABLE)
def test_auto_dtype_is_that_of_the_checkpoint_on_cuda_only(stored):
    options = ModelOptions(model="x")

    assert choose_dtype(options, config_of(stored), CUDA) == stored
    assert choose_dtype(options, config_of(stored), CPU) == "float32"


def test_chosen_dtype_wins():
    options = ModelOptions(model="x", dtype="bfloat16")

    assert choose_dtype(options, config_of("float16"), CUDA) == "bfloat16"
    assert choose_dtype(options, config_of("float32"), CPU) == "bfloat16"


@pytest.mark.parametrize("name", READABLE)
def test_option_takes_every_dtype_that_is_read(name):
    assert ModelOptions(model="x", dtype=name).dtype == name


def test_option_takes_no_other_dtype():
    with pytest.raises(StartupError, match="dtype is 'float64'"):
        ModelOptions(model="x", dtype="float64")


def test_head_dim_that_the_gpu_kernels_lack_is_refused_there():
    config = dataclasses.replace(CONFIG, head_dim=80)

    check_head_dim(config, CPU)
    with pytest.raises(StartupError, match="the model's head_dim is 80"):
        check_head_dim(config, CUDA)


@pytest.mark.gpu
def test_cuda_device_is_made_the_current_one():
    assert set_up_device(ModelOptions(model="x", device="auto")) == CUDA
    assert set_up_device(ModelOptions(model="x", device="cuda")) == CUDA
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_gpu_beyond_the_last_is_refused():
    with pytest.raises(StartupError, match=r"device is 'cuda:99', but there are \d+ CUDA GPUs"):
        set_up_device(ModelOptions(model="x", device="cuda:99"))


def test_lists_of_cpus_are_read_as_the_kernel_writes_them():
    assert parse_cpus("0-3,8\n") == {0, 1, 2, 3, 8}
    assert parse_cpus("5") == {5}
    assert parse_cpus("\n") == set()
    with pytest.raises(ValueError, match="invalid literal"):
        parse_cpus("all")
