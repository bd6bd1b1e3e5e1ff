"""What a check has found."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """How a check ended."""

    OK = "OK"
    NOTE = "note"
    """Works, but may not be what is wanted."""
    MISSING = "missing"
    """Something that is needed is not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        state: How it ended.
        detail: What was found, and, unless it is OK, what to do.
    """

    name: str
    state: State
    detail: str


def as_text(findings: Iterable[Finding]) -> str:
    """Returns the findings for a person, one a line."""
    rows = list(findings)
    width = max(len(one.name) for one in rows)
    lines = [f"{one.state.value:7}  {one.name:{width}}  {one.detail}" for one in rows]
    num_missing = sum(one.state is State.MISSING for one in rows)
    lines += ["", f"{num_missing} missing" if num_missing else "nothing is missing"]
    return "\n".join(lines)


def as_json(findings: Iterable[Finding]) -> dict[str, object]:
    """Returns the findings for a program."""
    rows = list(findings)
    return {
        "ok": all(one.state is not State.MISSING for one in rows),
        "checks": [
            {"name": one.name, "state": one.state.value.lower(), "detail": one.detail}
            for one in rows
        ],
    }
