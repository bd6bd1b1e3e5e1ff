import os
import socket

import pytest

from engine_service.errors import StartupError
from engine_service.models.plain_file import exists, open_plain_file, read_own_file


def refusal_of(work, *arguments):
    with pytest.raises(StartupError) as refusal:
        work(*arguments)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_file_in_its_folder_is_read_up_to_the_bound(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"12345")

    assert read_own_file(path, 5) == b"12345"
    assert refusal_of(read_own_file, path, 4) == (
        f"{path}: has more than 4 bytes, the limit for this file"
    )


def test_folder_may_itself_be_reached_through_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("{}")
    (tmp_path / "here").symlink_to(tmp_path / "there")

    assert read_own_file(tmp_path / "here" / "config.json", 10) == b"{}"


def test_links_within_the_folder_are_followed_as_volumes_have_them(tmp_path):
    (tmp_path / "..2025_01").mkdir()
    (tmp_path / "..2025_01" / "config.json").write_text("{}")
    (tmp_path / "..data").symlink_to("..2025_01")
    (tmp_path / "config.json").symlink_to("..data/config.json")

    assert read_own_file(tmp_path / "config.json", 10) == b"{}"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("s3cret")
    return path


@pytest.mark.parametrize("folder", ["model", "model-2/snapshots/abc", "models--a--b/other/abc"])
def test_link_that_leads_out_of_the_folder_is_refused(tmp_path, secret, folder):
    path = tmp_path / folder / "tokenizer.json"
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)

    message = refusal_of(read_own_file, path, 100)

    assert message.startswith(f"{path}: is a link that leads outside the model's folder")
    assert "s3cret" not in message


def test_snapshot_of_the_hub_s_cache_may_link_to_its_blobs_and_nowhere_else(tmp_path, secret):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "hash").write_text("{}")
    (repository / "refs").write_text("r")
    (snapshot / "config.json").symlink_to("../../blobs/hash")
    (snapshot / "tokenizer.json").symlink_to("../../refs")
    (snapshot / "vocab.json").symlink_to(secret)
    (repository / "blobs" / "chain").symlink_to(secret)
    (snapshot / "merges.txt").symlink_to("../../blobs/chain")

    assert read_own_file(snapshot / "config.json", 10) == b"{}"
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        assert "leads outside" in refusal_of(read_own_file, snapshot / name, 100)


def test_link_to_nowhere_exists_and_cannot_be_read(tmp_path):
    path = tmp_path / "config.json"
    path.symlink_to(tmp_path / "nowhere")

    assert exists(path)
    assert "cannot be read: No such file" in refusal_of(read_own_file, path, 10)


def test_links_in_a_circle_cannot_be_read(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")

    assert "cannot be read: " in refusal_of(read_own_file, tmp_path / "a", 10)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(path))
            server.close()
        case "device":
            path.symlink_to("/dev/zero")

    message = refusal_of(open_plain_file, path)

    expected = "cannot be read: " if kind == "socket" else "is not a regular file"
    assert message.startswith(f"{path}: {expected}")


def test_weights_may_be_linked_from_anywhere(tmp_path, secret):
    path = tmp_path / "model.safetensors"
    path.symlink_to(secret)

    descriptor = open_plain_file(path)

    assert os.read(descriptor, 10) == b"s3cret"
    os.close(descriptor)


def test_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "config.json"
    path.write_text("{}")
    monkeypatch.setattr(os, "open", refuse)
    assert refusal_of(read_own_file, path, 10) == f"{path}: cannot be read: Permission denied"

    monkeypatch.setattr(os, "lstat", refuse)
    assert refusal_of(exists, path) == f"{path}: cannot be read: Permission denied"


def test_nothing_is_no_file(tmp_path):
    (tmp_path / "file").touch()

    assert not exists(tmp_path / "config.json")
    assert not exists(tmp_path / "file" / "config.json")
