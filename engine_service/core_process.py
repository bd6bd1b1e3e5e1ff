"""What the core process runs, which imports torch and nothing of gRPC."""

import contextlib
import logging
from collections.abc import Callable
from multiprocessing import connection

from engine_service.config import EngineConfig
from engine_service.errors import StartupError
from servicekit.child_process import exit_with_parent
from servicekit.log import set_up_logging
from servicekit.process import exit_at_once

EXIT_ENGINE_FAILED = 1

CoreEntry = Callable[[connection.Connection, EngineConfig], None]
_logger = logging.getLogger("engine_service")


def core_main(entry: CoreEntry, pipe: connection.Connection, config: EngineConfig) -> None:
    """Runs `entry` as the core process; an error ends it with one line.

    Args:
        entry: What it runs, `run_core` unless a test has another.
        pipe: Its end of the pipe to the server.
        config: All settings.
    """
    set_up_logging(config.server.log_level)
    # The pipe stops a core that reads it; this stops one that loads a model or hangs.
    exit_with_parent()
    try:
        entry(pipe, config)
    except StartupError as error:
        with contextlib.suppress(OSError):
            pipe.send(error)
    # Otherwise multiprocessing would write it to standard error.
    except Exception:
        _logger.critical("core failed", exc_info=True)
        raise SystemExit(EXIT_ENGINE_FAILED) from None


def run_core(pipe: connection.Connection, config: EngineConfig) -> None:
    """Runs in the core process: loads the model, reports it, and serves until the pipe ends."""
    # Only this process imports torch.
    from engine_service.core.engine_core import EngineCore, serve
    from engine_service.worker.executor import start_executor

    def end(error: Exception) -> None:
        """Ends this process, whose own rank may be waiting for the lost one for ever."""
        if isinstance(error, StartupError):
            with contextlib.suppress(OSError):
                pipe.send(error)
        else:
            _logger.critical("rank lost detail=%s", error)
        exit_at_once(EXIT_ENGINE_FAILED)

    executor, info = start_executor(config.model, config.cache, config.scheduler, end)
    core = EngineCore(
        info,
        config.scheduler,
        executor,
        enable_prefix_caching=config.cache.enable_prefix_caching,
    )
    pipe.send(info)
    serve(core, pipe)
    core.close()
