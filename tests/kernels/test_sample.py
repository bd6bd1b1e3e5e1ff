import math
from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl

from kernels import sample as sample_module
from kernels import sampling_reference
from kernels.sample import gumbel_base2, random_words
from tests.kernels.sampling import COLUMNS, by_row, records_by_row, records_of
from tests.kernels.targets import in_float32, on_each_device, on_each_target

sample = by_row(sample_module.sample)
kernel = by_row(sample_module._sample_triton)
twin = by_row(sampling_reference.sample)

VOCAB_SIZES = [1, 3, 63, 100, 2048, 2049, 5000]


@pytest.fixture(params=["one tile each", "several tiles each"])
def programs(request, monkeypatch):
    """Divides few rows among programs as many rows are."""
    if request.param == "several tiles each":
        monkeypatch.setattr(sample_module, "_NUM_WARPS", 0)


def arguments(target, num_rows, vocab_size):
    logits = target.randn(num_rows, vocab_size) * 3
    temperatures = torch.rand(num_rows) + 0.3
    seeds = torch.randint(0, 2**63 - 1, (num_rows,))
    positions = torch.randint(0, 2**40, (num_rows,))
    return logits, *(x.to(target.device) for x in (temperatures, seeds, positions))


@triton.jit
def _random_words_kernel(seeds, samples, positions, out, COUNT: tl.constexpr):
    row = tl.program_id(0)
    first = tl.program_id(1) * COUNT
    a, b, c, d = random_words(
        tl.load(seeds + row), tl.load(samples + row), tl.load(positions + row), first, COUNT
    )
    places = out + row * tl.num_programs(1) * COUNT + first + 4 * tl.arange(0, COUNT // 4)
    tl.store(places, a.to(tl.int64))
    tl.store(places + 1, b.to(tl.int64))
    tl.store(places + 2, c.to(tl.int64))
    tl.store(places + 3, d.to(tl.int64))


@triton.jit
def _gumbel_base2_kernel(bits, out, COUNT: tl.constexpr):
    places = tl.arange(0, COUNT)
    tl.store(out + places, gumbel_base2(tl.load(bits + places).to(tl.uint32)))


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (-1, (0xFFFFFFFF,) * 4, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_philox_gives_the_published_answers(key, counter, expected):
    words = sampling_reference.philox(
        torch.tensor(key), tuple(torch.tensor(word) for word in counter)
    )
    assert tuple(int(word) for word in words) == expected


@in_float32
def test_random_bits_of_twin_and_kernel_are_equal(target):
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, 0x299F31D0A4093822], device=target.device)
    samples = torch.tensor([0, 1, 65_535, 2, 0], device=target.device)
    positions = torch.tensor([0, 7, 2**32 - 1, 2**32 + 5, 2**62], device=target.device)
    bits = torch.empty((5, 512), dtype=torch.int64, device=target.device)
    _random_words_kernel[(5, 2)](seeds, samples, positions, bits, COUNT=256)
    assert torch.equal(bits, sampling_reference.random_bits(seeds, samples, positions, 512))


def test_random_bits_place_the_words_of_a_counter_side_by_side():
    seed, sample_index, position = (torch.tensor([x]) for x in (99, 8, 5 + (3 << 32)))
    counter = tuple(torch.tensor(word) for word in (6, 5, 3, 8))
    words = torch.stack(sampling_reference.philox(seed, counter)).flatten()
    assert torch.equal(
        sampling_reference.random_bits(seed, sample_index, position, 31)[0, 24:28], words
    )


def test_any_bits_give_a_finite_variable_of_the_right_quantile():
    bits = torch.tensor([0, 1, 2, 2**8, 2**20, 2**24 - 1, 2**24, 2**31, 2**32 - 2**9, 2**32 - 1])
    u = (bits.double() + 0.5) * 2.0**-32
    expected = -torch.log(-torch.log1p(-u))
    # Next to u = 1 the float32 grid is coarse; there the variable is small and never wins.
    torch.testing.assert_close(
        sampling_reference.gumbel(bits)[:-2], expected[:-2].float(), rtol=2e-5, atol=2e-5
    )
    assert (sampling_reference.gumbel(bits)[-2:] < -2.5).all()
    assert sampling_reference.gumbel(bits).isfinite().all()


