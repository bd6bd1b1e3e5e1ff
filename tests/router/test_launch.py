import dataclasses
import socket

import pytest

from router.config import RouterConfig
from router.errors import StartupError
from router.launch import run

CONFIG = RouterConfig(engines=("127.0.0.1:1",), port=0, operations_port=0)


@pytest.mark.parametrize("option", ["port", "operations_port"])
def test_port_in_use_is_named_with_its_option(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(StartupError) as caught:
            run(dataclasses.replace(CONFIG, **{option: port}))

    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port} (Address already in use); "
        f"choose another --{option.replace('_', '-')} or host"
    )


def test_host_of_another_machine_is_refused_at_start():
    with pytest.raises(StartupError, match="Cannot assign requested address"):
        run(dataclasses.replace(CONFIG, host="192.0.2.1"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\xff", "cannot be read: 'utf-8' codec"),
        (b"{% for %}", "cannot be used: Expected an expression"),
        (b"{# " + b"x" * (1 << 20) + b" #}", "has 1048582 characters, over the limit of 1048576"),
        ("é".encode() * (3 << 20), "cannot be "),
    ],
    ids=["missing", "empty", "no text", "no template", "long", "longer"],
)
def test_chat_template_that_cannot_be_used_is_refused_at_start(tmp_path, content, message):
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(StartupError, match=message) as caught:
        run(dataclasses.replace(CONFIG, chat_template=path))

    assert str(caught.value).startswith(f"--chat-template {path} ")
    assert len(str(caught.value)) < 800
