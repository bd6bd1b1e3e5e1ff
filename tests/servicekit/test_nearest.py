import pytest

from servicekit.nearest import did_you_mean, nearest

NAMES = ("max_model_len", "max_num_seqs", "port", "http_port", "tensor_parallel_size")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("max-model-length", "max_model_len"),
        ("MAX_MODEL_LEN", "max_model_len"),
        ("prot", "port"),
        ("po", "port"),
        ("tensor", "tensor_parallel_size"),
        ("parallel", "tensor_parallel_size"),
        ("max", None),
        ("a", None),
        ("x" * 1_000_000, None),
    ],
)
def test_name_that_was_most_likely_meant(name, found):
    assert nearest(name, NAMES) == found


def test_suggestion_ends_an_error_or_is_nothing():
    assert did_you_mean("prot", NAMES) == "; did you mean port?"
    assert did_you_mean("zzz", NAMES) == ""
