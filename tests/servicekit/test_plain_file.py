"""Files that are read again while a service runs."""

import os
from pathlib import Path

import pytest

from servicekit.plain_file import read_plain_file


def test_content_is_read_through_links(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")

    assert read_plain_file(tmp_path / "link", 5) == b"12345"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("large", "it has more than 4 bytes"),
        ("pipe", "it is a pipe or a device, must be a file"),
        ("/dev/zero", "it is a pipe or a device, must be a file"),
        (".", "Is a directory"),
        ("missing", "No such file or directory"),
        ("circle", "Too many levels of symbolic links"),
    ],
)
def test_whatever_else_has_the_name_is_refused_at_once_and_left_closed(tmp_path, name, reason):
    (tmp_path / "large").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    before = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(OSError) as caught:  # noqa: PT011
        read_plain_file(tmp_path / name, 4)

    assert caught.value.strerror == reason
    assert len(list(Path("/proc/self/fd").iterdir())) == before
