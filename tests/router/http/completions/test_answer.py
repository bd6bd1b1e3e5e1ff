"""Answers of completions to deltas in any order."""

import json
from array import array

from router.http.completions.answer import (
    CompletionAnswer,
    CompletionForm,
    CompletionStream,
)
from router.types.engine_events import FinishReason, TokenLogprobs
from router.types.generation import Admission, Finish, GenerationDelta, ScoredTokens

TEXTS = {
    1: ("a", b"a"),
    2: ("b", b"b"),
    3: ("\ufffd", b"\xff"),
    4: ("\ufffd", b"\xfe"),
    5: ("", b""),
}
FINISH = Finish(
    reason=FinishReason.STOP, stop_token_id=None, num_prompt_tokens=2, num_completion_tokens=1
)


def form(**changes) -> CompletionForm:
    values = {
        "completion_id": "cmpl-x",
        "created": 1,
        "model": "small",
        "fingerprint": "",
        "n": 1,
        "texts": [""],
    }
    return CompletionForm(**{**values, **changes})


def scored(token_ids, logprobs, top=()) -> ScoredTokens:
    return ScoredTokens(
        token_ids=token_ids,
        logprobs=TokenLogprobs(
            logprobs=logprobs,
            top_token_ids=[token_id for token_id, _ in top],
            top_logprobs=[logprob for _, logprob in top],
        ),
        texts=TEXTS,
    )


def parts(content: bytes):
    events = [event for event in content.split(b"\n\n") if event]
    return [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]


def test_choice_that_is_first_waits_for_the_echo_of_its_prompt():
    admission = Admission(
        request_id="x",
        model="small",
        engine="",
        num_prompt_tokens=2,
        num_cached_tokens=0,
        seed=1,
        prompt_token_ids=array("i", [1, 2]),
    )
    stream = CompletionStream(form(n=2, texts=["ab"], echoes=True, num_logprobs=0))
    early = GenerationDelta(
        index=1, text="c", token_ids=(1,), logprobs=scored([1], [-0.5]), finish=FINISH
    )

    assert stream.delta(GenerationDelta(index=1, admission=admission)) == b""
    assert stream.delta(early) == b""
    assert stream.delta(GenerationDelta(index=0, admission=admission)) == b""
    opened = parts(stream.delta(GenerationDelta(index=0, prompt_logprobs=scored([2], [-0.25]))))

    assert [(part["index"], part["text"]) for part in opened] == [(0, "ab"), (1, "ab"), (1, "c")]
    assert opened[0]["logprobs"] == opened[1]["logprobs"]
    assert opened[0]["logprobs"]["token_logprobs"] == [None, -0.25]
    assert opened[2]["logprobs"]["text_offset"] == [2]
    assert opened[2]["finish_reason"] == "stop"


def test_impossible_token_has_a_number_and_tokens_of_one_text_the_higher_one():
    answer = CompletionAnswer(form(num_logprobs=2))
    tops = [(3, -1.0), (4, -2.0), (1, -0.5), (5, float("-inf"))]
    answer.read(
        GenerationDelta(
            token_ids=(4, 2),
            text="\ufffdb",
            logprobs=scored([4, 2], [-2.0, float("-inf")], tops),
            finish=FINISH,
        )
    )

    [choice] = json.loads(answer.to_json())["choices"]
    assert choice["logprobs"] == {
        "tokens": ["\ufffd", "b"],
        "token_logprobs": [-2.0, -9999.0],
        "top_logprobs": [{"\ufffd": -1.0}, {"a": -0.5, "token_id:5": -9999.0, "b": -9999.0}],
        "text_offset": [0, 1],
    }


def test_text_with_ends_of_lines_stays_one_event():
    content = CompletionStream(form()).delta(GenerationDelta(text='"\n\r\x85\u2028\u2029\0é'))

    assert len(content.decode().splitlines()) == 2
    assert parts(content)[0]["text"] == '"\n\r\x85\u2028\u2029\0é'
