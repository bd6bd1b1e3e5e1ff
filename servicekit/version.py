"""Which version of the software runs."""

import importlib.metadata


def software_version() -> str:
    """Returns the version of the installed software, or "unknown" in a bare source tree."""
    try:
        return importlib.metadata.version("pagestream")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
