"""Which sizes of CUDA graphs there are, and which of them are worth having."""

import itertools

import pytest

from engine_service.worker.graph_sizes import (
    decode_sizes,
    max_num_graphs,
    max_worthwhile_tokens,
    sizes_with_prompts,
    timed_sizes,
    token_sizes,
    worthwhile_sizes,
)


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 7, 8, 9, 100, 256, 1000, 65000])
def test_every_batch_fits_into_a_size_that_pads_it_by_little(max_num_seqs):
    sizes = decode_sizes(max_num_seqs)

    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    assert sizes[0] == 1
    for below, size in itertools.pairwise(sizes):
        assert size - below <= max(8, below // 16 + 8)


@pytest.mark.parametrize("max_num_tokens", [1, 16, 17, 100, 2048, 8192, 10000])
def test_every_number_of_tokens_fits_into_a_size_that_pads_it_by_a_quarter(max_num_tokens):
    sizes = token_sizes(max_num_tokens)

    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_num_tokens
    for below, size in itertools.pairwise([0, *sizes]):
        assert size - below <= max(16, below // 4)


def test_no_graph_has_more_rows_than_a_step_has_tokens():
    assert max_num_graphs(65000, 16) == max_num_graphs(16, 16) < max_num_graphs(256, 8192) < 200


def test_no_memory_is_kept_for_graphs_that_cannot_be_needed():
    num_decodes = len([size for size in decode_sizes(256) if size >= 16])
    # As many as those with the most rows, 256 and some of padding.
    num_others = len([size for size in token_sizes(8192) if size >= 264])
    with_sharing, without = max_num_graphs(256, 8192), max_num_graphs(256, 8192, may_share=False)

    assert with_sharing - without == num_decodes + num_others


@pytest.mark.parametrize(
    ("device_seconds_per_token", "expected"), [(1e-6, 8192), (1e-5, 2048), (1.0, 256)]
)
def test_largest_graph_is_one_that_the_device_runs_longer_than_the_host_launches_it(
    device_seconds_per_token, expected
):
    def time_step(num_tokens):
        return 0.015, max(0.015, num_tokens * device_seconds_per_token)

    assert max_worthwhile_tokens(8192, time_step) == expected
    assert max_worthwhile_tokens(100, time_step) == 100


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ([1, 1, 2, 3], [1, 2, 4, 8]),
        ([1, 4, 2, 3], [1, 4, 8]),
        ([2, 9, 9, 3], [1, 8]),
        ([3.02, 3.02, 3.01, 3], [1, 2, 4, 8]),
        ([3.2, 3.0, 3.1, 3], [2, 8]),
        ([5, 5, 5, 3], [8]),
        # A hundredth of so little time is less than the clock can tell.
        ([0.109, 0.108, 0.111, 0.1], [1, 2, 8]),
    ],
)
def test_sizes_that_take_longer_than_a_larger_one_are_left_out(milliseconds, expected):
    seconds = [value / 1000 for value in milliseconds]

    assert worthwhile_sizes([1, 2, 4, 8], seconds) == expected


@pytest.mark.parametrize("max_num_rows", [1, 7, 24, 256, 2000])
@pytest.mark.parametrize("max_num_tokens", [8, 100, 256, 8192])
def test_each_number_of_tokens_up_to_a_bound_is_timed_once(max_num_rows, max_num_tokens):
    sizes = sizes_with_prompts(min(max_num_rows, max_num_tokens), max_num_tokens)

    timed = [size.num_tokens for size in timed_sizes(sizes)]

    assert timed == sorted({size.num_tokens for size in sizes if size.num_tokens <= 1024})
