"""The evaluation counts to the letter, and its bars are held."""

import pytest

from demo_model import evaluate
from demo_model.answers import Answer
from demo_model.evaluate import Outcome, is_right, shortfalls
from demo_model.generator import TASKS, questions

ASKED = questions("test", 20 * len(TASKS))


def right(conversation):
    return Answer(conversation.answer, has_ended=True)


def outcomes(wrong):
    """Returns outcomes of which Pagestream answers those wrong whose place is in `wrong`."""
    silent = Answer("", has_ended=True)
    return [
        Outcome(one, transformers=right(one), pagestream=silent if place in wrong else right(one))
        for place, one in enumerate(ASKED)
    ]


def test_only_the_whole_answer_with_its_end_is_right():
    conversation = ASKED[0]
    assert is_right(right(conversation), conversation)
    assert not is_right(Answer(conversation.answer, has_ended=False), conversation)
    assert not is_right(Answer(conversation.answer + " ", has_ended=True), conversation)


def test_bars_are_97_percent_of_all_and_90_of_each_task():
    tasks = list(TASKS)
    of_last = [place for place, one in enumerate(ASKED) if one.task == tasks[-1]]
    assert shortfalls(outcomes(set())) == []
    # 2 of 20 are still 90 %, 3 are not.
    assert shortfalls(outcomes(set(of_last[:2]))) == []
    assert shortfalls(outcomes(set(of_last[:3]))) == [
        "unknown: 85.0% of the answers are right, less than 90%"
    ]
    one_of_each = {tasks.index(one.task) for one in ASKED}
    (failure,) = shortfalls(outcomes(one_of_each))
    assert failure == "all tasks together: 95.0% of the answers are right, less than 97%"


def test_fewer_questions_than_tasks_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--questions", "5"])
    assert "--questions is 5; must be at least 18, one for each task" in capsys.readouterr().err


def test_model_that_cannot_be_served_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "_LOG_FOLDER", tmp_path / "logs")
    assert evaluate.main(["--questions", "18", "--model", str(tmp_path / "nothing")]) == 1
    output = capsys.readouterr().out
    assert output.startswith("the evaluation failed: engine-")
    assert "nothing" in output
    assert "Traceback" not in output
