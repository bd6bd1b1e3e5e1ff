"""Compares the router with transformers for every tokenizer that a package bundles.

    python -m tests.tokenizers [NAME ...]

Texts are encoded, tokens are decoded at every split, alone and behind a prompt, and chats are laid
out where there is a template. Packages come into .venv-tokenizers, and nothing of them elsewhere.
"""

import argparse
import logging
import sys

from rich.console import Console
from rich.table import Table

from tests.clients.commands import ToolFailedError
from tests.tokenizers.chats import compare_chats
from tests.tokenizers.comparison import compare, load
from tests.tokenizers.packages import BUNDLED, Bundled

_MAX_SHOWN = 10
_WIDTH = 140
"""Columns of the table."""


def main() -> int:
    """Prints the table; returns 0 if nothing differs and everything could be fetched."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m tests.tokenizers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [bundled.name for bundled in BUNDLED]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(names)}")
    given = parser.parse_args().names or names
    if unknown := set(given).difference(names):
        parser.error(f"unknown name: {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    # transformers warns of the settings of these files.
    logging.disable(logging.WARNING)
    console = Console(highlight=False, width=_WIDTH)
    columns = ("name", "package", "family", "vocabulary", "texts", "sequences", "splits", "chats")
    table = Table(*columns, "result")
    is_well = True
    for bundled in BUNDLED:
        if bundled.name in given:
            row = _row(bundled, console)
            is_well = is_well and row[-1] == "equal"
            table.add_row(bundled.name, f"{bundled.package} {bundled.version}", *row)
    console.print(table)
    return 0 if is_well else 1


def _row(bundled: Bundled, console: Console) -> list[str]:
    """Compares one tokenizer, and returns its cells of the table from the family on."""
    if not bundled.is_available:
        return [bundled.family, "", "", "", "", "", f"{bundled.registry} is missing"]
    console.print(f"{bundled.name} is compared")
    try:
        files = bundled.fetch()
    except ToolFailedError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return [bundled.family, "", "", "", "", "", "not fetched"]
    outcome = compare(files)
    differences = outcome.differences
    ours, reference = load(files)
    num_chats = 0
    try:
        if reference.chat_template:
            chats, _ = compare_chats(ours, reference)
            num_chats = chats.num_texts
            differences += chats.differences
    finally:
        ours.close()
    for difference in differences[:_MAX_SHOWN]:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    numbers = (
        ours.backend.get_vocab_size(),
        outcome.num_texts,
        outcome.num_sequences,
        outcome.num_splits,
        num_chats,
    )
    result = f"{len(differences)} differ" if differences else "equal"
    return [bundled.family, *(f"{number:,}" for number in numbers), result]


if __name__ == "__main__":
    sys.exit(main())
