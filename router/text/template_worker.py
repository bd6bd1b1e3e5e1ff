"""Renders conversations with one model's chat template, in a process that can be killed.

A template is a program that a stranger wrote. The router starts this file by its path, so that it
imports nothing of the router: jinja2 alone needs a third of the memory of transformers. It answers
requests from its input in order; each is bounded by the limits that the process sets for itself.
The environment is that of `transformers.utils.chat_template_utils`; a test compares both.

Integers are big-endian. A request is the length of its head, the length of its body (4 bytes each),
the head in JSON and the body. The first head is a `Load`; each later one is a `Chat`, with the
contents in the body. An answer is its kind (1 byte), its length (4 bytes) and UTF-8 text: the
rendered conversation, or why it cannot be rendered.
"""

import json
import os
import resource
import signal
import struct
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import jinja2
import jinja2.debug  # Imported now, not when a template first raises: that time is measured.
import jinja2.ext
import jinja2.meta
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
_END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""As in transformers: its space shows whether a template strips contents."""


class Load(TypedDict):
    """The first request to a worker.

    Attributes:
        source: The template.
        tool_source: The template for chats with tools, if it is another one, or "".
        variables: What it sees besides the messages: the special tokens by name.
        cpu_seconds: CPU time per request; after it, the kernel ends the process by SIGPROF.
        memory_bytes: What the process may allocate beyond what it has at its start.
        max_bytes: UTF-8 bytes of one rendered conversation.
    """

    source: str
    tool_source: str
    variables: dict[str, str]
    cpu_seconds: float
    memory_bytes: int
    max_bytes: int


class Chat(TypedDict):
    """A request to render a conversation.

    Attributes:
        messages: `[role, bytes of content, other fields]` for each message. A message with tool
            calls and no content has None bytes; the field "parts" is a content in several texts.
        tools: The tools in the form of transformers, or None.
        variables: Further variables.
        add_generation_prompt: Whether to begin the assistant's answer.
        continue_final_message: Whether to end within the last message.
    """

    messages: list[tuple[str, int | None, dict[str, Any]]]
    tools: list[dict[str, Any]] | None
    variables: Mapping[str, object]
    add_generation_prompt: bool
    continue_final_message: bool


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
    """The compiled templates and the variables that they see in every chat."""

    def __init__(self, load: Load) -> None:
        self._variables = load["variables"]
        self._max_bytes = load["max_bytes"]
        environment = make_environment()
        self._default = _Template(environment, load["source"])
        self._with_tools = self._default
        if load["tool_source"]:
            self._with_tools = _Template(environment, load["tool_source"])
        self._reserved = {*self._variables, *environment.globals}

    def render(self, head: bytes, body: bytes) -> bytes:
        """Returns a rendered conversation in UTF-8."""
        chat: Chat = json.loads(head)
        for name in chat["variables"]:
            if name in self._reserved:
                raise ValueError(f"chat_template_kwargs.{name} is a name of the template's own")
        template = self._default if chat["tools"] is None else self._with_tools
        template.check(chat)
        messages, start = [], 0
        for role, num_bytes, fields in chat["messages"]:
            content = None
            if num_bytes is not None:
                content = body[start : start + num_bytes].decode(errors=ENCODING_ERRORS)
                start += num_bytes
            messages.append(template.message(role, content, fields))
        final = ""
        if chat["continue_final_message"]:
            final = _mark_end(messages[-1], template.source)
        pieces, num_characters = [], 0
        for piece in template.compiled.generate(
            messages=messages,
            tools=chat["tools"],
            documents=None,
            add_generation_prompt=chat["add_generation_prompt"],
            **chat["variables"],
            **self._variables,
        ):
            num_characters += len(piece)
            self._check_size(num_characters)
            pieces.append(piece)
        text = "".join(pieces)
        if chat["continue_final_message"]:
            text = _cut_at_mark(text, final)
        encoded = text.encode()
        self._check_size(len(encoded))
        return encoded

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ValueError(f"its output is over {self._max_bytes} bytes")


class _Template:
    """A compiled template, and in which form it takes contents."""

    def __init__(self, environment: jinja2.Environment, source: str) -> None:
        self.source = source
        self.compiled = environment.from_string(source)
        tree = environment.parse(source)
        self._shows_tools = "tools" in jinja2.meta.find_undeclared_variables(tree)
        self._shows_calls = any(
            _is_named(node, "tool_calls") for node in tree.find_all(jinja2.nodes.Expr)
        )
        self._takes_parts = any(
            _is_named(loop.iter, "content") for loop in tree.find_all(jinja2.nodes.For)
        )
        self._takes_text = not self._takes_parts or any(
            test.name == "string" and _is_named(test.node, "content")
            for test in tree.find_all(jinja2.nodes.Test)
        )
        self._knows_none = any(
            test.name == "none" and _is_named(test.node, "content")
            for test in tree.find_all(jinja2.nodes.Test)
        )

    def check(self, chat: Chat) -> None:
        """Refuses what the template would leave out without a word.

        Raises:
            ValueError: It does.
        """
        if chat["tools"] and not self._shows_tools:
            raise ValueError("chat.tools is set, but the template does not show tools")
        has_calls = any("tool_calls" in fields for _, _, fields in chat["messages"])
        if has_calls and not self._shows_calls:
            raise ValueError("a message has tool_calls, but the template does not show them")

    def message(self, role: str, content: str | None, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns a message as the template sees it."""
        parts = fields.pop("parts", None)
        whole: object = content
        if self._takes_parts and (parts is not None or not self._takes_text):
            texts = parts if parts is not None else [content] if content is not None else []
            whole = [{"type": "text", "text": text} for text in texts]
        elif parts is not None:
            whole = "\n".join(parts)
        elif content is None and not self._knows_none:
            # As in transformers: many templates would write "None", or fail.
            return {"role": role, **fields}
        return {"role": role, "content": whole, **fields}


def _is_named(node: jinja2.nodes.Node, name: str) -> bool:
    """Whether an expression is a variable, attribute or text of this name, perhaps filtered."""
    while isinstance(node, jinja2.nodes.Filter) and node.node is not None:
        node = node.node
    match node:
        case jinja2.nodes.Getattr(attr=found) | jinja2.nodes.Name(name=found):
            return bool(found == name)
        case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value=found)):
            return bool(found == name)
        case jinja2.nodes.Const(value=found):
            return bool(found == name)
    return False


def _mark_end(message: dict[str, Any], source: str) -> str:
    """Puts a mark behind the message's content, and returns the last text of that."""
    if "content" not in source:
        raise ValueError("continue_final_message is set, but the template uses no content")
    content = message.get("content")
    if content is None:
        raise ValueError("continue_final_message is set, but the last message has no content")
    if isinstance(content, list):
        text: str = content[-1]["text"]
        content[-1]["text"] = text + _END_MARK
        return text
    message["content"] = content + _END_MARK
    return str(content)


def _cut_at_mark(text: str, final: str) -> str:
    """Returns a text up to the mark; the white space before it as the template left it."""
    place = text.rfind(_END_MARK.strip())
    if place < 0 or final.strip() not in text:
        raise ValueError(
            "continue_final_message is set, but the template changes the last message's content"
        )
    if text.startswith(_END_MARK, place):
        return text[:place]
    # The template took the white space from the end of the content.
    return text[:place].rstrip()


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
