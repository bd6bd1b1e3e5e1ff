"""The process of one worker: a router that shares its ports with others."""

import logging
import signal
import socket
from typing import TYPE_CHECKING

from router.errors import StartupError
from router.server.worker_link import CannotStart, WorkerLink
from router.without_torch import do_without_torch
from servicekit.child_process import die_with_parent
from servicekit.log import set_up_logging
from servicekit.process import exit_at_once

if TYPE_CHECKING:
    from router.config import RouterConfig

_EXIT_FAILED = 1
_EXIT_NOT_STARTED = 2

_logger = logging.getLogger(__name__)


def run_worker(
    config: "RouterConfig", number: int, connection: socket.socket, *, waits_until_ready: bool
) -> None:
    """Serves until SIGTERM; ends with the supervisor.

    Args:
        config: The settings, with the ports that the supervisor has reserved.
        number: Which worker it is.
        connection: Leads to the supervisor.
        waits_until_ready: Whether it listens only when it is ready.
    """
    die_with_parent()
    # SIGINT stays blocked: Ctrl-C reaches the supervisor, too, which then sends SIGTERM.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    do_without_torch()
    # Only here, as the supervisor imports this module, too.
    from router.launch import run

    set_up_logging(config.log_level, f"worker={number}")
    link = WorkerLink(connection, waits_until_ready=waits_until_ready)
    try:
        code = run(config, link)
    except StartupError as error:
        link.tell(CannotStart(reason=str(error)))
        code = _EXIT_NOT_STARTED
    # Otherwise multiprocessing would write it to standard error.
    except Exception:
        _logger.critical("worker failed", exc_info=True)
        code = _EXIT_FAILED
    # Not by way of the threads, in which a tokenizer may run for minutes.
    exit_at_once(code)
