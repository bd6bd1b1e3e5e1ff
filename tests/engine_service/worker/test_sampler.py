"""The sampler against transformers' logits processors, on the same logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine_service.layers.ranks import ALONE
from engine_service.worker.input_batch import Bounds, InputBatch
from engine_service.worker.rows import Rows
from engine_service.worker.sampler import Vocabulary, sample_tokens
from engine_service.worker.slot_sampling import NOTHING, Wants
from kernels.sample import sample
from kernels.sampling_thresholds import sampling_thresholds
from kernels.shape_logits import shape_logits
from protos.wire.sampling_params import RECORD_COLUMNS, LogitBias, SamplingParams
from tests.engine_service.plans import NewSequence, Row, make_plan

VOCAB = 37
STOPS = frozenset({5, 9})


def inputs_of(sequences, vocab_size=VOCAB):
    """Returns the sampling inputs of a step in which each sequence yields its next token."""
    batch = InputBatch(
        max_num_seqs=len(sequences) + 1,
        max_model_len=64,
        block_size=16,
        vocab_size=vocab_size,
        device=torch.device("cpu"),
    )
    new = dict(enumerate(sequences))
    plan = make_plan([Row(slot, 0, len(seq.token_ids)) for slot, seq in new.items()], new)
    rows = Rows.of(plan)
    sent = batch.apply(plan, rows, rows.num_rows, rows.num_tokens)
    return batch.read(sent, Bounds.of(rows)).sampling, batch.wants(rows)


def sequence(prompt, output, params):
    return NewSequence(
        [*prompt, *output],
        [1, 2, 3, 4],
        seed=7,
        params=params,
        num_prompt_tokens=len(prompt),
        stop_token_ids=STOPS,
    )


def expected_scores(logits, prompt, output, params):
    """Returns the scores that transformers' processors give, in the order of the contract."""
    scores = penalised_scores(
        hidden_scores(logits.clone()[None], output, params), prompt, output, params
    )
    if params.temperature == 0:
        return scores[0]
    ids = torch.tensor([[*prompt, *output]])
    scores = TemperatureLogitsWarper(params.temperature or 1.0)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    if params.top_k and params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p is not None and params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    return scores[0]


def hidden_scores(scores, output, params):
    hidden = -torch.inf
    if params.allowed_token_ids:
        is_allowed = torch.zeros(VOCAB, dtype=torch.bool)
        is_allowed[list(params.allowed_token_ids)] = True
        scores[:, ~is_allowed] = hidden
    if params.min_tokens and len(output) < params.min_tokens:
        scores[:, list(STOPS)] = hidden
    if params.bad_words_token_ids:
        bias = dict.fromkeys(params.bad_words_token_ids, -math.inf)
        # Only what was generated counts.
        seen = torch.tensor([output], dtype=torch.long)
        scores = SequenceBiasLogitsProcessor(bias)(seen, scores)
    for token_id, bias in params.logit_bias:
        scores[0, token_id] += bias
    return scores


def penalised_scores(scores, prompt, output, params):
    ids = torch.tensor([[*prompt, *output]])
    if params.repetition_penalty:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    for token_id in set(output):
        scores[0, token_id] -= (params.frequency_penalty or 0) * output.count(token_id)
        scores[0, token_id] -= params.presence_penalty or 0
    return scores


def our_scores(logits, sampling):
    """Returns the logits, after all steps, from which a draw would be taken."""
    given_rows = sampling.records, sampling.slots
    shaped = shape_logits(
        logits,
        sampling.tokens,
        *given_rows,
        sampling.positions,
        sampling.edits,
        RECORD_COLUMNS,
    )
    thresholds = sampling_thresholds(shaped, *given_rows, RECORD_COLUMNS)
    return shaped.masked_fill(shaped < thresholds[:, None], -torch.inf)


tokens = st.integers(0, VOCAB - 1)
all_params = st.builds(
    SamplingParams,
    temperature=st.none() | st.sampled_from([0.0, 0.25, 0.9, 1.0, 3.0]),
    top_k=st.none() | st.sampled_from([-1, 0, 1, 4, 20, VOCAB, 1000]),
    top_p=st.none() | st.sampled_from([0.0, 0.1, 0.55, 0.93, 1.0]),
    min_p=st.none() | st.sampled_from([0.0, 0.03, 0.4, 1.0]),
    repetition_penalty=st.none() | st.sampled_from([0.5, 1.0, 1.7]),
    presence_penalty=st.none() | st.sampled_from([-2.0, 0.0, 1.1]),
    frequency_penalty=st.none() | st.sampled_from([-0.7, 0.0, 0.6]),
    min_tokens=st.none() | st.integers(0, 6),
    logit_bias=st.dictionaries(tokens, st.floats(-20, 20, width=32), max_size=3).map(
        lambda biases: tuple(LogitBias(*item) for item in biases.items())
    ),
    bad_words_token_ids=st.lists(
        st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=3, unique=True
    ).map(tuple),
    allowed_token_ids=st.just(()) | st.sets(tokens, min_size=8).map(tuple),
)


