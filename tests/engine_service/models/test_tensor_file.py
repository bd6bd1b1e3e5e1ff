import json
import os
import re
import struct

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from engine_service.errors import StartupError
from engine_service.models.tensor_file import read_tensor_file


def tensor(begin, end, *, shape=None, dtype="U8"):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, header, num_bytes):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))
    return path


def refusal_of(path):
    with pytest.raises(StartupError) as refusal:
        read_tensor_file(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    header = {"b": tensor(4, 8, shape=[1], dtype="F32"), "__metadata__": {}, "a": tensor(0, 4)}
    path = write(tmp_path / "m.safetensors", header, 8)

    tensors = read_tensor_file(path)

    assert list(tensors) == ["a", "b"]
    start = path.stat().st_size - 8
    assert (tensors["b"].begin, tensors["b"].end) == (start + 4, start + 8)
    assert (tensors["b"].dtype, tensors["b"].shape, tensors["b"].path) == ("F32", (1,), path)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"a": tensor(0, 4), "b": tensor(3, 8)}, '"b" begins at byte 3 .* end at byte 4'),
        ({"a": tensor(0, 4), "b": tensor(5, 8)}, '"b" begins at byte 5 .* end at byte 4'),
        ({"a": tensor(0, 8), "b": tensor(0, 8)}, '"b" begins at byte 0 .* end at byte 8'),
        ({"a": tensor(0, 8), "b": tensor(2, 2)}, '"b" begins at byte 2|"b" .* end at byte 8'),
        ({"a": tensor(4, 8)}, '"a" begins at byte 4 .* end at byte 0'),
        ({"a": tensor(0, 4)}, "its tensors end at byte"),
        ({"a": tensor(0, 9)}, "its tensors end at byte"),
        ({}, "its tensors end at byte"),
        ({"a": tensor(0, 8, shape=[3])}, "8 bytes, which does not fit its shape"),
        ({"a": tensor(0, 8, shape=[2**40, 2**40, 2**40])}, "does not fit its shape"),
        ({"a": tensor(8, 0, shape=[8])}, "does not fit its shape"),
        ({"a": tensor(0, 8, shape=[8], dtype="F64")}, "does not fit its shape"),
        ({"a": tensor(0, 8, dtype="F7")}, 'the unknown dtype "F7"'),
        ({"a": tensor(0, 8, dtype=["F32"])}, "the unknown dtype"),
        ({"a": tensor(0, 8, shape=[-8])}, "the invalid shape"),
        ({"a": tensor(0, 8, shape=[8.0])}, "the invalid shape"),
        ({"a": tensor(0, 8, shape=[True, 8])}, "the invalid shape"),
        ({"a": tensor(0, 8, shape=[2**63])}, "the invalid shape"),
        ({"a": tensor(0, 8, shape=[1] * 5000 + [8])}, "the invalid shape"),
        ({"a": tensor(0, 8, shape={"8": 8})}, "the invalid shape"),
        ({"a": tensor(0, 8) | {"data_offsets": [0]}}, "the invalid data_offsets"),
        ({"a": tensor(0, 8) | {"data_offsets": [-8, 0]}}, "the invalid data_offsets"),
        ({"a": tensor(0, 8) | {"data_offsets": "08"}}, "the invalid data_offsets"),
        ({"a": tensor(0, 8) | {"data_offsets": [0, 8.0]}}, "the invalid data_offsets"),
        ({"a": 5}, "the unknown dtype null"),
        ({"a": None}, "the unknown dtype null"),
        ([], "not a JSON object"),
        (b'{"a": {}, "a": {}}', '"a" appears twice in one object'),
        (b'{"a": ' * 30_000, "nested|delimiter|Expecting"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 64 levels"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than 64 levels"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"\xff\xfe", "decode"),
        (b"", "Expecting value"),
        (b"<html>log in</html>", "Expecting value"),
    ],
)
def test_header_that_breaks_the_format_is_refused_in_one_line(tmp_path, header, expected):
    path = write(tmp_path / "m.safetensors", header, 8)

    message = refusal_of(path)

    assert "is not a complete safetensors file; download it again" in message
    assert re.search(expected, message)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it has only 0 bytes"),
        (b"\x10\x00", "it has only 2 bytes"),
        (b"\xff" * 64, "header ends after the end of the file"),
        (struct.pack("<Q", 57) + bytes(56), "header ends after the end of the file"),
    ],
)
def test_file_that_is_none_is_refused(tmp_path, content, expected):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)

    assert expected in refusal_of(path)


def test_header_over_the_bound_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 17 << 20))
        file.truncate(18 << 20)

    assert "header has 17825792 bytes, over the limit of 16777216" in refusal_of(path)


def test_pipe_in_place_of_a_file_is_refused_without_waiting_for_a_writer(tmp_path):
    path = tmp_path / "m.safetensors"
    os.mkfifo(path)

    assert refusal_of(path).endswith("is not a regular file")


sizes = st.integers(0, 9) | st.sampled_from([-1, 2**63, 2**64, 1.0, True, "4", None])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "F32", "F4", "X", 3]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)


@st.composite
def tilings(draw):
    """Mostly what the format demands, with one part of it changed now and then."""
    header, end = {}, 0
    for index in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 4))
        header[f"t{index}"] = tensor(end, end + 2 * size, shape=[size], dtype="F16")
        end += 2 * size
    if header and draw(st.booleans()):
        victim = draw(st.sampled_from(sorted(header)))
        if draw(st.booleans()):
            header[victim] = draw(entries)
        else:
            header[victim]["data_offsets"][draw(st.integers(0, 1))] += draw(st.integers(-2, 2))
    return header, end + draw(st.sampled_from([0, 0, 0, 1]))


@given(tilings())
def test_verdict_is_that_of_the_safetensors_library(tmp_path_factory, case):
    header, num_bytes = case
    path = write(tmp_path_factory.mktemp("file") / "m.safetensors", header, num_bytes)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            names = set(file.keys())
    except (safetensors.SafetensorError, OverflowError):
        names = None
    try:
        ours = set(read_tensor_file(path))
    except StartupError:
        ours = None
    assert ours == names
