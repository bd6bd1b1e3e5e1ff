"""What every test needs: a log that tells only of the test itself."""

import logging


def pytest_configure() -> None:
    logging.getLogger("asyncio").addFilter(_is_of_an_open_loop)


def _is_of_an_open_loop(record: logging.LogRecord) -> bool:
    """Drops what gRPC logs of calls of an earlier test.

    One poller serves all event loops of a process. What is left of a cancelled call may come out of
    it only once the loop of its test is closed; the loop of the next test, which is to hand it
    over, then logs an error. Services have one loop, which lives as long as they do.
    """
    error = record.exc_info[1] if record.exc_info else None
    is_late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    return not (is_late and "PollerCompletionQueue" in record.getMessage())
