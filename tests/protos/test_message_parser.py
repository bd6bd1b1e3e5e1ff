"""Messages are held to their bounds, by size or on the wire, and the two agree."""

import re
import tracemalloc
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st
from smg_grpc_proto.generated import vllm_engine_pb2

from protos.pagestream.engine.v1 import engine_pb2
from protos.pagestream.router.v1 import router_pb2 as pb
from protos.wire import field_bounds, message_parser
from protos.wire.message_parser import MAX_SURPLUS_FIELDS, SMALL_BYTES, Malformed, MessageParser
from protos.wire.wire_format import packed

PROTOS = Path(__file__).parents[2] / "protos" / "pagestream"
parse = MessageParser(pb.GenerateRequest)
PADDING = packed(3, b"x" * SMALL_BYTES)
"""A text that makes any message a large one."""


def chat(*messages: bytes) -> bytes:
    return packed(4, b"".join(packed(1, message) for message in messages))


def received_types():
    for service, sides in (
        (pb.DESCRIPTOR.services_by_name["RouterService"], ("input_type",)),
        (
            engine_pb2.DESCRIPTOR.services_by_name["EngineService"],
            ("input_type", "output_type"),
        ),
        (vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"], ("input_type",)),
    ):
        for method in service.methods:
            for side in sides:
                yield getattr(method, side)


def received_fields(descriptor):
    for field in descriptor.fields:
        yield field
        if field.message_type is not None:
            yield from received_fields(field.message_type)


def growing_fields():
    kinds = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    found = {
        field.full_name: field
        for descriptor in received_types()
        for field in received_fields(descriptor)
        if field.is_repeated or field.type in kinds
    }
    return sorted(found.values(), key=lambda field: field.full_name)


def test_every_field_that_can_grow_has_a_bound_and_no_other_has():
    names = {field.full_name for field in growing_fields()}
    listed = {name for name in field_bounds.FIELD_BOUNDS if not name.startswith("grpc.")}
    assert listed == names


LISTS = [
    field
    for field in growing_fields()
    if field.is_repeated and field.full_name.startswith("pagestream.")
]


@pytest.mark.parametrize("field", LISTS, ids=lambda field: field.full_name)
def test_contract_states_the_bound_of_each_list(field):
    bound = field_bounds.FIELD_BOUNDS[field.full_name].entries
    service = field.full_name.split(".")[1]
    text = (PROTOS / service / "v1" / f"{service}.proto").read_text()
    message = re.search(
        rf"^message {field.containing_type.name} {{$(.*?)^}}$", text, re.MULTILINE | re.DOTALL
    )
    comment = re.search(
        rf"((?:^ +//.*\n)+) +repeated \S+ {field.name} = ", message[1], re.MULTILINE
    )[1]
    words = " ".join(comment.replace("//", " ").split())
    assert re.search(rf"\b[Aa]t most {bound:,}\b", words), words


def test_message_within_bounds_is_what_protobuf_makes_of_it():
    request = pb.GenerateRequest(
        request_id="mine",
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="x" * 100)] * 4096),
        sampling_params=pb.SamplingParams(
            stop_token_ids=range(1024),
            logit_bias=[pb.LogitBias(token_id=1, bias=1.0)] * 1024,
            temperature=0.5,
        ),
    )
    content = request.SerializeToString()
    assert len(content) > SMALL_BYTES
    assert parse(content) == request


REFUSED = {
    "messages": (chat(*[b""] * 4097), "chat.messages", "BAD_CHAT"),
    "biases": (packed(6, packed(14, b"") * 1025), "sampling_params.logit_bias", None),
    "stop tokens": (packed(6, packed(4, bytes(4100))), "sampling_params.stop_token_ids", None),
    "merged stop tokens": (
        packed(6, packed(4, bytes(2052))) * 2,
        "sampling_params.stop_token_ids",
        None,
    ),
    "a name": (packed(2, b"m" * 1025), "model", "BAD_REQUEST"),
    "a name of 4 bytes a character": (packed(2, "😀".encode() * 257), "model", "BAD_REQUEST"),
    "a stop text": (
        packed(6, packed(15, b"s" * 1025)),
        "sampling_params.stop",
        "BAD_SAMPLING_PARAMS",
    ),
}


