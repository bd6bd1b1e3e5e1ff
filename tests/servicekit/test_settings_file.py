"""A file of settings, as a command reads it beside its command line and its variables."""

import re

import pytest

from servicekit.errors import StartupError
from servicekit.values import Flags
from tests.servicekit.test_options import READER, TEA, Kettle, Table


def read(tmp_path, text, arguments=(), environment=()):
    file = tmp_path / "tea.yaml"
    file.write_text(text, encoding="utf-8")
    return READER.read(["--config", str(file), *arguments], dict(environment))


def test_file_gives_what_neither_command_line_nor_variables_give(tmp_path):
    text = "# at four\nfluid: tea\nmax-cups: 2  # big ones\nnum_legs: 3\nis-round: false\n"

    given = read(tmp_path, text, ["--num-legs", "4"], {"KITCHEN_MAX_CUPS": "5"})

    assert given.build(Kettle) == Kettle(fluid="tea", max_cups=5)
    assert given.build(Table) == Table(num_legs=4, is_round=False)
    assert given.sources["fluid"] == f"{tmp_path}/tea.yaml:2 fluid"


def test_variable_names_the_file_and_the_command_line_another(tmp_path):
    (tmp_path / "other.yaml").write_text("fluid: milk")
    variables = {"KITCHEN_CONFIG": str(tmp_path / "other.yaml")}

    assert READER.read([], variables).build(Kettle).fluid == "milk"
    assert read(tmp_path, "fluid: tea", (), variables).build(Kettle).fluid == "tea"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_file_may_be_empty(tmp_path, text):
    assert read(tmp_path, text, TEA).build(Kettle) == Kettle(fluid="tea")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fluid: tea\nmax-cup: 2", ":2 max-cup is no option; did you mean max-cups?"),
        ("salt: 1", ":1 salt is no option; --help lists the options"),
        ("sugar: 1", ":1 sugar is no option: it is not tea with sugar in it"),
        ("max-cups: 10", ":1 max-cups is 10, must be an integer from 1 to 9"),
        ("is-round: yes", ":1 is-round is 'yes', must be true or false"),
        ("max-cups: 1\nmax_cups: 2", ":2 max_cups is given twice; remove one of them"),
        ("max-cups:", ":1 max-cups has no value; give it one or remove the line"),
        ("max-cups: [1]", ":1 max-cups is a list, but takes one value"),
        ("max-cups: {a: 1}", ":1 max-cups is nested; write its value on the same line"),
        ("fluid: !!python/name:os.system x", ":1 fluid has the tag 'tag:yaml.org,2002:python/"),
        ("fluid: !x tea", ":1 fluid has the tag '!x'; remove it"),
        ("? [a]\n: 1", ":1 has a key that is no name of an option"),
        ("- fluid", ":1 is no setting; write option: value on each line"),
        ("fluid tea", ":1 is no setting; write option: value on each line"),
    ],
)
def test_wrong_line_is_refused_with_its_number(tmp_path, text, message):
    with pytest.raises(StartupError) as caught:
        read(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path}/tea.yaml{message}")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 'b", "is no YAML: found unexpected end of stream in line 1"),
        (b"a: 1\n--- \nb: 1", "is no YAML: but found another document in line 2"),
        (b"a: \xff", "is no YAML: invalid start byte"),
        (b"a: \x00", "is no YAML: special characters are not allowed"),
        (b"[" * 2_000, "is nested too deeply"),
        (b'a: "\\U00110000"', "is no YAML: it is malformed"),
        (b'a: "\\U99999999"', "is no YAML: it is malformed"),
        (b"%YAML 1." + b"9" * 5_000 + b"\n---\na: 1", "is no YAML: it is malformed"),
        (b"a: 1\n" * 20_000, "has more than 65536 bytes"),
    ],
)
def test_file_that_holds_no_settings_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "tea.yaml"
    file.write_bytes(content)

    with pytest.raises(StartupError) as caught:
        READER.read(["--config", str(file)], {})
    assert caught.value.message == f"the settings file {file} {message}"


def test_references_cannot_grow(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]

    with pytest.raises(StartupError, match="a1 is nested"):
        read(tmp_path, "\n".join(lines))


def test_missing_file_is_named(tmp_path):
    message = re.escape(f"the settings file {tmp_path} cannot be read: Is a directory")
    with pytest.raises(StartupError, match=f"^{message}$"):
        READER.read(["--config", str(tmp_path)], {})


def test_flag_of_a_file_is_a_boolean(tmp_path):
    assert isinstance(READER.fields["is_round"].metadata["values"], Flags)
    assert read(tmp_path, "is-round: true", TEA).values["is_round"] is True
