"""The packages of the extra `cli`, which only some commands need."""

import importlib
from types import ModuleType

from servicekit.errors import StartupError

_PACKAGES = {"httpx", "rich"}


def import_with_extra(module: str) -> ModuleType:
    """Imports a module of ours that needs the extra.

    Raises:
        StartupError: The extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise StartupError(
            f"the package {package} is missing: pip install 'pagestream[cli]'"
        ) from None
