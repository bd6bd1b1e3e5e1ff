"""Chat templates for a test, their workers, and the ways to look at these."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from router.text.chat_template import ChatTemplate, TemplateSettings
from router.types.prompts import ChatMessage, ChatPrompt

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HI = (ChatMessage(role="user", content="hi"),)
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LOOPS_IF_TOLD = (
    "{% if messages[0].content == 'loop' %}" + FOREVER + "{% endif %}{{ messages[0].content }}"
)
DEFAULTS = TemplateSettings()
# Enough for the hostile not to last, and bounds that they pass soon.
HASTY = TemplateSettings(cpu_seconds=0.2, max_prompt_bytes=160 << 10)


class MessageTemplate(ChatTemplate):
    """A chat template that also takes messages alone."""

    def render(self, chat):
        return super().render(chat if isinstance(chat, ChatPrompt) else prompt_of(chat))


def prompt_of(messages):
    return ChatPrompt(messages=tuple(messages))


class Templates:
    """Chat templates that are closed in the end, and why their workers ended."""

    def __init__(self):
        self.ends = []
        self._made = []

    def __call__(self, source, settings=DEFAULTS, **changes):
        settings = dataclasses.replace(settings, on_end=self.ends.append, **changes)
        template = MessageTemplate(source, SPECIAL_TOKENS, settings)
        self._made.append(template)
        return template

    def close(self):
        for template in self._made:
            template.close()


def says(text):
    return (ChatMessage(role="user", content=text),)


def pid_of(template):
    return template._process.pid


def is_there(pid):
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def files_of(pid):
    folder = Path(f"/proc/{pid}/fd")
    return {entry.name: str(entry.readlink()) for entry in folder.iterdir()}


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def chats_of(template, *texts):
    """The futures of chats that begin one after the other, in threads of their own."""
    with ThreadPoolExecutor(len(texts)) as threads:
        futures = []
        for text in texts:
            futures.append(threads.submit(template.render, says(text)))
            until(lambda: template._turn.locked() or futures[-1].done())
        yield futures
