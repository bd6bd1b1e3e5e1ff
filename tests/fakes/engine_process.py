"""An engine service whose processes are real and whose model is not: the core runs a fake executor.

    python -m tests.fakes.engine_process --model DIR --port 0 --operations-port 0

A step takes some milliseconds. The served name `no-memory` makes the core refuse to start, `crash`
makes it die while it loads, `hang` makes it load for ever, and `hanging-step` makes every step of
more than one sequence hang, as a device does that does not answer.
"""

import os
import signal
import sys
import threading

from engine_service.config import read_config
from engine_service.core.engine_core import EngineCore, serve
from engine_service.errors import StartupError
from servicekit.log import print_error, set_up_logging
from tests.engine_service.core.fake_executor import FakeExecutor, make_info

_STEP_SECONDS = 0.005


class SlowExecutor(FakeExecutor):
    """A fake executor whose steps take time."""

    def collect(self, handle):
        if self.info.model_name == "hanging-step" and len(self.in_flight[0][1][0]) > 1:
            threading.Event().wait()
        threading.Event().wait(_STEP_SECONDS)
        return super().collect(handle)


def run_fake_core(pipe, config):
    """Stands in for `core_process.run_core`."""
    name = config.model.served_model_name
    if name == "no-memory":
        raise StartupError("no memory for one block of 1024 bytes; lower --block-size")
    if name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        threading.Event().wait()
    info = make_info(
        model_name=name or "fake",
        max_model_len=config.model.max_model_len or 4096,
        block_size=config.cache.block_size,
        num_blocks=config.cache.num_blocks or 256,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
    )
    core = EngineCore(info, config.scheduler, SlowExecutor(info))
    pipe.send(info)
    serve(core, pipe)


def main():
    """Does what `python -m engine_service` does, with the other core."""
    # Not above: the core imports this module too, and is no server.
    from engine_service.launch import run

    try:
        config = read_config(sys.argv[1:])
        set_up_logging(config.server.log_level)
        return run(config, run_fake_core)
    except StartupError as error:
        print_error("engine_service", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
