"""Why a command of a client ends without what it was asked for."""

from servicekit.errors import ServiceError


class CommandFailed(ServiceError):
    """The command was understood and could not be done; exit code 1."""
