import pytest
import torch

import tests.triton_mode  # noqa: F401  before the kernels
from tests.engine_service.tiny_models import SHAPES, TinyModel, make_model


def pytest_collection_modifyitems(items):
    """Skips what needs more GPUs than this machine has."""
    needs_gpus = pytest.mark.skip(reason="needs two CUDA devices")
    for item in items:
        if item.get_closest_marker("multi_gpu") and torch.cuda.device_count() < 2:
            item.add_marker(needs_gpus)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> TinyModel:
    """One small model, for tests to which its shape does not matter."""
    return make_model(tmp_path_factory.mktemp("tiny") / "model", SHAPES[1])


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices are faster without threads, and the machine is shared."""
    torch.set_num_threads(1)
