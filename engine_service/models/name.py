"""The name by which clients request a model."""

from pathlib import Path

from engine_service.config import ModelOptions
from engine_service.errors import StartupError
from protos.wire.printable import NAME_RULE, is_name, shown


def served_name(options: ModelOptions, folder: Path) -> str:
    """Returns the model's name: the configured one, else the name of its folder.

    Args:
        options: The model's options.
        folder: The folder of its files.

    Raises:
        StartupError: The folder's name is not valid as a model name.
    """
    if options.served_model_name:
        return options.served_model_name
    name = Path(options.model).name or folder.resolve().name
    if not is_name(name):
        raise StartupError(
            f'the folder\'s name "{shown(name)}" is not a valid model name, which has {NAME_RULE}; '
            "set --served-model-name"
        )
    return name
