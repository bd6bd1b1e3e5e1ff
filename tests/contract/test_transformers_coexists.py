"""Our top-level package `kernels` shares its name with one that transformers looks for."""

import importlib.metadata

from transformers.utils import is_kernels_available


def test_transformers_does_not_take_our_kernels_for_the_public_package():
    assert importlib.metadata.version("pagestream") >= "1.0.0"
    assert not is_kernels_available()


def test_transformers_qwen3_imports_beside_us():
    from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

    assert Qwen3ForCausalLM.config_class is Qwen3Config
