"""How programs divide products, which is computed without a GPU."""

from collections import Counter
from random import Random

import pytest

from kernels.product_division import MAX_SHARED_TILES, divide


def programs_of(division):
    """Yields the steps of each program, as the kernel computes them."""
    num_all, num_programs = division.num_tiles * division.num_steps, division.num_programs
    for program in range(num_programs):
        if division.max_shares == 1:
            ends = (place * division.num_tiles // num_programs for place in (program, program + 1))
            first, last = (end * division.num_steps for end in ends)
        else:
            first, last = (place * num_all // num_programs for place in (program, program + 1))
        yield range(first, last)


@pytest.mark.parametrize("num_multiprocessors", [14, 16, 78, 114, 132])
@pytest.mark.parametrize("num_rows", [8, 16, 32, 64])
@pytest.mark.parametrize("is_gated", [False, True])
def test_each_step_of_a_product_has_one_program(num_multiprocessors, num_rows, is_gated):
    random = Random(num_multiprocessors + num_rows)
    sizes = [(random.randint(1, 20_000), random.randint(1, 15_000)) for _ in range(150)]
    for num_outs, in_features in [
        *sizes,
        (1, 1),
        (64 * num_multiprocessors + 1, 300),
        (40_000, 8192),
    ]:
        division = divide(num_outs, in_features, num_rows, num_multiprocessors, is_gated=is_gated)
        programs = list(programs_of(division))
        shares = Counter(
            tile
            for steps in programs
            for tile in {step // division.num_steps for step in (steps[0], steps[-1])}
        )

        assert [step for steps in programs for step in steps] == list(
            range(division.num_tiles * division.num_steps)
        )
        assert all(programs)
        assert max(shares.values()) <= division.max_shares
        assert division.max_shares == 1 or division.num_tiles <= MAX_SHARED_TILES
        assert division.num_in_parts * num_rows <= 64
        assert division.num_tiles * division.block_out >= num_outs


@pytest.mark.parametrize(
    ("sizes", "is_gated", "expected"),
    [
        ((4096, 1024, 16), False, (1, 64, 1)),  # 0.6B: queries, keys and values
        ((1024, 2048, 16), False, (4, 64, 1)),  # 0.6B, after attention: smaller tiles
        ((1024, 2048, 64), False, (1, 32, 2)),  # which so many rows do not allow
        ((3072, 1024, 16), True, (1, 96, 1)),  # 0.6B, gate and up
        ((2560, 9728, 16), False, (1, 120, 3)),  # 4B, down: three programs for each tile
        ((6144, 4096, 16), False, (1, 96, 1)),  # 8B: queries, keys and values
        ((4096, 12288, 16), False, (2, 128, 1)),  # 8B, down
        ((4096, 12288, 64), False, (1, 128, 2)),
        ((12288, 4096, 16), True, (1, 128, 1)),  # 8B, gate and up: each has three tiles
        ((9728, 2560, 16), True, (1, 128, 2)),  # 4B, gate and up: equal parts of all steps
        ((9728, 2560, 64), True, (1, 102, 1)),  # where shares of so many rows cost more
        ((5120, 12800, 16), False, (1, 132, 3)),  # half of 32B, down: equal parts of all steps
        ((151936, 4096, 16), False, (1, 132, 1)),  # a vocabulary
        ((40, 256, 16), False, (4, 3, 1)),
        ((8, 8, 16), True, (1, 1, 1)),
    ],
)
def test_products_are_divided_as_was_fastest(sizes, is_gated, expected):
    division = divide(*sizes, 132, is_gated=is_gated)

    assert (division.num_in_parts, division.num_programs, division.max_shares) == expected