@settings(max_examples=250, deadline=None)
@given(
    params=all_params,
    prompt=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    output=st.lists(st.integers(0, 4), max_size=9),
    seed=st.integers(0, 2**31),
)
def test_support_and_probabilities_are_those_of_transformers(params, prompt, output, seed):
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    sampling, wants = inputs_of([sequence(prompt, output, params)])

    scores = our_scores(logits[None], sampling)[0]

    expected = expected_scores(logits, prompt, output, params)
    if params.temperature == 0:
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        return
    assert torch.equal(scores.isfinite(), expected.isfinite())
    ours = (scores / (params.temperature or 1.0)).softmax(-1)
    torch.testing.assert_close(ours, expected.softmax(-1), rtol=0, atol=1e-5)
    if wants == NOTHING:
        assert torch.equal(scores, logits)


@pytest.mark.parametrize("num_rows", [256])
def test_a_batch_of_different_parameters_equals_batches_of_one(num_rows):
    choose = torch.Generator().manual_seed(5)

    def pick(*values):
        return values[int(torch.randint(len(values), (1,), generator=choose))]

    sequences = []
    for index in range(num_rows):
        params = SamplingParams(
            temperature=pick(0.0, 0.7, 1.0, 2.0),
            top_k=pick(None, 0, 3, 12),
            top_p=pick(None, 0.4, 0.95),
            min_p=pick(None, 0.1),
            repetition_penalty=pick(None, 1.3),
            frequency_penalty=pick(None, 0.5),
            sample_index=pick(None, 1, 9),
            min_tokens=pick(None, 4),
            logit_bias=pick((), (LogitBias(index % VOCAB, 5.0),)),
            allowed_token_ids=pick((), (1, 2, 3, 30)),
            logprobs=pick(None, None, 0, 3),
        )
        output = [int(x) for x in torch.randint(VOCAB, (index % 7,), generator=choose)]
        sequences.append(sequence([index % VOCAB, 3], output, params))
    logits = torch.randn(num_rows, VOCAB, generator=choose) * 3
    vocabulary = Vocabulary(VOCAB, range(VOCAB))

    together = sample_tokens(logits, *inputs_of(sequences), vocabulary, ALONE)

    for row, alone in enumerate(sequences):
        sampling, wants = inputs_of([alone])
        sampled = sample_tokens(logits[row : row + 1], sampling, wants, vocabulary, ALONE)
        assert sampled.token_ids[0] == together.token_ids[row]
        if sampled.logprobs is not None:
            width = wants.num_top
            assert torch.equal(sampled.logprobs.of_tokens[0], together.logprobs.of_tokens[row])
            tops = together.logprobs.top_token_ids[row, :width]
            assert torch.equal(sampled.logprobs.top_token_ids[0], tops)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), NOTHING),
        (SamplingParams(top_k=-1, top_p=1.0, min_p=0.0, repetition_penalty=1.0), NOTHING),
        (SamplingParams(top_k=VOCAB), NOTHING),
        (SamplingParams(temperature=0.0, top_k=5), NOTHING),
        (SamplingParams(top_k=5), Wants(thresholds=True)),
        (SamplingParams(min_p=0.1), Wants(thresholds=True)),
        (SamplingParams(presence_penalty=0.1), Wants(edits=True)),
        (SamplingParams(min_tokens=2), Wants(edits=True)),
        (SamplingParams(allowed_token_ids=(1,)), Wants(edits=True)),
        (SamplingParams(logprobs=0), Wants(num_top=0)),
        (SamplingParams(logprobs=5), Wants(num_top=8)),
        (SamplingParams(logprobs=100), Wants(num_top=VOCAB)),
    ],
)
def test_neutral_values_ask_nothing_of_the_sampler(params, expected):
    _, wants = inputs_of([sequence([1], [], params)])
    assert wants == expected


def test_draws_follow_the_kept_probabilities():
    """Chi-square of 20,000 draws against the distribution that transformers' processors give."""
    num_draws = 20_000
    params = SamplingParams(temperature=1.3, top_k=9, top_p=0.9, repetition_penalty=1.4)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2)) * 2
    sampling, _ = inputs_of([sequence([1, 2], [3, 3], params)])
    sampling.records[0, RECORD_COLUMNS["seed"]] = 11
    records = sampling.records[:1].repeat(num_draws, 1)
    records[:, RECORD_COLUMNS["sample_index"]] = torch.arange(num_draws)
    slots = torch.arange(num_draws)
    shaped = our_scores(logits[None], sampling).expand(num_draws, -1)
    positions = sampling.positions.repeat(num_draws)

    drawn = sample(shaped, records, slots, positions, RECORD_COLUMNS)

    probabilities = expected_scores(logits, [1, 2], [3, 3], params).double().softmax(-1)
    kept = probabilities > 0
    counts = torch.bincount(drawn, minlength=VOCAB).double()
    assert counts[~kept].sum() == 0
    wanted = probabilities[kept] * num_draws
    chi_square = float(((counts[kept] - wanted) ** 2 / wanted).sum())
    # 99.9 % of chi-square with at most 8 degrees of freedom is below 26.2.
    assert 2 < int(kept.sum()) <= 9
    assert chi_square < 26.2
