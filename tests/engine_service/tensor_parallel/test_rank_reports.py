"""What ranks report of themselves, and what becomes of reports that are wrong or do not come."""

import os
import signal
import threading
import time

import pytest
import torch

from engine_service.errors import EngineFailed
from engine_service.layers.ranks import Ranks
from engine_service.llm import LLM, SamplingParams
from engine_service.worker import peers as peers_module
from engine_service.worker.peers import Peers
from engine_service.worker.process_group import Place
from engine_service.worker.rank_meter import RankMeter, reporting
from tests.engine_service.tensor_parallel import talking_rank

SECONDS = 30.0
CPU = torch.device("cpu")


def until(is_true):
    end = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def said(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


@pytest.fixture
def talking(monkeypatch):
    """Ranks of which the second is a process that reports anything; and why one was lost."""
    monkeypatch.setattr(peers_module, "run_rank", talking_rank.run_rank)
    lost = []
    peers = Peers.start(None, [Place(rank=1, size=2, port=0)], lost.append)
    peers.note_started(RankMeter(Ranks(), CPU))
    yield peers, lost
    peers.kill()


def test_wrong_reports_are_dropped_and_do_no_harm(talking, caplog):
    peers, lost = talking
    reports = []

    def has_all():
        reports.extend(stats for stats in peers.take_stats() if stats.rank == 1)
        return len(reports) >= len(talking_rank.SOUND)

    until(has_all)

    assert reports == talking_rank.SOUND
    assert len(said(caplog, "rank report unusable rank=1 report=")) == 1
    assert not peers.has_lost
    peers._peers[0].process.kill()
    until(lambda: lost)
    assert isinstance(lost[0], EngineFailed)
    assert "rank 1: its process was ended by signal 9" in str(lost[0])


def test_rank_that_stops_reporting_is_named_once(talking, caplog):
    peers, lost = talking
    os.kill(peers._peers[0].process.pid, signal.SIGSTOP)

    until(lambda: said(caplog, "rank silent"))

    peers._peers[0].note_silence(9.0)
    [line] = said(caplog, "rank silent")
    assert line.startswith("rank silent rank=1 seconds=")
    assert not lost


def test_reports_nobody_takes_are_bounded(talking, monkeypatch):
    peers, _ = talking
    until(lambda: len(peers._watch.reports) > 2)

    peers._watch.reports.extend(talking_rank.SOUND * 1000)

    assert len(peers.take_stats()) <= peers_module._MAX_REPORTS


def test_all_ranks_count_the_same_steps(tiny_model):
    options = {"device": "cpu", "cpu_threads": 1, "block_size": 16, "num_blocks": 40}
    with LLM(str(tiny_model.folder), tensor_parallel_size=2, **options) as llm:
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=20, ignore_eos=True), use_tqdm=False)
        executor = llm._core._executor
        latest = {}

        def is_counted():
            latest.update({stats.rank: stats for stats in executor.take_rank_stats()})
            return [stats.num_steps for stats in latest.values()] == [20, 20]

        until(is_counted)
        for stats in latest.values():
            assert 0 < stats.lag_seconds < SECONDS
            assert 0 < stats.collective_seconds < SECONDS
            assert stats.memory_bytes > 10e6


def test_single_rank_counts_and_reports_nothing(tiny_model):
    before = {thread.name for thread in threading.enumerate()}
    with LLM(str(tiny_model.folder), device="cpu", num_blocks=40) as llm:
        llm.generate([[1, 2]], SamplingParams(max_tokens=3), use_tqdm=False)
        assert llm._core._executor.take_rank_stats() == ()
        assert llm._core.step().rank_stats == ()
        assert not {"rank-report", "rank-watch"} & (
            {thread.name for thread in threading.enumerate()} - before
        )


class TimedRanks(Ranks):
    """A rank whose time in collectives the test says; None as on a GPU."""

    seconds = 0.0

    @property
    def collective_seconds(self):
        return self.seconds


def test_meter_counts_from_its_own_start():
    ranks = TimedRanks(3, 4)
    ranks.seconds = 100.0
    meter = RankMeter(ranks, CPU)

    assert (meter.read().rank, meter.read().num_steps, meter.read().lag_seconds) == (3, 0, 0.0)
    assert meter.read().collective_seconds == 0
    ranks.seconds = 102.5
    meter.begin_step(time.monotonic() - 10)
    meter.begin_step(time.monotonic() - 20)

    stats = meter.read()
    assert stats.num_steps == 2
    assert 30 <= stats.lag_seconds < 30 + SECONDS
    assert stats.collective_seconds == 2.5


def test_time_in_collectives_is_unknown_where_the_host_cannot_see_them():
    ranks = TimedRanks(1, 2)
    ranks.seconds = None

    assert RankMeter(ranks, CPU).read().collective_seconds is None
    on_gpu = Ranks()
    on_gpu.connect(torch.device("cuda"), 64, torch.bfloat16, 100)
    assert on_gpu.collective_seconds is None


def test_memory_that_cannot_be_asked_stays_as_it_was(monkeypatch):
    meter = RankMeter(Ranks(), CPU)
    known = meter.read().memory_bytes

    def fail(_device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("engine_service.worker.rank_meter._memory_bytes", fail)
    assert meter.read().memory_bytes == known > 0


def test_reports_end_with_the_block_or_with_their_reader():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "rank-report"]

    def gone(_stats):
        raise BrokenPipeError

    reports = []
    with reporting(RankMeter(Ranks(), CPU), reports.append):
        until(lambda: len(reports) > 1)
        assert len(threads()) == 1
    assert not threads()
    with reporting(RankMeter(Ranks(), CPU), gone):
        until(lambda: not threads())
