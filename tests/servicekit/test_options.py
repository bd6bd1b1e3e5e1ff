"""The machinery itself, on options of no service; each service tests its own options."""

import dataclasses
import re
from dataclasses import dataclass, field

import pytest

from servicekit.errors import StartupError
from servicekit.options import OptionReader, Options, about
from servicekit.values import Flags, Integers, Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Kettle(Options):
    """What heats."""

    fluid: str = field(metadata=about(Texts("tea|milk", "tea or milk"), "what to heat"))
    max_cups: int = field(default=2, metadata=about(Integers(1, 9), "100 % full at so many"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Options):
    """What stands around."""

    num_legs: int | None = field(
        default=None, metadata=about(Integers(1, 9), "legs", unset="as many as chairs")
    )
    is_round: bool = field(default=True, metadata=about(Flags(), "no corners"))


READER = OptionReader(
    program="kitchen",
    description="Makes tea.",
    prefix="KITCHEN_",
    groups={"kettle": Kettle, "table": Table},
    refused={"sugar": "it is not tea with sugar in it"},
)
TEA = ["--fluid", "tea"]


def read(arguments, environment=()):
    given = READER.read(arguments, dict(environment))
    return given.build(Kettle), given.build(Table)


def test_each_class_gets_its_own_options_and_defaults_for_the_rest():
    assert read([*TEA, "--num-legs", "3"]) == (Kettle(fluid="tea"), Table(num_legs=3))


def test_command_line_wins_and_each_value_knows_where_it_is_from():
    given = READER.read([*TEA, "--no-is-round"], {"KITCHEN_FLUID": "milk", "KITCHEN_MAX_CUPS": "3"})

    assert given.values == {"fluid": "tea", "max_cups": 3, "is_round": False}
    assert given.sources == {
        "fluid": "--fluid",
        "max_cups": "KITCHEN_MAX_CUPS",
        "is_round": "--is-round",
    }


def test_variables_of_the_process_are_read_when_none_are_given(monkeypatch):
    monkeypatch.setenv("KITCHEN_NUM_LEGS", "4")

    assert READER.read(TEA).build(Table) == Table(num_legs=4)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "--fluid (or KITCHEN_FLUID) is required: what to heat; --help lists the options"),
        (["--fluid", "oil"], {}, "--fluid is 'oil', must be tea or milk"),
        (
            TEA,
            {"KITCHEN_CUPS": "1"},
            "environment variable KITCHEN_CUPS matches no option; did you mean KITCHEN_MAX_CUPS?",
        ),
        (
            TEA,
            {"KITCHEN_SINK": "1"},
            "environment variable KITCHEN_SINK matches no option; correct or unset it; "
            "--help lists the options",
        ),
        (
            TEA,
            {"KITCHEN_PORT": "tcp://10.0.0.1:1"},
            "environment variable KITCHEN_PORT matches no option; Kubernetes sets this variable "
            "for a Service of this name: set enableServiceLinks to false in the pod spec",
        ),
        (TEA, {"KITCHEN_IS_ROUND": "yes"}, "KITCHEN_IS_ROUND is 'yes', must be true or false"),
        ([*TEA, "--max", "1"], {}, "--max is no option; did you mean --max-cups?"),
        ([*TEA, "-max_cups=1"], {}, "-max_cups is no option; did you mean --max-cups?"),
        ([*TEA, "—max-cups"], {}, "—max-cups is no option; did you mean --max-cups?"),
        ([*TEA, "--salt"], {}, "--salt is no option; --help lists the options"),
        ([*TEA, "--sugar"], {}, "--sugar is no option: it is not tea with sugar in it"),
        ([*TEA, "--max-cups"], {}, "--max-cups needs a value: 100 % full at so many"),
        ([*TEA, "--config"], {}, "--config needs a value: a YAML file of options"),
        (
            [*TEA, "--is-round", "true"],
            {},
            "'true' belongs to no option; --help lists the options",
        ),
        (
            [*TEA, "--no-is-round=true"],
            {},
            "--is-round takes no value; write --is-round or --no-is-round",
        ),
    ],
)
def test_wrong_option_or_variable_is_refused_in_one_line(arguments, environment, message):
    with pytest.raises(StartupError) as caught:
        read(arguments, environment)
    assert caught.value.message == message


def test_wrong_variable_is_no_matter_where_the_command_line_says_otherwise():
    assert read(TEA, {"KITCHEN_FLUID": "oil"})[0].fluid == "tea"


def test_variables_of_others_are_left_alone():
    read(TEA, {"KITCHENETTE": "1", "OTHER_FLUID": "oil"})


def test_options_made_in_code_are_checked_by_the_name_of_their_field():
    with pytest.raises(StartupError, match=r"^max_cups is 10, must be an integer from 1 to 9$"):
        Kettle(fluid="tea", max_cups=10)
    with pytest.raises(StartupError, match=r"^num_legs is 0, must be"):
        dataclasses.replace(Table(num_legs=1), num_legs=0)


def test_help_gives_meaning_default_and_variable(capsys):
    with pytest.raises(SystemExit) as caught:
        READER.read(["--help"], {"KITCHEN_WRONG": "1"})

    assert caught.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for part in (
        "Makes tea. A command line option wins over its environment variable, and that over the "
        "file of --config.",
        "--config FILE YAML file of options, one `option: value` per line (KITCHEN_CONFIG)",
        "kettle: What heats.",
        "--fluid VALUE what to heat (required; KITCHEN_FLUID)",
        "--max-cups VALUE 100 % full at so many (default: 2; KITCHEN_MAX_CUPS)",
        "--num-legs VALUE legs (default: as many as chairs; KITCHEN_NUM_LEGS)",
        "--is-round, --no-is-round no corners (default: on; KITCHEN_IS_ROUND)",
    ):
        assert part in text
