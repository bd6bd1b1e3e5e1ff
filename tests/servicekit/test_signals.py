import asyncio
import functools
import os
import queue
import signal

import pytest

from servicekit import process
from servicekit.process import exit_within
from servicekit.signals import Stopped, end_signals

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def never(code):
    raise AssertionError(f"told to end with {code}")


def send(number):
    os.kill(os.getpid(), number)


async def test_second_signal_ends_the_process_whatever_its_end_waits_for(monkeypatch):
    ended = queue.SimpleQueue()
    monkeypatch.setattr(process, "exit_at_once", ended.put)
    async with asyncio.timeout(10):
        signals = end_signals(functools.partial(exit_within, 0.01))
        send(signal.SIGTERM)
        await signals.wait_first()
        assert signals.exit_code == 0
        # Nobody waits for these yet.
        send(signal.SIGINT)
        send(signal.SIGTERM)
        await signals.wait_second()

    assert signals.exit_code == 128 + signal.SIGINT
    assert ended.get(timeout=10) == 128 + signal.SIGINT
    assert ended.empty()


async def wait_for_ever(signals, *numbers):
    async with signals.interruption():
        for number in numbers:
            send(number)
        await asyncio.Event().wait()


@pytest.mark.parametrize("number", SIGNALS)
async def test_first_signal_leaves_the_block_that_it_interrupts(number):
    async with asyncio.timeout(10):
        signals = end_signals(never)
        with pytest.raises(Stopped):
            await wait_for_ever(signals, number)

    assert signals.exit_code == 0


async def test_block_that_begins_after_the_first_signal_is_left_at_once():
    async with asyncio.timeout(10):
        signals = end_signals(never)
        send(signal.SIGTERM)
        await signals.wait_first()
        with pytest.raises(Stopped):
            await wait_for_ever(signals)


async def test_timeout_of_the_block_itself_is_no_signal():
    signals = end_signals(never)
    with pytest.raises(TimeoutError):
        async with signals.interruption():
            raise TimeoutError


async def test_signal_between_blocks_interrupts_nothing():
    async with asyncio.timeout(10):
        signals = end_signals(never)
        async with signals.interruption():
            pass
        send(signal.SIGTERM)
        await signals.wait_first()
        await asyncio.sleep(0)


def test_signals_are_handled_until_the_loop_is_closed_and_as_before_afterwards():
    signals = []

    async def shut_down():
        signals.append(end_signals(never))
        await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(shut_down())
        # The loop is not running, and what the process ends with stands already.
        send(signal.SIGTERM)
        runner.run(signals[0].wait_first())

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
