"""Why a step yielded no token for a sequence: its request, its grammar, or the model."""

from typing import TYPE_CHECKING

from engine_service.core.sequence import Sequence
from engine_service.core.types import GrammarFailure, StepResult
from engine_service.errors import RequestError, grammar_failed, nothing_allowed, resume_mismatch

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORBIDDING_PARAMS = ("grammar", "allowed_token_ids", "bad_words_token_ids", "min_tokens")
"""Two of these may leave no token, each of them some."""


def why_missing(
    sequence: Sequence, result: StepResult, row: int, vocab_size: int
) -> RequestError | None:
    """Returns the error of a sequence that got `NO_TOKEN`; None if its logits are to blame.

    Args:
        sequence: It, with the tokens before the missing one.
        result: What the step yielded.
        row: The sequence's row.
        vocab_size: The number of tokens there are.
    """
    failure = result.grammar_failures.get(row)
    if failure is not None:
        return _grammar_error(sequence, failure)
    params = sequence.request.sampling_params
    forbidding = [name for name in _FORBIDDING_PARAMS if getattr(params, name)]
    by_grammar = result.grammar_token_ids.get(row)
    if len(forbidding) < 2 or _is_any_allowed(sequence, by_grammar, vocab_size):
        return None
    return nothing_allowed(len(sequence.token_ids), forbidding)


def _grammar_error(sequence: Sequence, failure: GrammarFailure) -> RequestError:
    index = failure.mismatch_index
    resumed = sequence.request.resume_token_ids
    if index is None or index >= len(resumed):
        return grammar_failed(len(sequence.token_ids), failure.why)
    grammar = sequence.request.sampling_params.grammar
    assert grammar is not None, f"{sequence.request_id=} has no grammar"
    return resume_mismatch(index, resumed[index], grammar.form)


def _is_any_allowed(
    sequence: Sequence, by_grammar: "Iterable[int] | None", vocab_size: int
) -> bool:
    """Returns whether the parameters leave a token, as the sampler understands them."""
    params = sequence.request.sampling_params
    choices: Iterable[int] = range(vocab_size) if by_grammar is None else by_grammar
    if params.allowed_token_ids:
        choices = set(params.allowed_token_ids).intersection(choices)
    output = sequence.token_ids[sequence.num_prompt_tokens :].tolist()
    banned = {
        last
        for *before, last in params.bad_words_token_ids
        if before == output[len(output) - len(before) :]
    }
    if len(output) < (params.min_tokens or 0):
        banned |= sequence.stop_token_ids
    return any(token_id not in banned for token_id in choices)
