"""The name that clients ask for a model by."""

from pathlib import Path

from engine_service.config import ModelOptions
from engine_service.errors import StartupError
from protos.wire.printable import NAME_RULE, is_name, shown


def served_name(options: ModelOptions, folder: Path) -> str:
    """Returns the model's name: the one that was chosen, or else its folder's.

    Args:
        options: The model's.
        folder: Where its files are.

    Raises:
        StartupError: The folder's name can be none of a model.
    """
    if options.served_model_name:
        return options.served_model_name
    name = Path(options.model).name or folder.resolve().name
    if not is_name(name):
        raise StartupError(
            f"the folder's name \"{shown(name)}\" cannot be the model's, which has {NAME_RULE}; "
            "choose one with --served-model-name"
        )
    return name
