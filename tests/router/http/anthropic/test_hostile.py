"""Values of wrong kinds anywhere in a request of Anthropic's API, and answers in odd pieces."""

import copy
import json
from types import SimpleNamespace

import jsonschema
import pytest
from starlette.requests import Request

from router.errors import InvalidRequest
from router.http.anthropic.endpoints import to_generation_request
from router.http.anthropic.message import MessageReader
from router.http.anthropic.request import MessagesRequest
from router.http.anthropic.writer import MessageWriter
from router.http.body import parse_body
from router.request.limits import check_request
from router.request.parameters import check_parameters
from router.types.engine_events import FinishReason
from router.types.generation import Admission, Finish, GenerationDelta, ToolCallDelta
from tests.fakes.fake_fleet import ALL_PARAMS, ENGINE, model_info
from tests.router.http.anthropic.requests import TOOL

CACHE = {"type": "ephemeral", "ttl": "5m"}
CALL = {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}, "caller": None}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a"}]}
FULL = {
    "model": "small",
    "max_tokens": 5,
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": CACHE}]},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "b", "signature": ""}, CALL],
        },
        {"role": "user", "content": [{**RESULT, "is_error": True}]},
        {"role": "system", "content": "Stop."},
    ],
    "system": [{"type": "text", "text": "Be nice."}],
    "tools": [{**TOOL, "type": "custom", "input_examples": [{"city": "a"}], "strict": False}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 5, "display": "omitted"},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["a"],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "metadata": {"user_id": "a"},
    "service_tier": "auto",
    "cache_control": CACHE,
}
DEEP = json.loads('{"a":' * 150 + "1" + "}" * 150)
VALUES = [
    *(None, True, 0, -1, 1.5, 2**31, 2**63, 10**4000, 1e300, float("nan"), float("inf")),
    *("", "x", "\ud7ff\U0010ffff\0", "y" * 3000, [], {}, [[]], [None], {"type": None}, {"": 1}),
    DEEP,
]
MODEL = model_info(max_model_len=100, supported_params=ALL_PARAMS)


def places(value, path=()):
    """Yields the paths of all that a value holds."""
    yield path
    steps = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for step in steps:
        yield from places(value[step], (*path, step))


def with_value(path, value):
    """Returns the request with another value at a path."""
    body = {"": copy.deepcopy(FULL)}
    *steps, last = ("", *path)
    place = body
    for step in steps:
        place = place[step]
    place[last] = value
    return body[""]


def check(body):
    """Does all that is done before tokenization."""
    fields = parse_body(MessagesRequest, json.dumps(body).encode())
    outlet = SimpleNamespace(caller=None, request_id="1")
    http = Request({"type": "http", "headers": [], "extensions": {"pagestream.outlet": outlet}})
    generation = to_generation_request(fields, http, 1)
    check_request(generation, MODEL, 10_000)
    check_parameters(generation, MODEL)


def test_full_request_is_served():
    check(FULL)


@pytest.fixture(scope="module")
def validator():
    schema = MessagesRequest.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("place", ["messages", "system", "tools", "tool_choice", "thinking"])
def test_schema_of_requests_describes_them(validator, place):
    validator.validate(FULL)
    validator.validate({**FULL, "system": "a", "thinking": None})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**FULL, place: [{"type": "other"}]})


@pytest.mark.parametrize("path", list(places(FULL)), ids=lambda path: "-".join(map(str, path)))
def test_any_value_anywhere_is_served_or_refused(path):
    messages = []
    for value in VALUES:
        try:
            check(with_value(path, value))
        except InvalidRequest as error:
            messages.append(error.status.message)
    assert messages
    assert max(map(len, messages)) < 1000
    assert all(map(str.isprintable, messages))


ADMISSION = Admission(
    request_id="1", model="m", engine=ENGINE, num_prompt_tokens=9, num_cached_tokens=4, seed=1
)


def call(index, arguments="", name=""):
    return ToolCallDelta(
        index=index, call_id=f"id{index}" if name else "", name=name, arguments=arguments
    )


ODD = [
    GenerationDelta(admission=ADMISSION),
    GenerationDelta(),
    GenerationDelta(reasoning="r1"),
    GenerationDelta(reasoning="r2", text="t1", tool_calls=(call(0, '{"a"', "f"), call(0, ": 1"))),
    GenerationDelta(text="t2", tool_calls=(call(0, "}"), call(1, "{}", "g"), call(2, "{", "h"))),
    GenerationDelta(tool_calls=(call(2, "}"),)),
    GenerationDelta(text="t3"),
    GenerationDelta(text="t4"),
    GenerationDelta(
        text="t5",
        finish=Finish(
            reason=FinishReason.TOOL_CALLS,
            stop_token_id=None,
            num_prompt_tokens=9,
            num_completion_tokens=20,
        ),
    ),
]
BLOCKS = [
    {"type": "thinking", "thinking": "r1r2", "signature": ""},
    {"type": "text", "text": "t1"},
    {"type": "tool_use", "id": "id0", "name": "f", "input": {"a": 1}},
    {"type": "text", "text": "t2"},
    {"type": "tool_use", "id": "id1", "name": "g", "input": {}},
    {"type": "tool_use", "id": "id2", "name": "h", "input": {}},
    {"type": "text", "text": "t3t4t5"},
]


def test_pieces_of_several_blocks_in_one_delta_keep_their_order():
    reader = MessageReader(max_tokens=20, shows_thinking=True)
    for delta in ODD:
        reader.read(delta)

    assert reader.message()["content"] == BLOCKS


def test_blocks_of_a_stream_are_those_of_the_whole_message():
    writer = MessageWriter(max_tokens=20, shows_thinking=True)
    written = [writer.delta(delta) for delta in ODD]
    stream = b"".join([writer.begin(), *written, writer.end()]).decode()
    events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: ")]

    blocks, is_open = [], False
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    for event in events[2:-2]:
        kind = event["type"]
        if kind == "content_block_start":
            assert (event["index"], is_open) == (len(blocks), False)
            blocks.append((event["content_block"], []))
            is_open = True
            continue
        assert (event["index"], is_open) == (len(blocks) - 1, True)
        if kind == "content_block_stop":
            is_open = False
        else:
            delta = event["delta"]
            blocks[-1][1].extend(delta[name] for name in delta if name != "type")
    assert not is_open
    contents = ["".join(texts) for _, texts in blocks]
    assert contents == ["r1r2", "t1", '{"a": 1}', "t2", "{}", "{}", "t3t4t5"]
    assert [block["type"] for block, _ in blocks] == [block["type"] for block in BLOCKS]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
