"""The process of a rank that runs no steps, and reports what it should not."""

import math
from contextlib import suppress

from tests.engine_service.core.fake_executor import make_rank_stats

WRONG = [
    b"no report",
    {"rank": 1},
    make_rank_stats(rank=0),
    make_rank_stats(num_steps=-1),
    make_rank_stats(lag_seconds=math.nan),
    make_rank_stats(lag_seconds=math.inf),
    make_rank_stats(lag_seconds=None),
    make_rank_stats(collective_seconds="2"),
    make_rank_stats(memory_bytes=None),
]
SOUND = [make_rank_stats(), make_rank_stats(num_steps=8, collective_seconds=None)]


def run_rank(_options, _place, commands, reports, _log_level):
    """Reports, and lives until the first rank closes the connection."""
    reports.send_bytes(b"no pickle")
    for report in (*WRONG, *SOUND):
        reports.send(report)
    with suppress(EOFError):
        commands.recv_bytes()
