"""Logprobs of real streams of engines, as clients get them."""

from protos.wire.sampling_params import SamplingParams
from router.request.pipeline import Bounds, Pipeline
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import FinishReason
from tests.fakes.fake_engine import expected_tokens
from tests.fakes.fake_logprobs import expected_logprobs
from tests.router.fleets import CONFIG, fleet_of
from tests.router.pipelines import Recorder, collect, request, tokens

PROMPT = [*range(40)]
BOUNDS = Bounds(
    max_concurrent_requests=8,
    max_prompt_bytes=1000,
    max_request_bytes=1000,
    max_queued_prompt_tokens=1000,
)


async def ask(*, n=None, **params):
    async with fleet_of(CONFIG, CONFIG) as (fleet, _):
        with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
            pipeline = Pipeline(fleet, tokenizers, Recorder(), BOUNDS)
            params = SamplingParams(**{"temperature": 0.0, **params})
            asked = request(tokens(*PROMPT), model="fake", n=n, sampling_params=params)
            return await collect(pipeline, asked)


def flat(deltas, field):
    """Returns IDs, logprobs and likeliest tokens of all deltas in one."""
    scored = [part for delta in deltas if (part := getattr(delta, field)) is not None]
    return (
        [token_id for part in scored for token_id in part.token_ids],
        [logprob for part in scored for logprob in part.logprobs.logprobs],
        [token_id for part in scored for token_id in part.logprobs.top_token_ids],
    )


async def test_prompt_is_scored_without_a_token():
    deltas = await ask(max_tokens=0, prompt_logprobs=2)

    expected = expected_logprobs(PROMPT[:1], PROMPT[1:], 2)
    assert flat(deltas, "prompt_logprobs") == (
        PROMPT[1:],
        list(expected.logprobs),
        list(expected.top_token_ids),
    )
    assert deltas[-1].finish.reason is FinishReason.LENGTH
    assert deltas[-1].finish.num_completion_tokens == 0


async def test_continuations_have_logprobs_of_their_own_and_the_first_those_of_the_prompt():
    deltas = await ask(n=3, max_tokens=5, logprobs=1, prompt_logprobs=0)

    token_ids = expected_tokens(PROMPT, 5)
    expected = expected_logprobs(PROMPT, token_ids, 1)
    for index in range(3):
        own = [delta for delta in deltas if delta.index == index]
        assert flat(own, "logprobs") == (
            token_ids,
            list(expected.logprobs),
            list(expected.top_token_ids),
        )
        assert flat(own, "prompt_logprobs")[0] == (PROMPT[1:] if index == 0 else [])
        assert own[0].admission.num_prompt_tokens == len(PROMPT)


async def test_model_without_a_tokenizer_has_candidates_without_text():
    deltas = await ask(max_tokens=1, logprobs=3)

    (scored,) = (delta.logprobs for delta in deltas if delta.logprobs)
    assert {scored.texts[token_id] for token_id in scored.logprobs.top_token_ids} == {("", b"")}
