"""Chat completions over HTTP: the forms of answers, whole and streamed."""

import json
from itertools import groupby

import pytest

from router.errors import EngineError, QueueFull
from router.types.engine_events import (
    Admitted,
    Finished,
    FinishReason,
    PromptLogprobs,
    TokenLogprobs,
    Tokens,
)
from tests.fakes.fake_fleet import ENGINE
from tests.router.http.chat.chats import CALL, SECOND_CALL, TOOLS, ask, chunks, whole
from tests.router.http.served_fleet import say
from tests.router.pipelines import TOKENIZER

pytestmark = pytest.mark.asyncio(loop_scope="module")
ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=16, seed=7)
SHORT, LONG = (TOKENIZER.encode_text(text).tolist() for text in ("a", "Grüße"))
STOPPED = Finished(reason=FinishReason.STOP, stop_token_id=1)


async def stream(fleet, **fields):
    answer = await ask(fleet, stream=True, **fields)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return chunks(answer.text)


async def test_whole_answer_has_the_form_of_openai(fleet):
    say(fleet, "Grüße \x00😀")

    answer = await whole(fleet, model="small", request_id="mine")

    assert answer.pop("created") > 0
    num_prompt = len(fleet.requests[0].prompt_token_ids)
    num_new = len(TOKENIZER.encode_text("Grüße \x00😀")) + 1
    assert answer == {
        "id": "chatcmpl-mine",
        "object": "chat.completion",
        "model": "small",
        "system_fingerprint": "fp_" + "f" * 16,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Grüße \x00😀", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_new,
            "total_tokens": num_prompt + num_new,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
    }


async def test_stream_has_a_role_first_then_the_text_then_the_reason(fleet):
    fleet.answer(LONG, SHORT)

    first, *middle, last = await stream(fleet)

    assert first.keys() == {
        "id", "object", "created", "model", "system_fingerprint", "choices"
    }  # fmt: skip
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert [chunk["choices"][0]["delta"] for chunk in middle] == [
        {"content": "Grüße"},
        {"content": "a"},
    ]
    assert last["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    shared = [{**chunk, "choices": None} for chunk in (first, *middle, last)]
    assert shared == [shared[0]] * 4


async def test_stream_ends_with_the_usage_if_it_is_asked_for(fleet):
    fleet.answer(LONG, SHORT)

    *before, last = await stream(fleet, stream_options={"include_usage": True})

    num_prompt, num_new = len(fleet.requests[0].prompt_token_ids), len(LONG + SHORT)
    assert [chunk["usage"] for chunk in before] == [None] * 4
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
        "prompt_tokens_details": {"cached_tokens": 16},
    }


async def test_usage_so_far_comes_with_each_chunk_if_it_is_asked_for(fleet):
    fleet.answer(LONG, SHORT)

    options = {"include_usage": True, "continuous_usage_stats": True}
    usages = [chunk["usage"] for chunk in await stream(fleet, stream_options=options)]

    num_new = len(LONG + SHORT)
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == [0, len(LONG), num_new, num_new, num_new]


async def test_cached_tokens_are_told_also_if_there_are_none(fleet):
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=7), Tokens(token_ids=SHORT))
    fleet.put(STOPPED)

    usage = (await whole(fleet))["usage"]

    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_text_with_line_ends_of_any_kind_stays_one_line_of_the_stream(fleet):
    text = 'a\n\r\x85\u2028\u2029\x0b\x0c\x1c"\\b'
    say(fleet, text)

    answer = await ask(fleet, stream=True)

    content = [c["choices"][0]["delta"].get("content", "") for c in chunks(answer.text)]
    assert "".join(content) == text
    assert all(line == "" or line.startswith("data: ") for line in answer.text.splitlines())


