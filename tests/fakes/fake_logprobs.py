"""Logprobs that fake engines report: functions of position and token, so that any disorder shows.

All are exact in float32.
"""

from collections.abc import Sequence

from router.types import TokenLogprobs


def expected_logprobs(
    first_position: int, token_ids: Sequence[int], num_top: int, vocab_size: int = 1000
) -> TokenLogprobs:
    """Returns the logprobs of tokens that follow each other from a position of the sequence on."""
    num_top = min(num_top, vocab_size)
    positions = range(first_position, first_position + len(token_ids))
    return TokenLogprobs(
        logprobs=[
            -1 - (31 * position + token_id) % 512 / 64
            for position, token_id in zip(positions, token_ids, strict=True)
        ],
        top_token_ids=[
            (17 * position + rank) % vocab_size for position in positions for rank in range(num_top)
        ],
        top_logprobs=[
            -(position % 8 + rank) / 64 for position in positions for rank in range(num_top)
        ],
    )


def as_lists(logprobs: TokenLogprobs) -> TokenLogprobs:
    """Returns logprobs that were received, comparable to those expected."""
    return TokenLogprobs(
        logprobs=list(logprobs.logprobs),
        top_token_ids=list(logprobs.top_token_ids),
        top_logprobs=list(logprobs.top_logprobs),
    )
