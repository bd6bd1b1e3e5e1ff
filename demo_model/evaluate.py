"""Asks the demo model held-out questions, through Pagestream and through transformers.

    python -m demo_model.evaluate --questions 1000

Pagestream is a router and two engines, all started here, with prefix caching, in float32 on a CPU
and in bfloat16 on a GPU; transformers computes in float32. An answer counts as right if it is right
to the letter and ends by itself. Every tenth question is asked again with a stop text and with
grammars: what the answer must be then follows from the plain one.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich import box
from rich.console import Console
from rich.table import Table

from demo_model.answers import Answer, ask_router, ask_transformers
from demo_model.conversation import Conversation
from demo_model.generator import TASKS, questions
from demo_model.variations import Variation, variations
from examples.demo.errors import DemoFailedError
from examples.demo.figures import gpu_count
from examples.demo.fleet import start_fleet
from examples.demo.load import describe
from examples.demo.model import CHECKPOINT, ROOT, Model
from examples.demo.services import Services

SEED = "evaluation"
MIN_SHARE = 0.97
"""Of right answers, over all tasks."""
MIN_TASK_SHARE = 0.90
_VARIED_EVERY = 10
_LOG_FOLDER = ROOT / ".demo" / "evaluation"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A question with both answers."""

    conversation: Conversation
    transformers: Answer
    pagestream: Answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks, prints the table and returns 0 if Pagestream's answers pass.

    They pass if they reach the bars and, in float32, equal those of transformers.
    """
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m demo_model.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--questions", type=int, default=1000, help="questions to ask (default: 1000)"
    )
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, help="model folder (default: the demo model)"
    )
    parser.add_argument(
        "--show-wrong",
        action="store_true",
        help="also print answers that are wrong or differ from those of transformers",
    )
    given = parser.parse_args(arguments)
    if given.questions < len(TASKS):
        parser.error(
            f"--questions is {given.questions}; must be at least {len(TASKS)}, one for each task"
        )
    console = Console(highlight=False)
    asked = questions(SEED, given.questions)
    try:
        pagestream, varied = asyncio.run(_ask_pagestream(given.model, asked, console))
    except (DemoFailedError, OSError) as error:
        console.print(f"the evaluation failed: {error}", markup=False, soft_wrap=True)
        return 1
    is_float32 = not gpu_count()
    started = time.monotonic()
    transformers = ask_transformers(given.model, asked, "cpu" if is_float32 else "cuda")
    console.print(f"transformers answered in {time.monotonic() - started:.0f} s")
    outcomes = [Outcome(*one) for one in zip(asked, transformers, pagestream, strict=True)]
    if given.show_wrong:
        _print_wrong(outcomes, console)
    console.print(_table(outcomes))
    console.print(_table_of_variations(varied))
    failures = shortfalls(outcomes) + wrong_variations(varied)
    num_different = sum(one.pagestream != one.transformers for one in outcomes)
    if is_float32 and num_different:
        failures.append(f"{num_different} answers differ from those of transformers")
    for failure in failures:
        console.print(failure)
    return 1 if failures else 0


async def _ask_pagestream(
    folder: Path, asked: Sequence[Conversation], console: Console
) -> tuple[list[Answer], list[tuple[Variation, Answer]]]:
    async with Services(_LOG_FOLDER) as services:
        model = Model(path=str(folder), is_small=True)
        fleet = await start_fleet(services, model, gpu_count())
        console.print(f"a router and {len(fleet.engines)} engines serve {folder}", soft_wrap=True)
        started = time.monotonic()
        async with services.failures_first():
            try:
                answers = await ask_router(fleet.router.address, asked)
                varied = variations(asked[::_VARIED_EVERY], answers[::_VARIED_EVERY])
                varied_answers = await ask_router(
                    fleet.router.address,
                    [variation.conversation for variation in varied],
                    [variation.params for variation in varied],
                )
            except* grpc.aio.AioRpcError as errors:
                (error, *_) = errors.exceptions
                assert isinstance(error, grpc.aio.AioRpcError)
                raise DemoFailedError(f"a request failed: {describe(error)}") from error
    console.print(f"Pagestream answered in {time.monotonic() - started:.0f} s")
    return answers, list(zip(varied, varied_answers, strict=True))


def wrong_variations(varied: Sequence[tuple[Variation, Answer]]) -> list[str]:
    """Returns a sentence for each answer that is not what it must be."""
    return [
        f"{variation.name}: the answer to {variation.conversation.question[-1].content[-80:]!r} "
        f"with these parameters is wrong: {answer.text!r}"
        for variation, answer in varied
        if not variation.is_right(answer)
    ]


def _table_of_variations(varied: Sequence[tuple[Variation, Answer]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("asked with")
    for title in ("questions", "right answers"):
        table.add_column(title, justify="right")
    for name in dict.fromkeys(variation.name for variation, _ in varied):
        rights = [v.is_right(answer) for v, answer in varied if v.name == name]
        table.add_row(name, f"{len(rights)}", f"{sum(rights) / len(rights):.1%}")
    return table


def is_right(answer: Answer, conversation: Conversation) -> bool:
    """Tells whether an answer is the right one, to the letter and to its end."""
    return answer.has_ended and answer.text == conversation.answer


def shortfalls(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a sentence for each bar that Pagestream's answers do not reach."""
    bars = [("all tasks together", outcomes, MIN_SHARE)]
    bars += [(name, _of_task(name, outcomes), MIN_TASK_SHARE) for name in TASKS]
    found = []
    for name, part, least in bars:
        share = _num_right(part, "pagestream") / len(part)
        if share < least:
            found.append(f"{name}: {share:.1%} of the answers are right, less than {least:.0%}")
    return found


def _of_task(name: str, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.conversation.task == name]


def _num_right(outcomes: Sequence[Outcome], by: str) -> int:
    return sum(is_right(getattr(outcome, by), outcome.conversation) for outcome in outcomes)


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("task")
    for title in ("questions", "transformers", "Pagestream", "equal answers"):
        table.add_column(title, justify="right")
    for name in TASKS:
        table.add_row(name, *_cells(_of_task(name, outcomes)))
    table.add_section()
    table.add_row("all", *_cells(outcomes))
    return table


def _cells(outcomes: Sequence[Outcome]) -> list[str]:
    num_equal = sum(one.transformers == one.pagestream for one in outcomes)
    counts = (_num_right(outcomes, "transformers"), _num_right(outcomes, "pagestream"), num_equal)
    return [f"{len(outcomes)}", *(f"{count / len(outcomes):.1%}" for count in counts)]


def _print_wrong(outcomes: Sequence[Outcome], console: Console) -> None:
    for outcome in outcomes:
        conversation = outcome.conversation
        differs = outcome.pagestream != outcome.transformers
        if differs or not is_right(outcome.pagestream, conversation):
            question = conversation.question[-1].content
            for title, text in (
                (conversation.task, question[-300:]),
                ("  right", conversation.answer),
                ("  Pagestream", outcome.pagestream.text),
                ("  transformers", outcome.transformers.text),
            ):
                console.print(f"{title}: {text!r}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
