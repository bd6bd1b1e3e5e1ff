"""An engine service with a fault: the keys and values of each token are stored one slot off.

    python -m tests.fakes.mutant_engine --model DIR --port 0 --operations-port 0

Tests of parity that go through real processes must notice it.
"""

import sys

import pytest

from engine_service import launch
from engine_service.config import read_config
from servicekit.log import set_up_logging
from tests.engine_service.mutants import shift_one_kv_slot


def run_mutant_core(pipe, config):
    """Does what `launch.run_core` does, with the fault."""
    shift_one_kv_slot(pytest.MonkeyPatch())
    launch.run_core(pipe, config)


if __name__ == "__main__":
    config = read_config(sys.argv[1:])
    set_up_logging(config.server.log_level)
    sys.exit(launch.run(config, run_mutant_core))
