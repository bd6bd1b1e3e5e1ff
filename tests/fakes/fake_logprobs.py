"""Logprobs for tests of the router: made up ones, and those that a fake engine reports."""

from collections.abc import Sequence

from protos.pagestream.engine.v1 import engine_pb2
from router.types.engine_events import TokenLogprobs
from tests.fakes.hash_executor import TokenStream

_VOCAB_SIZE = 1000


def made_up_logprobs(
    first_position: int, token_ids: Sequence[int], num_top: int, vocab_size: int = _VOCAB_SIZE
) -> TokenLogprobs:
    """Returns logprobs of tokens from a position on, so that any disorder shows.

    All are exact in float32.
    """
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


def expected_logprobs(
    known_token_ids: Sequence[int], token_ids: Sequence[int], num_top: int, seed: int = 0
) -> TokenLogprobs:
    """Returns what a fake engine reports of tokens that follow others.

    Args:
        known_token_ids: The tokens before them.
        token_ids: The tokens.
        num_top: Candidates at each position.
        seed: 0 at temperature 0, and for tokens of a prompt.
    """
    stream = TokenStream(seed, known_token_ids)
    rows = []
    for token_id in token_ids:
        rows.append(stream.logprobs(token_id, num_top, _VOCAB_SIZE))
        stream.append(token_id)
    return TokenLogprobs(
        logprobs=[own for own, _, _ in rows],
        top_token_ids=[candidate for _, candidates, _ in rows for candidate in candidates],
        top_logprobs=[logprob for _, _, logprobs in rows for logprob in logprobs],
    )


def as_message(logprobs: TokenLogprobs) -> engine_pb2.Logprobs:
    """Returns logprobs as an engine sends them."""
    return engine_pb2.Logprobs(
        logprobs=logprobs.logprobs,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def as_lists(logprobs: TokenLogprobs) -> TokenLogprobs:
    """Returns logprobs that were received, comparable to those expected."""
    return TokenLogprobs(
        logprobs=list(logprobs.logprobs),
        top_token_ids=list(logprobs.top_token_ids),
        top_logprobs=list(logprobs.top_logprobs),
    )
