"""The hub that fails in every way, with the real client of it."""

import json
import logging
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants, hf_api

from engine_service.errors import StartupError
from engine_service.models.checkpoint import resolve_checkpoint

COMMIT = "a" * 40


class _Handler(BaseHTTPRequestHandler):
    """Answers all as `self.server.answer` says: None closes the connection."""

    def log_message(self, *arguments):
        """Keeps quiet."""

    def do_GET(self):
        answer = self.server.answer
        if answer is None:
            self.connection.close()
            return
        status, content_type, body = answer
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET


ANSWERS = {
    "closed": None,
    "page of a proxy": (200, "text/html", b"<html>log in to the network</html>"),
    "garbage": (200, "application/json", b"\xff\xfe\x00"),
    "list": (200, "application/json", b"[]"),
    "number": (200, "application/json", b"5"),
    "empty object": (200, "application/json", b"{}"),
    "wrong fields": (
        200, "application/json", json.dumps({"id": 5, "sha": [COMMIT], "siblings": 7}).encode()
    ),
    "no files": (
        200, "application/json", json.dumps({"id": "a/b", "sha": COMMIT, "siblings": 7}).encode()
    ),
    "deep": (200, "application/json", b"[" * 100_000),
    "server error": (500, "text/plain", b"oops\nand more"),
    "unauthorized": (401, "text/plain", b"who are you"),
    "not found": (404, "text/plain", b"no such model"),
}  # fmt: skip


@contextmanager
def hub(monkeypatch, cache, answer):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.answer = answer
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def snapshot(tiny_model, tmp_path):
    """The model as the hub's cache holds it: links to blobs, named by commit."""
    repository = tmp_path / "models--acme--demo"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for index, path in enumerate(sorted(tiny_model.folder.iterdir())):
        shutil.copy(path, repository / "blobs" / str(index))
        (folder / path.name).symlink_to(f"../../blobs/{index}")
    return folder


@pytest.mark.parametrize("name", ANSWERS)
def test_hub_that_fails_is_told_in_one_line(monkeypatch, tmp_path, name):
    with (
        hub(monkeypatch, tmp_path, ANSWERS[name]),
        pytest.raises(StartupError, match=r"acme/demo'.*the hub does not provide it: .") as refusal,
    ):
        resolve_checkpoint("acme/demo")

    assert "\n" not in str(refusal.value)
    assert "Got: " not in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("name", ["closed", "page of a proxy", "garbage", "empty object"])
def test_complete_snapshot_stands_in_for_a_hub_that_fails(
    monkeypatch, tmp_path, snapshot, caplog, name
):
    with hub(monkeypatch, tmp_path, ANSWERS[name]), caplog.at_level(logging.WARNING):
        checkpoint = resolve_checkpoint("acme/demo")

    assert checkpoint.folder == snapshot
    assert checkpoint.read_config()["vocab_size"] == 300
    assert len(checkpoint.stored_tensors()) > 10
    warning = next(line for line in caplog.text.splitlines() if "hub failed" in line)
    assert f"hub failed model=acme/demo folder={snapshot}" in warning


def test_snapshot_without_its_weights_stands_in_for_nothing(monkeypatch, tmp_path, snapshot):
    (snapshot / "model.safetensors").unlink()
    with (
        hub(monkeypatch, tmp_path, None),
        pytest.raises(StartupError, match="the hub does not provide it: "),
    ):
        resolve_checkpoint("acme/demo")
