"""Starts an engine: `python -m engine_service --model ... --port ...`."""

import signal
import sys
from collections.abc import Sequence

from engine_service.config import PROGRAM, read_config
from engine_service.errors import StartupError
from engine_service.installation import check_installation, check_vllm_protocol
from servicekit.log import print_error, set_up_logging
from servicekit.process import exit_code_of


def main(arguments: Sequence[str], program: str = PROGRAM) -> int:
    """Serves until SIGTERM; returns the process's exit code.

    Args:
        arguments: The command line without the program's name.
        program: The command as it was called, for `--help`.
    """
    try:
        config = read_config(arguments, program=program)
        check_installation()
        if config.server.vllm_grpc:
            check_vllm_protocol()
        # Not before the options are checked: `--help` and a wrong option are answered at once.
        from engine_service.launch import run

        set_up_logging(config.server.log_level)
        return run(config)
    except StartupError as error:
        print_error("engine_service", error)
        return 2
    # Before the service takes signals as it should, and after.
    except KeyboardInterrupt:
        return exit_code_of(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
