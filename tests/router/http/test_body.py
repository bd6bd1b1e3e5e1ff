"""Bodies that are bounded before they become objects."""

import json

import pytest

from router.errors import InvalidRequest
from router.http.body import _MAX_CONTAINERS, parse_body
from router.http.chat.endpoint import ChatFields


def body(metadata, text="hello"):
    messages = [{"role": "user", "content": text}]
    return json.dumps({"messages": messages, "metadata": metadata}).encode()


@pytest.mark.parametrize("value", [[], {}], ids=["lists", "objects"])
def test_more_lists_and_objects_than_the_bound_are_refused(value):
    # The body, its messages, the message, the metadata and the list are some of them.
    parse_body(ChatFields, body({"a": [value] * (_MAX_CONTAINERS - 5)}))
    with pytest.raises(InvalidRequest) as caught:
        parse_body(ChatFields, body({"a": [value] * (_MAX_CONTAINERS - 4)}))

    assert caught.value.message == "the body has 100001 lists and objects, outside 0 to 100000"
    assert caught.value.metadata["field"] == "body"


def test_brackets_in_a_text_are_no_lists():
    text = '[{"\\' * _MAX_CONTAINERS

    assert parse_body(ChatFields, body({}, text)).messages[0].content == text


def test_text_that_does_not_end_is_no_json():
    content = body({})[:-2] + b'"' + b"[" * (_MAX_CONTAINERS + 1)

    with pytest.raises(InvalidRequest, match="no JSON object"):
        parse_body(ChatFields, content)