@pytest.mark.parametrize(
    ("content", "field", "reason"), REFUSED.values(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_small_and_large_messages_are_held_to_equal_bounds(content, field, reason):
    for padding in (b"", PADDING):
        refused = parse(content + padding)
        assert isinstance(refused, Malformed)
        assert refused.metadata["field"] == field
        assert refused.reason == (reason or "BAD_SAMPLING_PARAMS")
        assert refused.metadata["bounds"].removeprefix("0 to ") in refused.text


def test_bound_of_the_entries_of_a_list_is_not_told_as_that_of_the_list():
    content = packed(6, packed(15, b"s" * 1025))
    for padding in (b"", PADDING):
        text = "an entry of sampling_params.stop has 1025 bytes, the most allowed is 1024"
        assert parse(content + padding).text == text


def test_text_in_a_list_is_bounded_by_a_small_message_and_by_its_bound_in_a_large_one():
    tool = packed(4, packed(2, packed(1, b"r" * 1025)))
    assert parse(tool).chat.tools[0].name == "r" * 1025
    assert parse(tool + PADDING).metadata["field"] == "chat.tools.name"
    # A message that holds lists is looked into.
    assert parse(chat(packed(1, b"r" * 1025))).metadata["field"] == "chat.messages.role"


@pytest.mark.parametrize(
    "surplus",
    [
        pytest.param(b"\xf8\x3f\x01", id="unknown"),
        pytest.param(b"\x18\x01", id="of another type"),
        pytest.param(packed(6, b""), id="given again"),
        pytest.param(packed(4, b""), id="one of several"),
        pytest.param(packed(5, b"\x0d\0\0\0\0"), id="not packed"),
        pytest.param(packed(5, packed(1, b"")), id="empty lists"),
        pytest.param(packed(6, b"\x18\0"), id="given again inside"),
    ],
)
def test_surplus_fields_of_a_large_message_are_bounded(surplus):
    few = parse(PADDING + surplus * (MAX_SURPLUS_FIELDS // 3))
    assert isinstance(few, pb.GenerateRequest)
    refused = parse(PADDING + surplus * (MAX_SURPLUS_FIELDS + 2))
    assert isinstance(refused, Malformed)
    assert f"the most allowed is {MAX_SURPLUS_FIELDS}" in refused.text


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x1a\x05abc", id="cut off"),
        pytest.param(b"\x1a", id="no length"),
        pytest.param(b"\x1a" + b"\xff" * 11, id="endless length"),
        pytest.param(b"\x00\x01", id="field 0"),
        pytest.param(b"\x0f\x01", id="wire type 7"),
        pytest.param(packed(2, b"\xff\xfe"), id="not UTF-8"),
    ],
)
def test_what_cannot_be_parsed_is_refused_without_a_class_of_ours(content, padding):
    refused = parse(padding + content)
    assert isinstance(refused, Malformed)
    assert refused.reason == "BAD_REQUEST"
    assert not re.search(r"class|Error|Exception", refused.text)


def test_text_that_is_not_utf8_is_named():
    assert parse(chat(packed(2, b"\xff"))).text == "chat.messages.content is not UTF-8"


def test_work_for_a_hostile_message_is_that_of_the_bounds(monkeypatch):
    """Counted in fields that are looked at, since a clock tells little."""
    num_fields = 0
    original = message_parser.read_fields

    def counted(*args):
        nonlocal num_fields
        for found in original(*args):
            num_fields += 1
            yield found

    monkeypatch.setattr(message_parser, "read_fields", counted)
    for content in (
        chat(*[b""] * 1_000_000),
        packed(6, packed(14, b"") * 1_000_000),
        PADDING + b"\xf8\x3f\x01" * 1_000_000,
        packed(5, b"\x0d\0\0\0\0" * 1_000_000),
    ):
        num_fields = 0
        tracemalloc.start()
        assert isinstance(parse(content), Malformed)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert num_fields <= 4096 + MAX_SURPLUS_FIELDS
        assert peak < 1 << 20


@given(st.binary(max_size=200), st.sampled_from(list(received_types())))
def test_any_bytes_are_a_message_or_refused(content, descriptor):
    message_class = GetMessageClass(descriptor)
    found = MessageParser(message_class)(content)
    assert isinstance(found, message_class | Malformed)