async def test_reasoning_and_calls_come_in_fields_of_their_own(tool_fleet):
    say(tool_fleet, f"<think>\nhm\n</think>\n\nI call.\n{CALL}{SECOND_CALL}")

    [choice] = (await whole(tool_fleet, tools=TOOLS))["choices"]

    message = choice["message"]
    assert (message["reasoning"], message["reasoning_content"]) == ("hm", "hm")
    assert message["content"] == "I call."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"x": "é😀"}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert all(call["type"] == "function" for call in message["tool_calls"])
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"


async def test_answer_of_calls_only_has_no_content(tool_fleet):
    say(tool_fleet, CALL)

    [choice] = (await whole(tool_fleet, tools=TOOLS))["choices"]

    assert choice["message"]["content"] is None
    assert "reasoning" not in choice["message"]


async def test_calls_are_streamed_in_pieces(tool_fleet):
    say(tool_fleet, f"<think>\nhm\n</think>\n\n{CALL}{SECOND_CALL}")

    deltas = [chunk["choices"][0]["delta"] for chunk in await stream(tool_fleet, tools=TOOLS)]

    assert "".join(delta.get("reasoning", "") for delta in deltas) == "hm"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
    for number, pieces_of_one in groupby(pieces, lambda piece: piece["index"]):
        first, *rest = pieces_of_one
        assert first["id"].startswith("call_")
        assert first["type"] == "function"
        assert first["function"]["name"] == "fg"[number]
        assert all(piece.keys() == {"index", "function"} for piece in rest)
        arguments = "".join(piece["function"]["arguments"] for piece in (first, *rest))
        assert json.loads(arguments) == [{"x": "é😀"}, {}][number]
    assert pieces[-1]["index"] == 1
    assert sum("tool_calls" in delta for delta in deltas) > 4, "as they come"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_one_call_is_left_if_no_more_are_wanted(is_streamed, tool_fleet):
    say(tool_fleet, CALL + SECOND_CALL)

    answer = await ask(tool_fleet, tools=TOOLS, parallel_tool_calls=False, stream=is_streamed)

    assert '"name":"f"' in answer.text
    assert '"name":"g"' not in answer.text
    assert '"finish_reason":"tool_calls"' in answer.text


async def test_call_that_must_be_alone_is_one_by_its_grammar(tool_fleet):
    for parallel in (True, False):
        say(tool_fleet, CALL)
        await ask(tool_fleet, tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel)

    several, alone = (request.sampling_params.grammar.text for request in tool_fleet.requests)
    assert "call)*" in several
    assert "call)*" not in alone


def logprobs(*values, top_ids=(), top=()):
    return TokenLogprobs(logprobs=values, top_token_ids=top_ids, top_logprobs=top)


def put_scored(fleet):
    scored = logprobs(-0.5, top_ids=(*SHORT, 2), top=(-0.5, float("-inf")))
    fleet.put(ADMITTED, Tokens(token_ids=SHORT, logprobs=scored))
    # Half of a character, which becomes text with the other half.
    for token_id in TOKENIZER.encode_text("字").tolist():
        top = logprobs(float("nan"), top_ids=SHORT + SHORT, top=(-1, -2))
        fleet.put(Tokens(token_ids=[token_id], logprobs=top))
    fleet.put(STOPPED)


async def test_logprobs_have_texts_and_bytes_and_stay_numbers(fleet):
    put_scored(fleet)

    [choice] = (await whole(fleet, logprobs=True, top_logprobs=2))["choices"]

    first, *others = choice["logprobs"]["content"]
    special = TOKENIZER.token_texts[2]
    assert first == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": special[0], "logprob": -9999.0, "bytes": list(special[1])},
        ],
    }
    assert [entry["logprob"] for entry in others] == [-9999.0] * len(others)
    raw = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
    assert raw.decode() == choice["message"]["content"] == "a字"
    assert choice["logprobs"]["refusal"] is None
    assert fleet.requests[0].sampling_params.logprobs == 2


