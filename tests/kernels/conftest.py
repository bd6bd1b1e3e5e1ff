"""Every output starts as NaN here, so that an element which a kernel leaves out shows."""

import pytest
import torch

import tests.triton_mode  # noqa: F401  before the kernels


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(-7)

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(
        torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs))
    )


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Skips what this machine cannot run: kernels run on its GPU or, without one, interpreted."""
    has_gpu = torch.cuda.is_available()
    needs_gpu = pytest.mark.skip(reason="needs a CUDA device")
    needs_gpus = pytest.mark.skip(reason="needs two CUDA devices")
    needs_interpreter = pytest.mark.skip(reason="interpreted only where there is no CUDA device")
    for item in items:
        if "tests/kernels/" not in item.path.as_posix():
            continue
        if item.get_closest_marker("multi_gpu"):
            if torch.cuda.device_count() < 2:
                item.add_marker(needs_gpus)
        elif item.get_closest_marker("gpu"):
            if not has_gpu:
                item.add_marker(needs_gpu)
        elif has_gpu and {"target", "interpreted_ranks"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(needs_interpreter)
