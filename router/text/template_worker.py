"""Renders conversations with one model's chat template, in a process that can be killed.

A template is a program that a stranger wrote. The router starts this file by its path, so that it
imports nothing of the router: jinja2 alone needs a third of the memory of transformers. It answers
requests from its input in order; each is bounded by the limits that the process sets for itself.
The environment is that of `transformers.utils.chat_template_utils`; a test compares both.

Integers are big-endian. A request is the length of its head, the length of its body (4 bytes each),
the head in JSON and the body. The first head is a `Load`; later heads hold `[role, bytes of
content]` for each message, and the body holds the contents. An answer is its kind (1 byte), its
length (4 bytes) and UTF-8 text: the rendered conversation, or why it cannot be rendered.
"""

import json
import os
import resource
import signal
import struct
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypedDict

import jinja2
import jinja2.debug  # Imported now, not when a template first raises: that time is measured.
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

REQUEST = struct.Struct(">II")
ANSWER = struct.Struct(">cI")
LAID_OUT, REFUSED = b"T", b"E"
MAX_ERROR_CHARACTERS = 500
ENCODING_ERRORS = "surrogatepass"
"""Clients cannot send surrogates; a content with some must fail here, not in the router."""


class Load(TypedDict):
    """The first request to a worker.

    Attributes:
        source: The template.
        variables: What it sees besides the messages: the special tokens by name.
        cpu_seconds: CPU time per request; after it, the kernel ends the process by SIGPROF.
        memory_bytes: What the process may allocate beyond what it has at its start.
        max_bytes: UTF-8 bytes of one rendered conversation.
    """

    source: str
    variables: dict[str, str]
    cpu_seconds: float
    memory_bytes: int
    max_bytes: int


def main() -> None:
    """Answers requests until the router closes its end of the socket."""
    # Only the router ends it, not a signal to all processes of a terminal or a service.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # One socket. With PYTHONUNBUFFERED, sys.stdout would send an answer in two pieces.
    with open(0, "rb") as source, open(1, "wb") as sink:
        _serve(source, sink)


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    layout = None
    while request := _read(source):
        head, body = request
        if layout is None:
            load: Load = json.loads(head)
            _limit_memory(load["memory_bytes"])
        # CPU time does not pass while the process waits; the next request restarts the timer.
        signal.setitimer(signal.ITIMER_PROF, load["cpu_seconds"])
        try:
            if layout is None:
                layout = _Layout(load)
                kind, answer = LAID_OUT, b""
            else:
                kind, answer = LAID_OUT, layout.render(head, body)
        except MemoryError:
            kind, answer = REFUSED, f"it takes over {load['memory_bytes']} bytes of memory".encode()
        # A template is a program: it may raise anything.
        except Exception as error:
            kind, answer = REFUSED, str(error)[:MAX_ERROR_CHARACTERS].encode(errors="replace")
        sink.write(ANSWER.pack(kind, len(answer)))
        sink.write(answer)
        sink.flush()


def _read(source: BinaryIO) -> tuple[bytes, bytes] | None:
    sizes = source.read(REQUEST.size)
    if len(sizes) < REQUEST.size:
        return None
    head_size, body_size = REQUEST.unpack(sizes)
    head, body = source.read(head_size), source.read(body_size)
    return (head, body) if len(head) + len(body) == head_size + body_size else None


def _limit_memory(num_bytes: int) -> None:
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = num_pages * os.sysconf("SC_PAGE_SIZE") + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


class _Layout:
    """A compiled template and the variables that it sees besides the messages."""

    def __init__(self, load: Load) -> None:
        self._variables = load["variables"]
        self._max_bytes = load["max_bytes"]
        self._template = make_environment().from_string(load["source"])

    def render(self, head: bytes, body: bytes) -> bytes:
        """Returns a conversation rendered up to where the assistant's answer begins, in UTF-8."""
        messages, start = [], 0
        for role, num_bytes in json.loads(head):
            content = body[start : start + num_bytes].decode(errors=ENCODING_ERRORS)
            messages.append({"role": role, "content": content})
            start += num_bytes
        pieces, num_characters = [], 0
        for piece in self._template.generate(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._variables,
        ):
            num_characters += len(piece)
            self._check_size(num_characters)
            pieces.append(piece)
        text = "".join(pieces).encode()
        self._check_size(len(text))
        return text

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ValueError(f"its output is over {self._max_bytes} bytes")


def make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Returns an environment equal to the one in which transformers compiles chat templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class _Generation(jinja2.ext.Extension):
    """Accepts the block `generation`, which marks an assistant's messages for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: jinja2.runtime.Macro) -> object:
        return caller()


class _Dict:
    """The type `dict` without its attributes."""

    def __call__(self, *args: object, **values: object) -> object:
        return dict(*args, **values)

    def fromkeys(self, *args: object) -> object:
        return dict.fromkeys(*args)  # type: ignore[call-overload]


class _Namespace(jinja2.utils.Namespace):
    """A namespace without Python's own attributes."""

    # Positional parameters, as in jinja2, so that a template may use any name.
    def __init__(*args: object, **values: object) -> None:
        self, *rest = args
        assert isinstance(self, _Namespace)
        attributes = dict(*rest, **values)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got "
            f"{name!r}. Please rename the attribute."
        )


def _tojson(
    x: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


if __name__ == "__main__":
    main()
