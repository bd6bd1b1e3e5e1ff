"""A model's chat template, which runs in a process of its own."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protos.wire.reason import Reason
from router.errors import Draining, InvalidRequest, RequestError, StartupError
from router.text import template_worker
from router.text.parsers.registry import AUTO
from router.text.template_process import TemplateEnded, TemplateProcess, TemplateRefused
from router.text.template_request import template_request
from router.types.prompts import ChatPrompt

_MIN_DEADLINE = 10.0
_DEADLINE_FACTOR = 5
"""Times the CPU time: the machine may be busy, or the worker may have escaped its limit."""
_MIN_MEMORY_BYTES = 64 << 20
_MEMORY_FACTOR = 32
"""Per byte of the prompt: text takes up to four, and a template makes several copies."""
_LAYOUT_FACTOR = 2
_MIN_LAYOUT_BYTES = 1 << 20
_FIRST_PAUSE, _MAX_PAUSE = 1.0, 60.0
_MAX_SHOWN_ROLES = 16
_LOOP_REAP_SECONDS = 0.02
"""How long the event loop waits for a killed worker; Python reaps the slower ones later."""
_MAX_CHARACTERS = 1 << 20
"""Longest template; the longest in real use have a tenth of it."""
_LEAVING = "the router is shutting down; send the request to another router"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSettings:
    """The limits of a chat template for one chat, and the callback for workers that end.

    Attributes:
        model: The model's name, for the log.
        cpu_seconds: CPU time.
        max_prompt_bytes: UTF-8 bytes of the messages; bounds of memory and output are multiples.
        source: A template that replaces the models' own, or None.
        tool_call_parser: The format of tool calls, one of `registry.TOOL_CALL_PARSERS`.
        reasoning_parser: The format of reasoning, one of `registry.REASONING_PARSERS`.
        on_end: Called with the reason why a worker ended, one of `template_process.END_CAUSES`.
    """

    model: str = ""
    cpu_seconds: float = 2.0
    max_prompt_bytes: int = 4 << 20
    source: str | None = None
    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO
    on_end: Callable[[str], None] = lambda cause: None

    @property
    def memory_bytes(self) -> int:
        """Bytes that a worker may allocate beyond what it has at its start."""
        return _MIN_MEMORY_BYTES + _MEMORY_FACTOR * self.max_prompt_bytes

    @property
    def max_layout_bytes(self) -> int:
        """The most UTF-8 bytes of a rendered conversation."""
        return _MIN_LAYOUT_BYTES + _LAYOUT_FACTOR * self.max_prompt_bytes

    @property
    def deadline(self) -> float:
        """Wall time of one chat, in seconds."""
        return max(_MIN_DEADLINE, _DEADLINE_FACTOR * self.cpu_seconds)


class ChatTemplate:
    """Renders conversations one at a time, in a worker process that is reused and replaced.

    `start` and `render` block, and one thread may use them; `retire` and `close` may be called from
    any thread. After a template ends its worker repeatedly, retries wait for growing pauses.

    Attributes:
        text: All that the template says, to find out what the model can do.
    """

    def __init__(
        self, source: object, special_tokens: Mapping[str, str], settings: TemplateSettings
    ) -> None:
        """Does not start a worker yet.

        Args:
            source: The template as found in the tokenizer's files; None if there is none. Of
                several by name, "default" is used, and "tool_use" for chats with tools.
            special_tokens: The special tokens that the template sees, by name.
            settings: Its limits.
        """
        self._tool_source: object = ""
        if isinstance(source, Mapping):
            self._tool_source = source.get("tool_use", "")
            source = source.get("default", source)
        self._source = source
        self.text = f"{source or ''}{self._tool_source}"
        self._special_tokens = dict(special_tokens)
        self._settings = settings
        self._turn = threading.Lock()
        self._process: TemplateProcess | None = None
        self._fault: str | None = None
        """Why the template can never be used."""
        for one in (source, self._tool_source):
            if one is not None and not isinstance(one, str):
                self._fault = f"the template is of type {type(one).__name__}, not a string"
            elif one and len(one) > _MAX_CHARACTERS:
                self._fault = (
                    f"the template has {len(one)} characters, over the limit of {_MAX_CHARACTERS}"
                )
        self._is_retired = self._is_closed = False
        self._num_ends = 0
        """Workers that ended since one last answered."""
        self._resumes_at = 0.0
        self._last_end = ""

    def start(self) -> None:
        """Starts the worker, so that the first chat need not wait for it.

        An unusable template is logged here; each chat then gets the error.
        """
        if self._source:
            try:
                with self._in_turn():
                    self._ready_process()
            except Draining:
                pass
            except (TemplateRefused, TemplateEnded, _Paused, RequestError) as error:
                message = "chat template unusable model=%s error=%.500s"
                _logger.warning(message, self._settings.model, error)

    def check(self) -> None:
        """Starts the worker with the template.

        Raises:
            TemplateRefused: The template cannot be used.
            TemplateEnded: It ended its worker.
            RequestError: The worker cannot be started.
        """
        with self._in_turn():
            self._ready_process()

    def render(self, chat: ChatPrompt) -> str:
        """Returns the text of a conversation, up to where the assistant's answer begins.

        Raises:
            InvalidRequest: There is no chat template, it raises, it does not show tools that the
                chat has, or it exceeds its limits.
            RequestError: The worker cannot be started, or the router is shutting down.
        """
        if not self._source:
            raise InvalidRequest(
                "the model has no chat template, so chat cannot be used; send text",
                {"field": "chat"},
                reason=Reason.BAD_CHAT,
            )
        retry_after = None
        try:
            return self._ask(chat)
        except TemplateRefused as error:
            why = f"the model's chat template rejected them: {error!s:.500}"
        except TemplateEnded as error:
            why = self._describe(error)
        except _Paused as error:
            why, retry_after = str(error), error.seconds
        roles = ", ".join(message.role for message in chat.messages[:_MAX_SHOWN_ROLES])
        raise InvalidRequest(
            f"chat.messages with roles {roles}: {why}",
            {"field": "chat.messages", "value": roles},
            reason=Reason.BAD_CHAT,
            retry_after=retry_after,
        )

    def retire(self) -> None:
        """Ends the worker as soon as no chat needs it; each later chat gets its own."""
        self._is_retired = True
        self._end_idle()

    def close(self) -> None:
        """Kills the worker, even if busy, and prevents further starts."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        self._end_idle()

    def _ask(self, chat: ChatPrompt) -> str:
        request = template_request(chat, knows_developers="developer" in self.text)
        with self._in_turn():
            answer = self._exchange(self._ready_process(), request)
            self._num_ends = 0
            return answer

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        try:
            with self._turn:
                yield
        finally:
            if self._is_retired or self._is_closed:
                self._end_idle()

    def _ready_process(self) -> TemplateProcess:
        if self._is_closed:
            raise Draining(_LEAVING)
        if self._fault is not None:
            raise TemplateRefused(self._fault)
        if self._process is not None:
            try:
                self._process.check()
            except TemplateEnded as end:
                # The worker ended while idle, so this chat did not cause it.
                self._note_end(end)
        if self._process is not None:
            return self._process
        self._check_pause()
        load = json.dumps(self._load()).encode()
        process = self._start()
        try:
            self._exchange(process, (load, b""))
        except TemplateRefused as error:
            self._fault = str(error)
            self._process = None
            process.end()
            raise
        return process

    def _start(self) -> TemplateProcess:
        try:
            process = self._process = TemplateProcess(self._settings.max_layout_bytes)
        except OSError as error:
            raise RequestError(
                f"the worker process of the model's chat template cannot be started: {error}"
            ) from error
        # Either this check sees that it is closed, or `close` sees the process.
        if self._is_closed:
            process.kill()
        return process

    def _load(self) -> template_worker.Load:
        settings = self._settings
        assert isinstance(self._source, str)
        assert isinstance(self._tool_source, str)
        return template_worker.Load(
            source=self._source,
            tool_source=self._tool_source,
            variables=self._special_tokens,
            cpu_seconds=settings.cpu_seconds,
            memory_bytes=settings.memory_bytes,
            max_bytes=settings.max_layout_bytes,
        )

    def _exchange(self, process: TemplateProcess, request: tuple[bytes, bytes]) -> str:
        try:
            return process.ask(request, self._settings.deadline)
        except TemplateRefused:
            self._num_ends = 0
            raise
        except TemplateEnded as end:
            self._note_end(end)
            raise
        except BaseException:
            self._process = None
            raise

    def _note_end(self, end: TemplateEnded) -> None:
        self._process = None
        if self._is_closed:
            raise Draining(_LEAVING)
        self._num_ends += 1
        self._last_end = self._describe(end)
        pause = 0.0
        # One end is not a pattern yet: the waiting chats go on with the next worker.
        if self._num_ends > 1:
            pause = min(_FIRST_PAUSE * 2 ** min(self._num_ends - 2, 16), _MAX_PAUSE)
        self._resumes_at = time.monotonic() + pause
        _logger.warning(
            "template worker ended model=%s cause=%s pause_seconds=%g detail=%.200s",
            self._settings.model,
            end.cause,
            pause,
            end,
        )
        self._settings.on_end(end.cause)

    def _check_pause(self) -> None:
        seconds = self._resumes_at - time.monotonic()
        if seconds > 0:
            raise _Paused(
                f"{self._last_end}, {self._num_ends} times in a row; retry in {seconds:.1f} s",
                seconds,
            )

    def _describe(self, end: TemplateEnded) -> str:
        if end.cause == "time":
            return f"the model's chat template took longer than {self._settings.cpu_seconds:g} s"
        return f"the worker process of the model's chat template failed ({end!s:.200})"

    def _end_idle(self) -> None:
        """Ends an unneeded worker; if it is in use, its user ends it afterwards."""
        if self._turn.acquire(blocking=False):
            try:
                if self._process is not None:
                    self._process.end(_LOOP_REAP_SECONDS)
                    self._process = None
            finally:
                self._turn.release()


def read_template(path: Path, settings: TemplateSettings) -> str:
    """Returns an operator's own template, which was tried in a worker.

    Raises:
        StartupError: It cannot be read or used.
    """
    option = f"--chat-template {path}"
    try:
        with path.open("rb") as file:
            content = file.read(4 * _MAX_CHARACTERS + 1)
        source = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{option} cannot be read: {error}") from None
    if not source.strip():
        raise StartupError(f"{option} is empty")
    template = ChatTemplate(source, {}, settings)
    try:
        template.check()
    except (TemplateRefused, TemplateEnded, RequestError) as error:
        raise StartupError(f"{option} cannot be used: {error!s:.500}") from None
    finally:
        template.close()
    return source


class _Paused(Exception):
    """The template has ended too many workers in a row.

    Attributes:
        seconds: Seconds until the next try.
    """

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds
