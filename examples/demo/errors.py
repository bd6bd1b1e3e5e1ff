"""What ends the demo with a sentence instead of its table."""


class DemoFailedError(Exception):
    """The demo cannot go on; the message says why."""


class ServiceFailedError(DemoFailedError):
    """A service ended, or did not become ready in time; the message holds its last words."""