@in_float32
def test_gumbel_of_kernel_and_twin_agree_on_extreme_and_random_bits(target):
    extremes = torch.cat(
        (torch.arange(32), 2**24 - 16 + torch.arange(32), 2**32 - 1 - torch.arange(64))
    )
    bits = torch.cat((extremes, torch.randint(0, 2**32, (896,)))).to(target.device)
    out = torch.empty(1024, device=target.device)
    _gumbel_base2_kernel[(1,)](bits, out, COUNT=1024)
    noise = out * math.log(2) - math.log(math.log(2))
    torch.testing.assert_close(noise, sampling_reference.gumbel(bits), rtol=1e-5, atol=1e-5)


@on_each_device
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_kernel_and_twin_draw_the_same_tokens(target, vocab_size):
    logits, temperatures, seeds, positions = arguments(target, 5, vocab_size)
    temperatures[2] = 0.0
    token_ids = kernel(logits, temperatures, seeds, positions)
    assert token_ids.dtype == torch.int64
    assert torch.equal(token_ids, twin(logits, temperatures, seeds, positions))


@on_each_target
@pytest.mark.parametrize("vocab_size", [5000, 40_000])
def test_draw_is_the_same_however_a_row_is_divided(target, vocab_size, monkeypatch):
    rows = arguments(target, 4, vocab_size)
    expected = twin(*rows)
    assert torch.equal(kernel(*rows), expected)
    monkeypatch.setattr(sample_module, "_NUM_WARPS", 0)
    assert torch.equal(kernel(*rows), expected)


@on_each_target
@pytest.mark.usefixtures("programs")
def test_greedy_takes_the_first_of_equals(target):
    equals = (
        [1500, 2999],
        [7],
        [8, 9],
        [100, 2148],
        [1023, 2047, 2048],
        [27, 4096],
        [8208, 8192 + 2048],
        [19_000, 19_999],
    )
    logits = target.randn(len(equals), 20_000).clamp_(max=4)
    for row, ids in enumerate(equals):
        logits[row, ids] = 9.0
    zeros = torch.zeros(len(equals), dtype=torch.int64, device=target.device)
    for draw in (kernel, sample):
        assert draw(logits, zeros.float(), zeros, zeros).tolist() == [ids[0] for ids in equals]


@on_each_target
@pytest.mark.parametrize(("width", "begin"), [(4000, 1000), (4001, 1001)], ids=["aligned", "odd"])
def test_rows_may_be_strided(target, width, begin):
    _, temperatures, seeds, positions = arguments(target, 3, 1)
    logits = target.randn(3, width)[:, begin : begin + 2100]
    expected = twin(logits, temperatures, seeds, positions)
    assert torch.equal(kernel(logits, temperatures, seeds, positions), expected)


@on_each_target
@pytest.mark.usefixtures("programs")
def test_hidden_entries_are_never_drawn(target):
    logits = torch.full((2, 3000), -torch.inf).to(target.device, target.dtype)
    logits[0, 2999] = -50.0
    logits[1, [5, 2050]] = 1.0
    ones = torch.ones(2, dtype=torch.int64, device=target.device)
    for draw in (kernel, twin):
        for temperature in (0.0, 1.0):
            token_ids = draw(logits, temperature * ones.float(), ones, ones).tolist()
            assert token_ids[0] == 2999
            assert token_ids[1] in (5, 2050)


NOT_FINITE = {
    "nan": ([0, 2999], torch.nan),
    "one-nan": ([700], torch.nan),
    "last-nan": ([2999], torch.nan),
    "infinity": ([700], torch.inf),
    "infinities": ([3, 2050], torch.inf),
    "nothing": (slice(None), -torch.inf),
    "all-nan": (slice(None), torch.nan),
}


