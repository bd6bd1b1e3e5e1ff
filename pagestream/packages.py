"""Which packages of the extras are installed."""

import sys
from importlib.util import find_spec

from engine_service.installation import check_installation
from servicekit.errors import StartupError

_ROUTER_MODULES = (
    "httptools",
    "jinja2",
    "numpy",
    "pydantic",
    "regex",
    "starlette",
    "tokenizers",
    "transformers",
    "uvicorn",
    "uvloop",
)
"""Import names of the packages in the extra `router`."""


def check_router_packages() -> None:
    """Checks, without importing, that a router finds its packages.

    Raises:
        StartupError: Packages are missing; says what to install.
    """
    missing = [name for name in _ROUTER_MODULES if find_spec(name) is None]
    if missing:
        raise StartupError(
            f"packages are not installed: {', '.join(missing)}; to install all that a router "
            f"needs, run {sys.executable} -m pip install 'pagestream[router]'"
        )


def check_engine_packages() -> None:
    """Checks, without importing, that an engine finds its packages.

    Raises:
        StartupError: Packages are missing or are others; says what to install.
    """
    check_installation()
