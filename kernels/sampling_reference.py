"""The mathematics of sampling in plain torch: from the logits of a row to its token.

As `reference.py` for the rest of this package: each function specifies the Triton kernel with the
same name and signature, and runs in its place on a CPU.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.shape_logits import LogitEdits

MIN_TEMPERATURE = 1e-5
"""A row with a lower temperature is greedy: the divided logits would drown out the noise."""

MAX_PREFIX = 64
"""Most tokens before the last one of a forbidden sequence, rounded up to a power of two."""
SHAPING_COLUMNS = (
    "num_prompt_tokens",
    "num_biases",
    "is_restricted",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)

_MASS_BITS = 40

PHILOX_ROUNDS = 7
"""The fewest that pass TestU01's BigCrush. Most libraries take 10, to be on the safe side; sampling
many rows would take about a tenth longer then (docs/decisions/gumbel-sampling.md)."""
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_32_BITS = 0xFFFFFFFF

_MAX_INT32 = 2**31 - 1
# Infinities as integers of the order of the scores.
_LARGEST_SCORE = 0x7F800000
_LEAST_SCORE = -0x7F800001


def shape_logits(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    edits: "LogitEdits",
    columns: Mapping[str, int],
) -> torch.Tensor:
    """Applies allowed tokens, biases and penalties, in this order.

    A logit of a token in the sequence is divided by the repetition penalty if positive, else
    multiplied by it. Of the tokens generated, the frequency penalty is subtracted once for each
    time, and the presence penalty once.

    Args:
        logits: [num_rows, vocab_size]
        tokens: [num_slots, max_model_len] int32, the known tokens of each sequence
        records: [num_slots, num_columns] int64, the sampling parameters of each sequence
        slots: [num_rows] int64, whose record and lists a row follows
        positions: [num_rows] int64, the positions of the tokens drawn; 0 is padding
        edits: the lists of each slot
        columns: where a record holds `SHAPING_COLUMNS`

    Returns:
        [num_rows, vocab_size] float32
    """
    shaped = logits.to(torch.float32, copy=True)
    chosen = records[slots]
    for x, record, slot, position in zip(
        shaped, chosen, slots.tolist(), positions.tolist(), strict=True
    ):
        number = {name: int(record[columns[name]]) for name in SHAPING_COLUMNS}
        if position == 0:
            continue
        sequence, num_prompt = tokens[slot, :position].long(), number["num_prompt_tokens"]
        if number["is_restricted"]:
            ids = torch.arange(x.shape[0], device=x.device)
            is_allowed = edits.allowed[slot, ids // 32] >> (ids % 32) & 1
            x.masked_fill_(is_allowed == 0, -torch.inf)
        _add_biases(x, edits, slot, number["num_biases"], sequence, num_prompt)
        repetition, frequency, presence = (
            as_float(record[columns[name]]) for name in SHAPING_COLUMNS[3:]
        )
        if repetition != 1.0:
            seen = torch.unique(sequence)
            x[seen] = torch.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
        generated, counts = torch.unique(sequence[num_prompt:], return_counts=True)
        x[generated] -= frequency * counts + presence
    return shaped


def _add_biases(
    x: torch.Tensor,
    edits: "LogitEdits",
    slot: int,
    num_biases: int,
    sequence: torch.Tensor,
    num_prompt: int,
) -> None:
    listed = edits.biases[slot, :, :num_biases]
    biases = listed[1].contiguous().view(torch.float32)
    for token, bias, end, prefix in zip(
        listed[0].tolist(), biases.tolist(), listed[2].tolist(), listed[3].tolist(), strict=True
    ):
        position, start, count = len(sequence), prefix >> 8, prefix & 255
        if position >= end or (count and position - count < num_prompt):
            continue
        wanted = edits.forbidden[slot, start : start + count]
        if bool((sequence[position - count :] == wanted).all()):
            x[token] += bias


def sampling_thresholds(
    scores: torch.Tensor, records: torch.Tensor, slots: torch.Tensor, columns: Mapping[str, int]
) -> torch.Tensor:
    """Finds the least score that each row may draw: min-p, then top-k, then top-p.

    Equal scores are kept or dropped together. Source: the definitions of vLLM's and transformers'
    samplers, which drop equal scores in the order of their sort.

    Args:
        scores: [num_rows, vocab_size]
        records: [num_slots, num_columns] int64, the sampling parameters of each sequence
        slots: [num_rows] int64, whose record a row follows
        columns: where a record holds "temperature", "top_k" (0 or less keeps all), "top_p", "min_p"

    Returns:
        [num_rows] float32; -inf where everything is kept, as in rows that are greedy or hold a NaN
        or +inf
    """
    chosen = records[slots]
    temperatures, top_ps, min_ps = (
        as_float(chosen[:, columns[name]]).tolist() for name in ("temperature", "top_p", "min_p")
    )
    thresholds = torch.full((scores.shape[0],), -torch.inf, device=scores.device)
    rows = zip(
        scores, temperatures, chosen[:, columns["top_k"]].tolist(), top_ps, min_ps, strict=True
    )
    for row, (of_row, temperature, top_k, top_p, min_p) in enumerate(rows):
        is_asked = 0 < top_k < scores.shape[1] or top_p < 1 or min_p > 0
        if temperature >= MIN_TEMPERATURE and is_asked:
            thresholds[row] = _threshold(of_row.float(), temperature, top_k, top_p, min_p)
    return thresholds


def _threshold(
    x: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> float:
    largest = x.max()
    if not bool(largest.isfinite()):
        return -torch.inf
    x = x.sort(descending=True).values
    if min_p > 0:
        x = x[x >= (largest + temperature * torch.tensor(min_p).log()).clamp(max=largest)]
    if 0 < top_k < len(x):
        x = x[x >= x[top_k - 1]]
    if top_p < 1:
        # Whole numbers, as of the kernel, whose sums do not depend on their order.
        masses = (((x - largest) / temperature).exp() * 2.0**_MASS_BITS).long().cumsum(0)
        wanted = masses[-1].double() * top_p
        x = x[: int((masses.double() < wanted).sum()) + 1]
    return float(x[-1])


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes the log probability of a token of each row, and the row's likeliest tokens.

    Args:
        logits: [num_rows, vocab_size]
        token_ids: [num_rows] int64; of -1, no token, the result is undefined
        num_top: how many of the likeliest, at most vocab_size

    Returns:
        [num_rows] float32; [num_rows, num_top] int32, the likeliest first, of equal ones the
        smaller token; and theirs, [num_rows, num_top] float32
    """
    wide = logits.float()
    logprobs = wide.log_softmax(-1)
    # Faster than a sort. As in `sample_keys`, of equal scores the first token has the largest key.
    ids = torch.arange(logits.shape[-1], device=logits.device)
    order = (_ordered(wide) << 32 | _MAX_INT32 - ids).topk(num_top).indices
    of_token = logprobs.gather(1, token_ids.clamp(min=0)[:, None])[:, 0]
    return of_token, order.int(), logprobs.gather(1, order)


