"""What an engine sends at once reaches the client in one message."""

from dataclasses import replace

import pytest

from protos.wire.sampling_params import SamplingParams
from router.types.engine_events import (
    Admitted,
    Finished,
    FinishReason,
    PromptLogprobs,
    TokenLogprobs,
    Tokens,
)
from router.types.generation import GenerationDelta, ToolCallDelta
from tests.fakes.fake_fleet import ALL_PARAMS, ENGINE
from tests.router.pipelines import TOKENIZER, collect, fleet_without_chats, request

ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=16, seed=7)
FINISHED = Finished(reason=FinishReason.LENGTH)
IDS = TOKENIZER.encode_text("the quick brown \N{GRINNING FACE}").tolist()


@pytest.fixture
def fleet():
    return fleet_without_chats(supported_params=ALL_PARAMS, max_logprobs=5)


def told(*deltas: GenerationDelta) -> GenerationDelta:
    whole, *others = deltas
    for delta in others:
        whole = whole.joined(delta)
    return whole


def scored(token_ids, *, is_last):
    logprobs = TokenLogprobs(logprobs=[-1.0] * len(token_ids))
    return Tokens(token_ids=token_ids, logprobs=logprobs, is_last=is_last)


@pytest.mark.parametrize("stop", [(), ("brown",), ("face",)])
async def test_answer_of_one_step_is_one_message(pipeline, fleet, stop):
    apart = [ADMITTED, Tokens(token_ids=IDS), FINISHED]
    fleet.put(*apart)
    expected = await collect(pipeline, request(stop=stop))
    # A stop text found leaves the finish behind.
    while not fleet.events.empty():
        fleet.events.get_nowait()

    fleet.put(replace(ADMITTED, is_followed=True), Tokens(token_ids=IDS, is_last=True), FINISHED)
    (delta,) = await collect(pipeline, request(stop=stop))

    assert len(expected) > 1
    assert delta == told(*expected)
    assert delta.admission is not None
    assert delta.finish is not None
    assert fleet.num_open == 0


async def test_last_tokens_come_with_the_finish_and_their_logprobs(pipeline, fleet):
    params = SamplingParams(logprobs=0, prompt_logprobs=0)
    of_prompt = PromptLogprobs(first_position=1, logprobs=TokenLogprobs(logprobs=[-2.0] * 3))
    fleet.put(
        replace(ADMITTED, is_followed=True),
        of_prompt,
        scored(IDS[:2], is_last=False),
        scored(IDS[2:], is_last=True),
        FINISHED,
    )

    first, middle, last = await collect(pipeline, request(sampling_params=params))

    assert first.admission is not None
    assert first.prompt_logprobs.logprobs.logprobs == [-2.0] * 3
    assert (middle.token_ids, middle.finish) == (tuple(IDS[:2]), None)
    assert last.token_ids == tuple(IDS[2:])
    assert len(last.logprobs.logprobs.logprobs) == len(IDS) - 2
    assert last.finish.num_completion_tokens == len(IDS)
    assert first.text + middle.text + last.text == "the quick brown \N{GRINNING FACE}"


async def test_continuations_are_not_joined_with_each_other(pipeline, fleet):
    for index in range(2):
        fleet.put(
            replace(ADMITTED, is_followed=True),
            Tokens(token_ids=IDS[:2], is_last=True),
            FINISHED,
            index=index,
        )

    deltas = await collect(pipeline, request(n=2))

    assert sorted(delta.index for delta in deltas) == [0, 1]
    assert all(delta.admission and delta.finish for delta in deltas)
    assert [delta.token_ids for delta in deltas] == [tuple(IDS[:2])] * 2


def test_joined_delta_has_all_of_both():
    calls = tuple(ToolCallDelta(index=0, arguments=text) for text in ("{", "}"))
    first = GenerationDelta(reasoning="so", tool_calls=calls[:1], index=1)
    later = GenerationDelta(reasoning=" be it", text="yes", tool_calls=calls[1:], index=1)

    assert first.joined(later) == GenerationDelta(
        reasoning="so be it", text="yes", tool_calls=calls, index=1
    )