@on_each_target
@pytest.mark.parametrize("case", NOT_FINITE)
@pytest.mark.usefixtures("programs")
def test_rows_that_are_no_distribution_give_no_token_and_leave_others_alone(target, case):
    num_rows = 4
    logits, temperatures, seeds, positions = arguments(target, num_rows, 3000)
    temperatures[num_rows // 2 :] = 0.0
    expected = twin(logits, temperatures, seeds, positions)
    assert (expected >= 0).all()
    bad = [0, num_rows - 1]
    entries, value = NOT_FINITE[case]
    for row in bad:
        logits[row, entries] = value
    expected[bad] = -1
    for draw in (kernel, twin):
        assert torch.equal(draw(logits, temperatures, seeds, positions), expected)
    greedy = torch.zeros_like(temperatures)
    for draw in (kernel, twin):
        token_ids = draw(logits, greedy, seeds, positions)
        assert (token_ids == -1).nonzero().flatten().tolist() == bad


@pytest.mark.filterwarnings("ignore:overflow encountered in multiply")  # the interpreter's NumPy
@in_float32
def test_scores_that_overflow_give_no_token(target):
    logits = torch.tensor([[1e38, 0.0], [-3e38, 1.0], [-3e38, -3e38]], device=target.device)
    temperatures = torch.full((3,), 2e-5, device=target.device)
    zeros = torch.zeros(3, dtype=torch.int64, device=target.device)
    for draw in (kernel, twin):
        assert draw(logits, temperatures, zeros, zeros).tolist() == [-1, 1, -1]


@on_each_target
def test_tiny_temperatures_are_greedy_and_huge_ones_uniform(target):
    logits = target.randn(2, 200)
    temperatures = torch.tensor([1e-30, 1e30], device=target.device)
    zeros = torch.zeros(2, dtype=torch.int64, device=target.device)
    token_ids = kernel(logits, temperatures, zeros, zeros)
    assert token_ids[0] == logits[0].argmax()
    noise = sampling_reference.gumbel(sampling_reference.random_bits(zeros, zeros, zeros, 200))
    assert token_ids[1] == noise[1].argmax()


@on_each_target
def test_no_rows_give_no_tokens(target):
    assert kernel(*arguments(target, 0, 100)).shape == (0,)


def chi_square(token_ids, probabilities):
    counts = torch.bincount(token_ids, minlength=len(probabilities)).double()
    expected = probabilities * len(token_ids)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("varied", ["seeds", "positions"])
def test_draws_follow_the_softmax(varied):
    # 99.9 % of chi-square with 7 degrees of freedom is 24.3; the draws are fixed.
    num_draws = 40_000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 3.0, -2.0, 1.5])
    counts_up, fixed = torch.arange(num_draws), torch.full((num_draws,), 12345)
    seeds, positions = (counts_up, fixed) if varied == "seeds" else (fixed, counts_up)
    token_ids = sample(
        logits.expand(num_draws, -1), torch.full((num_draws,), 0.7), seeds, positions
    )
    assert chi_square(token_ids, (logits.double() / 0.7).softmax(-1)) < 24.3
    assert chi_square(token_ids, logits.double().softmax(-1)) > 1000


def test_draws_at_neighbouring_positions_are_independent():
    num_draws = 40_000
    seeds = torch.full((num_draws,), 3)
    logits = torch.zeros(num_draws, 4)
    token_ids = sample(logits, torch.ones(num_draws), seeds, torch.arange(num_draws))
    pairs = token_ids[:-1] * 4 + token_ids[1:]
    # 99.9 % of chi-square with 15 degrees of freedom is 37.7.
    assert chi_square(pairs, torch.full((16,), 1 / 16, dtype=torch.float64)) < 37.7


def test_draw_depends_on_no_other_row():
    logits, temperatures = torch.randn(9, 500), torch.full((9,), 0.8)
    seeds, positions = torch.arange(9) * 77, torch.arange(9) + 1000
    together = sample(logits, temperatures, seeds, positions)
    order = torch.randperm(9)
    shuffled = sample(logits[order], temperatures[order], seeds[order], positions[order])
    with_greedy = sample(logits, temperatures * (torch.arange(9) == 4), seeds, positions)
    alone = [
        sample(logits[r : r + 1], temperatures[:1], seeds[r : r + 1], positions[r : r + 1])
        for r in range(9)
    ]
    assert torch.equal(shuffled, together[order])
    assert torch.equal(torch.cat(alone), together)
    assert with_greedy[4] == together[4]


def test_draw_depends_on_seed_and_on_both_halves_of_the_position():
    logits, ones = torch.zeros(4, 10_000), torch.ones(4)
    seeds = torch.tensor([1, 1 + 2**32, 1, 1])
    positions = torch.tensor([5, 5, 6, 5 + 2**32])
    assert len(set(sample(logits, ones, seeds, positions).tolist())) == 4