def sample(
    logits: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    columns: Mapping[str, int],
    thresholds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draws one token per row from softmax(logits / temperature).

    Takes all arguments but the last of `sample_keys`, for a whole vocabulary.

    Args:
        logits: as of `sample_keys`
        records: as of `sample_keys`
        slots: as of `sample_keys`
        positions: as of `sample_keys`
        columns: as of `sample_keys`
        thresholds: [num_rows] float32, the least logit that a row may draw; None for all

    Returns:
        [num_rows] int64; -1 if the row is not a distribution: it holds a NaN or +inf, only -inf, or
        the scores overflow
    """
    if thresholds is not None:
        logits = logits.masked_fill(logits < thresholds[:, None], -torch.inf)
    return tokens_of_keys(sample_keys(logits, records, slots, positions, columns, 0))


def sample_keys(
    logits: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    columns: Mapping[str, int],
    first_id: int,
) -> torch.Tensor:
    """Draws among a part of the vocabulary; the largest key of all parts has the row's token.

    Takes argmax(logits / temperature + gumbel), which has that distribution. The noise of a
    vocabulary entry is a function of (seed, sample, position, entry) alone, so that a draw depends
    neither on other rows nor on how the vocabulary is divided.
    Source: Gumbel-max (Gumbel, 1954); Philox 4x32-7 (Salmon et al., 2011).

    Args:
        logits: [num_rows, vocab_size]; -inf hides an entry
        records: [num_slots, num_columns] int64, the sampling parameters of each sequence
        slots: [num_rows] int64, whose record a row follows
        positions: [num_rows] int64
        columns: where a record holds "temperature", as the bits of a float32, "seed" and
            "sample_index". A temperature of 0 (below `MIN_TEMPERATURE`) takes the largest logit,
            the first of several equal ones.
        first_id: the token of the first entry, a multiple of 4

    Returns:
        [num_rows] int64: the best score, as an integer of the same order, above the token counted
            down, so that of equal scores the first token has the largest key
    """
    chosen = records[slots]  # [num_rows, num_columns]
    temperatures, seeds = as_float(chosen[:, columns["temperature"]]), chosen[:, columns["seed"]]
    samples = chosen[:, columns["sample_index"]]
    is_greedy = temperatures < MIN_TEMPERATURE
    scores = logits
    if not bool(is_greedy.all()):
        noise = gumbel(random_bits(seeds, samples, positions, logits.shape[-1], first_id))
        wide = logits.float()
        scores = torch.where(is_greedy[:, None], wide, wide / temperatures[:, None] + noise)
    # `max` treats NaN as the largest value.
    best, token_ids = scores.max(-1)
    best = torch.where(best.isnan(), torch.inf, best.float())
    return _ordered(best) << 32 | _MAX_INT32 - (token_ids + first_id)


def tokens_of_keys(keys: torch.Tensor) -> torch.Tensor:
    """Returns the token of each key of `sample_keys`, [num_rows] int64; -1 if there is none."""
    scores = keys >> 32
    is_distribution = (scores > _LEAST_SCORE) & (scores < _LARGEST_SCORE)
    return torch.where(is_distribution, _MAX_INT32 - (keys & _LOW_32_BITS), -1)


def _ordered(scores: torch.Tensor) -> torch.Tensor:
    """Converts float32 to int64 of the same order; 0 and -0 are equal."""
    bits = (scores + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & _MAX_INT32)).long()


def as_float(words: torch.Tensor) -> torch.Tensor:
    """Reads the low half of each int64 as the bits of a float32."""
    return words.int().view(torch.float32)


def random_bits(
    seeds: torch.Tensor,
    samples: torch.Tensor,
    positions: torch.Tensor,
    vocab_size: int,
    first_id: int = 0,
) -> torch.Tensor:
    """Returns 32 random bits for each vocabulary entry of each row.

    Entry v takes word v % 4 of Philox at counter (v // 4, low and high half of the position,
    sample).

    Args:
        seeds: [num_rows] int64, the key
        samples: [num_rows] int64, which of the continuations of one prompt, from 0
        positions: [num_rows] int64
        vocab_size: entries of a row
        first_id: the first of them, a multiple of 4

    Returns:
        [num_rows, vocab_size] int64, from 0 to 2^32 - 1
    """
    groups = first_id // 4 + torch.arange(-(-vocab_size // 4), device=seeds.device)[None, :]
    low, high = positions & _LOW_32_BITS, positions >> 32 & _LOW_32_BITS
    counter = (groups, low[:, None], high[:, None], samples[:, None])
    words = philox(seeds[:, None], counter)
    return torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]


def philox(
    key: torch.Tensor, counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes Philox 4x32-7: four random words from a 64-bit key and a 128-bit counter.

    Source: Random123 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        key: int64, the two words of the key, low one first
        counter: four int64 tensors of one word each, from 0 to 2^32 - 1; all broadcast

    Returns:
        four int64 tensors of one word each
    """
    a, b, c, d = counter
    key_low, key_high = key & _LOW_32_BITS, key >> 32 & _LOW_32_BITS
    for _ in range(PHILOX_ROUNDS):
        # A product of two words wraps around in int64, but keeps all its bits.
        product_a, product_c = a * _PHILOX_MULTIPLIERS[0], c * _PHILOX_MULTIPLIERS[1]
        a = (product_c >> 32 & _LOW_32_BITS) ^ b ^ key_low
        c = (product_a >> 32 & _LOW_32_BITS) ^ d ^ key_high
        b, d = product_c & _LOW_32_BITS, product_a & _LOW_32_BITS
        key_low = key_low + _PHILOX_KEY_STEPS[0] & _LOW_32_BITS
        key_high = key_high + _PHILOX_KEY_STEPS[1] & _LOW_32_BITS
    return a, b, c, d


def gumbel(bits: torch.Tensor) -> torch.Tensor:
    """Converts 32 random bits to a standard Gumbel variable, -log(-log(1 - u)).

    u = (bits + 0.5) / 2^32, so that the large values, which decide, are exact up to probabilities
    of 2^-33. For u below 2^-5, the inner logarithm is its series, as 1 - u would lose u's low bits.
    A factor of 1 - 2^-24 keeps that of the largest bits, which round to 2^32, below 1.

    Args:
        bits: int64, from 0 to 2^32 - 1

    Returns:
        float32 of the same shape, finite
    """
    u = bits.float() * (2.0**-32 - 2.0**-56) + 2.0**-33
    exact = -torch.log(1.0 - u)
    series = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * 0.25)))
    return -torch.log(torch.where(u < 2.0**-5, series, exact))
