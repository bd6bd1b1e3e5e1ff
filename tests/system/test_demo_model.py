"""The demo model answers through a router and two engines what it answers through transformers.

Its score is a gate for every change of kernels, cache and scheduling.
"""

import asyncio

import pytest

from demo_model.answers import ask_router, ask_transformers
from demo_model.conversation import Conversation, Message
from demo_model.evaluate import SEED, is_right, wrong_variations
from demo_model.generator import questions
from demo_model.variations import variations
from examples.demo.fleet import start_fleet
from examples.demo.load import RIGHT_ANSWERS
from examples.demo.model import CHECKPOINT, Model
from examples.demo.services import Services

NUM_QUESTIONS = 100
ASKED = questions(SEED, NUM_QUESTIONS)
# The demo's two prompts, once and fifteen times in a row.
DEMO = [
    Conversation("demo", (Message("user", prompt), Message("assistant", answer)))
    for repeated, answer in RIGHT_ANSWERS.items()
    for prompt in (repeated[: len(repeated) // 15], repeated)
]


async def ask_fleet(folder, asked, num_varied=0):
    """Returns the answers, and what is wrong with those to variations of the first questions."""
    async with Services(folder) as services:
        fleet = await start_fleet(services, Model.named(""), 0)
        address = fleet.router.address
        answers = await ask_router(address, asked)
        varied = variations(asked[:num_varied], answers[:num_varied])
        varied_answers = await ask_router(
            address, [one.conversation for one in varied], [one.params for one in varied]
        )
        return answers, wrong_variations(list(zip(varied, varied_answers, strict=True)))


def num_right(answers, asked):
    return sum(is_right(answer, one) for answer, one in zip(answers, asked, strict=True))


def test_answers_are_those_of_transformers_and_right(tmp_path):
    asked = ASKED + DEMO
    answers, wrong = asyncio.run(ask_fleet(tmp_path, asked, num_varied=20))
    assert wrong == []
    expected = ask_transformers(CHECKPOINT, asked, "cpu")
    for conversation, answer, reference in zip(asked, answers, expected, strict=True):
        assert answer == reference, conversation.question[-1].content
    assert num_right(answers[:NUM_QUESTIONS], ASKED) >= 97
    assert num_right(answers[NUM_QUESTIONS:], DEMO) == len(DEMO) == 4


@pytest.mark.slow
def test_thousand_answers_are_those_of_transformers_and_right(tmp_path):
    asked = questions(SEED, 1000)
    answers, wrong = asyncio.run(ask_fleet(tmp_path, asked, num_varied=100))
    assert wrong == []
    assert answers == ask_transformers(CHECKPOINT, asked, "cpu")
    assert num_right(answers, asked) >= 990
