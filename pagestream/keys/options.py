"""The options of `pagestream keys`."""

from dataclasses import dataclass, field
from pathlib import Path

from router.access.keys_file import NAMES, Key
from servicekit.options import OptionReader, Options, Without, about
from servicekit.values import OneOf, Paths


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysOptions(Options):
    """What to do."""

    action: str = field(
        metadata=about(
            OneOf(("create", "list", "revoke")),
            "create, list or revoke",
            is_positional=True,
        )
    )
    name: str = field(
        default="",
        metadata=about(NAMES, "the key's name, to create or revoke it", is_positional=True),
    )
    file: Path = field(metadata=about(Paths(), "the file that routers have as --api-keys-file"))


NOT_GIVEN = {"name", "sha256"}
"""What a key has beside its own options."""

READER = OptionReader(
    program="pagestream keys",
    description="Makes, lists and revokes the API keys of a router. A new key is written to "
    "standard output once, and kept nowhere: the file has its SHA-256.",
    prefix="PAGESTREAM_KEYS_",
    groups={"keys": KeysOptions, "create": Without(Key, NOT_GIVEN)},
)