def test_samples_of_one_seed_are_independent():
    num_draws = 20_000
    logits = torch.zeros(num_draws, 4)
    positions = torch.arange(num_draws)
    first, second = (
        sample_module.sample(
            logits,
            *records_by_row(num_draws, seed=3, sample_index=index),
            positions,
            COLUMNS,
        )
        for index in (0, 1)
    )
    # 99.9 % of chi-square with 15 degrees of freedom is 37.7.
    assert chi_square(first * 4 + second, torch.full((16,), 1 / 16, dtype=torch.float64)) < 37.7


@on_each_device
@pytest.mark.parametrize("vocab_size", [100, 9000])
@pytest.mark.usefixtures("programs")
def test_tokens_below_the_threshold_are_not_drawn(target, vocab_size):
    num_rows = 8
    logits = target.randn(num_rows, vocab_size)
    records, slots = records_by_row(num_rows, target.device, temperature=2.0, seed=5)
    positions = torch.arange(num_rows, device=target.device)
    kth = logits.float().topk(7, dim=1).values
    thresholds = kth[:, 6].contiguous()
    thresholds[0] = -torch.inf
    given = logits, records, slots, positions, COLUMNS
    drawn = sample_module._sample_triton(*given, thresholds=thresholds)
    assert torch.equal(drawn, sampling_reference.sample(*given, thresholds=thresholds))
    assert (logits.float().gather(1, drawn[:, None])[:, 0] >= thresholds).all()
    hidden = logits.masked_fill(logits.float() < thresholds[:, None], -torch.inf)
    assert torch.equal(drawn, sample_module._sample_triton(hidden, *given[1:]))
    assert drawn[0] == sample_module._sample_triton(*given)[0]


@on_each_device
def test_a_row_with_a_nan_gives_no_token_whatever_its_threshold(target):
    logits = target.randn(2, 200)
    logits[0, 3] = torch.nan
    records, slots = records_by_row(2, target.device)
    thresholds = torch.full((2,), 1e30, device=target.device)
    positions = torch.ones(2, dtype=torch.int64, device=target.device)
    for draw in (sample_module._sample_triton, sampling_reference.sample):
        drawn = draw(logits, records, slots, positions, COLUMNS, thresholds=thresholds)
        assert drawn.tolist() == [-1, -1]


def test_wrong_tensors_are_refused_by_name_and_value():
    logits, ones = torch.randn(2, 8), torch.ones(2, dtype=torch.int64)
    records, slots = records_of(ones, ones)

    def draw(**changes):
        given = {"logits": logits, "records": records, "slots": slots, "positions": ones}
        sample_module.sample(**given | changes, columns=COLUMNS)

    with pytest.raises(ValueError, match=r"records has dtype torch.float32"):
        draw(records=records.float())
    with pytest.raises(ValueError, match=r"slots has shape \(1,\); expected \(2\)"):
        draw(slots=slots[:1])
    with pytest.raises(ValueError, match=r"positions has dtype torch.int32"):
        draw(positions=ones.int())
    with pytest.raises(ValueError, match=r"vocab_size is 0"):
        draw(logits=logits[:, :0])


@on_each_device
@pytest.mark.parametrize("parts", [[0, 8, 28, 63], [0, 32, 64, 96, 100], [0, 2500, 5000]])
def test_best_of_the_parts_of_a_vocabulary_is_the_draw_from_the_whole(target, parts):
    logits, temperatures, seeds, positions = arguments(target, 6, parts[-1])
    temperatures[2:] = 0.0
    logits[2, [3, parts[-1] - 1]] = 30.0
    logits[3, [parts[1] - 1, parts[1]]] = torch.tensor([-0.0, 0.0]).to(logits)
    logits[3].clamp_(max=0.0)
    logits[4] = torch.nan
    logits[5] = -torch.inf
    records, slots = records_of(temperatures, seeds)
    given = records, slots, positions, COLUMNS
    for draw in (
        sample_module._sample_triton,
        sampling_reference.sample_keys,
        sample_module.sample_keys,
    ):
        keys = [draw(logits[:, begin:end], *given, begin) for begin, end in pairwise(parts)]
        token_ids = sampling_reference.tokens_of_keys(torch.stack(keys).amax(0))
        assert torch.equal(token_ids, twin(logits, temperatures, seeds, positions))
    assert token_ids[2] == 3
    assert token_ids[4:].tolist() == [-1, -1]
