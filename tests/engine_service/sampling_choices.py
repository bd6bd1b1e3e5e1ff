"""Sampling parameters drawn at random: a batch then has rows that ask for all kinds of things."""

import random

from protos.wire.sampling_params import LogitBias


def random_choices(rng: random.Random, vocab_size: int) -> dict[str, object]:
    """Returns values of some parameters, all neutral or unset about as often as not."""

    def sometimes(*values):
        return rng.choice([None, None, *values])

    tokens = [rng.randrange(vocab_size) for _ in range(6)]
    return {
        "temperature": rng.choice((0.0, 0.8, 1.5)),
        "top_k": sometimes(-1, 2, 30),
        "top_p": sometimes(1.0, 0.8),
        "min_p": sometimes(0.05),
        "repetition_penalty": sometimes(1.3),
        "presence_penalty": sometimes(0.6),
        "frequency_penalty": sometimes(-0.4),
        "sample_index": sometimes(3),
        "min_tokens": sometimes(5),
        "stop_token_ids": rng.choice(((), tuple(tokens))),
        "logit_bias": rng.choice(((), tuple(LogitBias(token, 2.5) for token in set(tokens)))),
        "bad_words_token_ids": rng.choice(((), tuple((token,) for token in tokens[:3]))),
        "allowed_token_ids": rng.choice(((), (), tuple(range(0, vocab_size, 3)))),
        "logprobs": sometimes(0, 3),
    }
