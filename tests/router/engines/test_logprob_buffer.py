import random
from array import array

from router.engines.logprob_buffer import LogprobBuffer
from tests.fakes.fake_logprobs import as_lists, made_up_logprobs


def test_logprobs_come_out_as_they_went_in_however_they_are_cut():
    rng = random.Random(0)
    for num_top in (0, 1, 3):
        buffer = LogprobBuffer(num_top)
        num_added = num_taken = 0
        for _ in range(300):
            count = rng.randrange(1, 20)
            buffer.add(made_up_logprobs(num_added, [7] * count, num_top))
            num_added += count
            while rng.random() < 0.6 and len(buffer):
                count = rng.randint(1, len(buffer))
                expected = made_up_logprobs(num_taken, [7] * count, num_top)
                assert as_lists(buffer.take(count)) == expected
                num_taken += count
            assert len(buffer) == num_added - num_taken
        assert len(buffer) * (4 + 8 * num_top) <= buffer.num_bytes
        assert buffer.num_bytes <= 2 * (len(buffer) + 1) * (4 + 8 * num_top)


def test_what_was_taken_does_not_change():
    buffer = LogprobBuffer(1)
    buffer.add(made_up_logprobs(0, [1, 2, 3], 1))
    first = buffer.take(2)
    buffer.add(made_up_logprobs(3, [4], 1))

    assert as_lists(first) == made_up_logprobs(0, [1, 2], 1)
    assert isinstance(first.logprobs, array)
