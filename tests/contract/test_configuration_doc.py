"""docs/configuration.md lists exactly the options that services and commands have."""

import dataclasses
import re
from pathlib import Path

import pytest

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions, ServerOptions
from pagestream.bench.options import GROUPS as BENCH
from pagestream.chat.options import GROUPS as CHAT
from pagestream.serve.options import ServeOptions
from pagestream.top.options import GROUPS as TOP
from router.config import RouterConfig
from servicekit.values import Integers, Numbers

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
HEADINGS = {
    "Serve": ServeOptions,
    "Router": RouterConfig,
    "Engine: model": ModelOptions,
    "Engine: cache": CacheOptions,
    "Engine: scheduler": SchedulerOptions,
    "Engine: server": ServerOptions,
    **{f"pagestream chat: {title.lower()}": kind for title, kind in CHAT.items()},
    **{f"pagestream top: {title.lower()}": kind for title, kind in TOP.items()},
    **{f"pagestream bench: {title.lower()}": kind for title, kind in BENCH.items()},
}


def row(option: dataclasses.Field) -> str:
    if option.default is dataclasses.MISSING:
        default = "required"
    else:
        default = option.metadata.get("unset") or f"`{option.default}`"
    if option.type is bool or option.type == "bool":
        default = "on" if option.default else "off"
    is_positional = option.metadata["is_positional"]
    name = option.name.upper() if is_positional else f"--{option.name.replace('_', '-')}"
    return f"| `{name}` | {default} | {option.metadata['help']} |"


@pytest.mark.parametrize("heading", HEADINGS)
def test_table_equals_the_options_of_the_parser(heading):
    expected = [row(option) for option in dataclasses.fields(HEADINGS[heading])]
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section, f"no section {heading!r}"
    lines = [line for line in section[1].splitlines() if re.match(r"\| `(--|[A-Z]+`)", line)]
    assert lines == expected, "expected:\n" + "\n".join(expected)


def test_table_of_units_holds_every_option_that_takes_them():
    section = re.search(r"^\*\*Units\*\*(.*?)^## ", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section
    patterns = [one.replace("…", "[a-z-]+") for one in re.findall(r"`--([a-z…-]+)`", section[1])]
    assert len(patterns) > 10
    services = [kind for heading, kind in HEADINGS.items() if not heading.startswith("pagestream")]
    for kind in services:
        for option in dataclasses.fields(kind):
            values = option.metadata["values"]
            takes_units = isinstance(values, Integers | Numbers) and values.units is not None
            name = option.name.replace("_", "-")
            assert takes_units == any(re.fullmatch(one, name) for one in patterns), name


def test_every_option_of_ours_beside_an_original_name_exists():
    section = re.search(r"^## Names of the original(.*)\Z", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section
    named = set(re.findall(r"`--([a-z-]+)`", section[1]))
    known = {
        o.name.replace("_", "-") for kind in HEADINGS.values() for o in dataclasses.fields(kind)
    }
    assert named
    assert named <= known