async def test_logprobs_of_a_stream_are_those_of_the_whole_answer(fleet):
    put_scored(fleet)
    put_scored(fleet)

    [choice] = (await whole(fleet, logprobs=True, top_logprobs=2))["choices"]
    parts = [chunk["choices"][0] for chunk in await stream(fleet, logprobs=True, top_logprobs=2)]

    entries = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
    assert entries == choice["logprobs"]["content"]
    assert all("content" in part["delta"] for part in parts if part["logprobs"])


async def test_logprobs_without_candidates_are_those_of_the_tokens(fleet):
    fleet.put(ADMITTED, Tokens(token_ids=SHORT, logprobs=logprobs(-1)), STOPPED)

    [choice] = (await whole(fleet, logprobs=True))["choices"]

    assert choice["logprobs"]["content"] == [
        {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
    ]


async def test_prompt_logprobs_have_the_form_of_vllm(fleet):
    fleet.put(ADMITTED)
    fleet.put(PromptLogprobs(first_position=1, logprobs=logprobs(-1, top_ids=[97], top=[-0.5])))
    fleet.put(STOPPED)

    answer = await whole(fleet, prompt_logprobs=1)

    token_id = fleet.requests[0].prompt_token_ids[1]
    likeliest, given = (TOKENIZER.token_texts[one][0] for one in (97, token_id))
    assert answer["prompt_logprobs"] == [
        None,
        {
            "97": {"logprob": -0.5, "rank": 1, "decoded_token": likeliest},
            str(token_id): {"logprob": -1.0, "rank": None, "decoded_token": given},
        },
    ]


async def test_tokens_are_told_if_they_are_asked_for(fleet):
    # The last token of two is no text.
    for _ in range(2):
        fleet.answer(LONG, SHORT, [1], stop_token_id=1)

    answer = await whole(fleet, return_token_ids=True)
    first, *others = await stream(fleet, return_token_ids=True)

    prompt = list(fleet.requests[0].prompt_token_ids)
    assert answer["prompt_token_ids"] == first["prompt_token_ids"] == prompt
    assert answer["choices"][0]["token_ids"] == [*LONG, *SHORT, 1]
    assert all("prompt_token_ids" not in chunk for chunk in others)
    parts = [chunk["choices"][0].get("token_ids", []) for chunk in others]
    assert parts == [LONG, SHORT, [1], []]


async def test_choices_are_told_apart_and_counted_together(fleet):
    for _ in range(2):
        for index, token_ids in enumerate((SHORT, LONG)):
            fleet.answer(token_ids, index=index)

    answer = await whole(fleet, n=2)
    events = await stream(fleet, n=2, stream_options={"include_usage": True})

    contents = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert contents == ["a", "Grüße"]
    assert answer["usage"]["completion_tokens"] == len(SHORT + LONG)
    assert answer["usage"] == events.pop()["usage"]
    for index, content in enumerate(contents):
        own = [c["choices"][0] for c in events if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(part["delta"].get("content", "") for part in own) == content
        assert own[-1]["finish_reason"] == "length"


async def test_stop_text_ends_the_answer_without_it(fleet):
    say(fleet, "one, two")

    parts = [chunk["choices"][0] for chunk in await stream(fleet, stop=", t")]

    assert "".join(part["delta"].get("content", "") for part in parts) == "one"
    assert parts[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_error_before_the_first_output_is_the_status(is_streamed, fleet):
    fleet.put(QueueFull("all engines are busy", retry_after=2.5))

    answer = await fleet.post(stream=is_streamed)

    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json() == {
        "error": {
            "message": "all engines are busy",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
    }


async def test_error_in_the_middle_of_a_stream_ends_it_without_the_usual_end(fleet):
    lost = QueueFull("the engine is gone").status
    fleet.put(ADMITTED, Tokens(token_ids=SHORT), EngineError(lost))

    answer = await ask(fleet, stream=True)

    *_, last, rest = answer.text.split("\n\n")
    assert rest == ""
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the engine is gone"
