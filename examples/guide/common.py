"""What the steps share: the demo model's files, some questions, and how a figure is printed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

CHECKPOINT = Path(__file__).parents[2] / "demo_model" / "checkpoint"
END = 2
"""The token that ends an answer."""
QUESTIONS = (
    "introduce yourself",
    "List the primes up to 60.",
    "Count from 3 to 14.",
    "What is 417 + 268?",
    "Sort these numbers: 82, 5, 310, 47, 996, 13.",
    "Spell the word lantern.",
    "What is the capital of France?",
    "Repeat: the old river runs behind the quiet house.",
)
"""Answers to them are between 3 and some 60 tokens long."""

_SENTENCES = (
    "The old river runs behind the quiet house.",
    "A small boat waits near the bridge.",
    "The baker opens the door every morning.",
    "Two children play in the garden.",
)

Answers = dict[tuple[int, ...], list[int]]
"""What the model says after prompts, by the prompt's tokens.

Each step's `main` returns the answers that it generated; a test compares them with transformers'.
"""

_Result = TypeVar("_Result")


def load_tokenizer() -> Tokenizer:
    """Returns the demo model's tokenizer."""
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def chat(question: str) -> list[int]:
    """Returns the tokens of a chat in which a user asks this; the answer follows them."""
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return load_tokenizer().encode(text).ids


def text_with_facts(num_sentences: int) -> str:
    """Returns a text of some 12 tokens a sentence; it says where Omar lives, and Mara's code."""
    facts = {3: "Mara's code is 4821.", num_sentences // 2: "Omar lives in Lisbon."}
    return " ".join(facts.get(i, _SENTENCES[i % len(_SENTENCES)]) for i in range(num_sentences))


def text_of(token_ids: list[int]) -> str:
    """Returns an answer as text, without the token that ends it."""
    return load_tokenizer().decode(token_ids)


def timed(function: Callable[..., _Result], *arguments: object) -> tuple[_Result, float]:
    """Returns what a function returns, and how many seconds it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def figure(label: str, value: object) -> None:
    """Prints a figure. A value that another machine would change begins with ≈."""
    print(f"{label:.<46} {value}")


def bar(label: str, value: float, largest: float, text: str) -> None:
    """Prints a value as a bar, of 30 characters for the largest one."""
    print(f"{label:>15} {text:<18} {'█' * max(1, round(30 * value / largest))}")
