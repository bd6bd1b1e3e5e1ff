import pytest

from pagestream.gpus import count_gpus, visible_gpus
from servicekit.errors import StartupError


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        (None, ["0", "1", "2", "3"]),
        ("", []),
        ("-1", []),
        ("2,0", ["2", "0"]),
        (" 1 , 3 ", ["1", "3"]),
        ("0,-1,1", ["0"]),
        ("GPU-8c1f,MIG-2", ["GPU-8c1f", "MIG-2"]),
    ],
)
def test_gpus_are_those_that_cuda_would_show(variable, gpus):
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert visible_gpus(environment, 4) == gpus


@pytest.mark.parametrize(("count", "words"), [(0, "no GPUs"), (1, "1 GPU"), (4, "4 GPUs")])
def test_number_of_no_gpu_is_refused(count, words):
    message = f"^CUDA_VISIBLE_DEVICES is '0,7', but this machine has {words}; correct or unset it$"
    with pytest.raises(StartupError, match=message):
        visible_gpus({"CUDA_VISIBLE_DEVICES": "0,7"}, count)


def test_gpus_are_counted_by_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0; echo 1; echo 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert count_gpus(tmp_path) == 3


def test_without_nvidia_smi_they_are_counted_by_device_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2
