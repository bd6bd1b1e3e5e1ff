"""Assembles an engine from all its parts: its two processes, their signals and their shutdown.

    server  this process: asyncio and gRPC, no torch
    core    scheduler, model and device; connected to the server by one pipe

Neither process outlives the other: each sees the pipe close when the other ends, even if it was
killed.
"""

import asyncio
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING

from engine_service.config import EngineConfig, ModelOptions
from engine_service.core.types import EngineInfo
from engine_service.core_process import EXIT_ENGINE_FAILED, CoreEntry, core_main, run_core
from engine_service.errors import EngineFailed, StartupError
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.name import served_name
from engine_service.server.engine_server import EngineServer
from engine_service.server.tokenizer_files import TokenizerFiles
from servicekit.child_process import start_without_signals
from servicekit.daemon_thread import run_in_daemon_thread
from servicekit.process import exit_at_once, raise_file_limit
from servicekit.signals import Stopped, end_signals

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_CORE_NAME = "pagestream-engine-core"
_CORE_EXIT_SECONDS = 5.0

_logger = logging.getLogger("engine_service")


def run(config: EngineConfig, core_entry: CoreEntry | None = None) -> int:
    """Serves until SIGTERM or SIGINT and returns the process's exit code.

    Args:
        config: All settings.
        core_entry: The function that the core process runs; None is `run_core`.

    Returns:
        0 after a drain or while it loads, `EXIT_ENGINE_FAILED` when the core was lost or stayed
        frozen.

    Raises:
        StartupError: The engine cannot serve; the message says what to do.
    """
    raise_file_limit()
    return asyncio.run(_serve(config, core_entry or run_core))


async def _serve(config: EngineConfig, core_entry: CoreEntry) -> int:
    started_at = time.monotonic()
    core = _CoreProcess(config, core_entry)
    # The server exits first, which ends the pipe and so the core.
    signals = end_signals(core.exit_at_once)
    name = served_name(config.model, Path(config.model.model))
    async with core.ended(), EngineServer.listening(config.server, name) as server:
        try:
            async with signals.interruption():
                info = await _load(config, server, core)
                _log_ready(info, config, server, time.monotonic() - started_at)
                await server.wait_core_lost()
        except Stopped:
            # A lost or frozen core is a failure and leaves nothing to drain.
            if not (server.is_core_lost or server.is_core_frozen):
                if not server.is_ready:
                    core.kill()
                    return 0
                await server.drain()
        return await _end(server, core)


async def _end(server: EngineServer, core: "_CoreProcess") -> int:
    """Logs why the engine ends; returns the exit code."""
    if server.is_core_frozen:
        _logger.error(
            "core lost silence_seconds=%.0f detail=the core process sent no heartbeat and is "
            "killed; the device may hang, or the process may be stopped",
            server.core_silence,
        )
        core.kill()
        return EXIT_ENGINE_FAILED
    if server.is_core_lost:
        _logger.error("core lost detail=%s", await core.exit_reason())
        return EXIT_ENGINE_FAILED
    _logger.info("drained")
    return 0


async def _load(config: EngineConfig, server: EngineServer, core: "_CoreProcess") -> EngineInfo:
    model, tokenizer = await run_in_daemon_thread(lambda: _check_model(config.model), "model-check")
    _logger.info(
        "loading model=%s port=%d operations_port=%d pid=%d",
        config.model.model,
        server.port,
        server.operations_port,
        os.getpid(),
    )
    try:
        return await server.serve(core.start(model), tokenizer)
    except EngineFailed:
        raise StartupError(await core.exit_reason()) from None


def _log_ready(
    info: EngineInfo, config: EngineConfig, server: EngineServer, seconds: float
) -> None:
    _logger.info(
        "ready model=%s host=%s port=%d operations_port=%d device=%s dtype=%s num_blocks=%d "
        "block_size=%d max_model_len=%d seconds=%.1f",
        info.model_name,
        config.server.host,
        server.port,
        server.operations_port,
        info.device,
        info.dtype,
        info.num_blocks,
        info.block_size,
        info.max_model_len,
        seconds,
    )


class _CoreProcess:
    """The core process; it has ended when the block of `ended` is left."""

    def __init__(self, config: EngineConfig, entry: CoreEntry) -> None:
        self._config = config
        self._entry = entry
        self._process: SpawnProcess | None = None

    def start(self, model: ModelOptions) -> connection.Connection:
        """Starts the process with this model; returns the server's end of the pipe."""
        config = dataclasses.replace(self._config, model=model)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=core_main, args=(self._entry, theirs, config), name=_CORE_NAME
        )
        start_without_signals(process)
        # Otherwise the pipe would stay open when the core ends.
        theirs.close()
        self._process = process
        return ours

    def kill(self) -> None:
        """Kills the process, if there is one."""
        if self._process is not None:
            self._process.kill()

    def exit_at_once(self, code: int) -> None:
        """Ends both processes at once, without waiting for anything."""
        self.kill()
        _logger.warning("engine ends with requests in progress reason=second signal")
        exit_at_once(code)

    @contextlib.asynccontextmanager
    async def ended(self) -> AsyncIterator[None]:
        """Ensures that the process has ended afterwards; the body should close its pipe."""
        try:
            yield
        finally:
            if self._process is not None:
                await asyncio.to_thread(self._process.join, _CORE_EXIT_SECONDS)
                self._process.kill()
                await asyncio.to_thread(self._process.join, _CORE_EXIT_SECONDS)
                if self._process.is_alive():
                    _logger.error(
                        "core process left behind pid=%d detail=it was killed but does not end, "
                        "most likely because it hangs in the driver of its device",
                        self._process.pid,
                    )
                    # A normal exit would wait for it.
                    exit_at_once(EXIT_ENGINE_FAILED)

    async def exit_reason(self) -> str:
        """Returns how the process ended, once its pipe has ended."""
        assert self._process is not None, "not started"
        await asyncio.to_thread(self._process.join, _CORE_EXIT_SECONDS)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return (
                "the core process was killed, most likely by the system because memory ran out; "
                "give the engine more memory, lower --num-blocks or choose a smaller model"
            )
        return f"the core process ended with exit code {code}; its log above says why"


def _check_model(options: ModelOptions) -> tuple[ModelOptions, TokenizerFiles]:
    """Finds the model's folder, from the hub if needed, and refuses what cannot be served.

    This runs before the core process starts, which takes seconds.

    Returns:
        The options for the core, and the tokenizer files. The options name a folder, because a
        second request to the hub might give another version, whose weights do not fit these files.
    """
    checkpoint = resolve_checkpoint(options.model, with_weights=options.load_format != "dummy")
    config_file = checkpoint.folder / "config.json"
    model_config = parse_config(checkpoint.read_config(), str(config_file))
    model_config.check_ranks(options.tensor_parallel_size)
    paths = list(checkpoint.tokenizer_files)
    # AutoTokenizer reads the tokenizer class from there if tokenizer_config.json has none.
    tokenizer = TokenizerFiles.read([*paths, config_file] if paths else [])
    if checkpoint.folder != Path(options.model).expanduser():
        name = options.served_model_name or Path(options.model).name
        options = dataclasses.replace(options, model=str(checkpoint.folder), served_model_name=name)
    return options, tokenizer
